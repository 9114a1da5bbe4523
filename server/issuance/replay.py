"""Past requests, run through a profile that is not active yet: what would come out, beside what came out then."""

import datetime as dt
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

from cryptography import x509
from sqlalchemy import ColumnElement, func, select

from pkix.asked import AskedNames
from pkix.attributes import subject_text
from pkix.certificate import ONE_SECOND, choose_validity, prepare_certificate
from pkix.csr import CertificationRequest, parse_csr
from pkix.errors import LintError, RequesterError
from pkix.issuer import Issuer
from pkix.lint import lint_certificate
from pkix.profile import KEY_USAGES, Profile
from pkix.subject import CertificateNames, check_key, select_names
from pkix.unsigned import assemble
from server.clock import from_epoch
from server.errors import InvalidRequest, RequestRefused
from server.issuance.profiles import ProfileRegistry
from server.issuance.serial import new_serial
from server.renewal.names import names_of, select_kept
from server.storage.database import AnyRow, Database
from server.storage.schema import State, certificates

_PAGE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One thing that would be another. Empty: it is not there."""

    what: str
    before: str
    after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A past request that would be refused now (`refusal` says why), or get another certificate."""

    serial: str
    client: str
    profile: str
    issued_at: dt.datetime
    refusal: str = ""
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """Which requests: those under any version of the profile's name, of one issuer, issued since, newest first."""

    profile: Profile
    issuer: Issuer
    issuer_label: str
    backdate: dt.timedelta
    registry: ProfileRegistry
    now: dt.datetime
    since: int = 0
    limit: int | None = None

    async def count(self, database: Database) -> int:
        """Return how many requests there are; raises `StorageError`."""
        query = select(func.count()).select_from(certificates).where(*self._conditions())
        async with database.read() as connection:
            found = int((await connection.execute(query)).scalar_one())
        return found if self.limit is None else min(found, self.limit)

    async def run(self, database: Database) -> AsyncIterator[Difference | None]:
        """Replay them one by one: a difference for each, or None; memory does not grow. Raises `StorageError`."""
        c = certificates.c
        left, below = self.limit, None
        while left is None or left > 0:
            conditions = [*self._conditions(), *([] if below is None else [c.id < below])]
            page = _PAGE if left is None else min(_PAGE, left)
            query = select(certificates).where(*conditions).order_by(c.id.desc()).limit(page)
            async with database.read() as connection:
                rows = (await connection.execute(query)).all()
            for row in rows:
                yield self.replay(row)
            if len(rows) < page:
                return
            below = rows[-1].id
            left = None if left is None else left - len(rows)

    def replay(self, row: AnyRow) -> Difference | None:
        """Run one past request through the profile."""
        refusal, changes = "", tuple[Change, ...]()
        old = x509.load_der_x509_certificate(row.der)
        try:
            new = self._prepare(row, old)
        except (RequesterError, RequestRefused) as error:
            refusal = f"{error.field}: {error.detail}; {error.remedy}"
        except LintError as error:
            refusal = f"our own check: {error}"
        else:
            changes = tuple(_changes(old, new))
        if not refusal and not changes:
            return None
        return Difference(
            serial=row.serial,
            client=row.client,
            profile=row.profile,
            issued_at=from_epoch(row.created_at),
            refusal=refusal,
            changes=changes,
        )

    def _prepare(self, row: AnyRow, old: x509.Certificate) -> x509.Certificate:
        request = parse_csr(row.csr)
        check_key(request, self.profile)
        prepared = prepare_certificate(
            issuer=self.issuer,
            profile=self.profile,
            serial=new_serial(),
            validity=choose_validity(
                now=self.now,
                backdate=self.backdate,
                lifetime=min(self.profile.validity, self._asked_lifetime(row, old)),
                issuer=self.issuer.certificate,
                profile=self.profile,
            ),
            public_key=request.public_key,
            spki_sha256=request.spki_sha256,
            names=self._names(row, request),
        )
        lint_certificate(prepared, self.issuer, now=self.now)
        return x509.load_der_x509_certificate(assemble(prepared.tbs, self.issuer.algorithm, b""))

    def _names(self, row: AnyRow, request: CertificationRequest) -> CertificateNames:
        if row.renews is not None:  # its names were those of its predecessor; the CSR need not say them
            return select_kept(request, names_of(row.der), self.profile)
        return select_names(request, self.profile, row.asked and AskedNames.from_json(row.asked))

    def _asked_lifetime(self, row: AnyRow, old: x509.Certificate) -> dt.timedelta:
        """Return the lifetime that was asked for. It is not kept: what is below the profile's was asked for."""
        lifetime = _lifetime(old)
        try:
            then = self.registry.version(row.profile)
        except InvalidRequest:  # of certmill 0.1, which recorded no versions
            return lifetime
        return dt.timedelta.max if lifetime >= then.longest(old.not_valid_before_utc) else lifetime

    def _conditions(self) -> list[ColumnElement[bool]]:
        c = certificates.c
        return [
            c.issuer == self.issuer_label,
            c.state == State.ISSUED,
            c.profile.startswith(f"{self.profile.name}@", autoescape=True),
            c.csr.is_not(None),
            c.created_at >= self.since,
        ]


def _days(certificate: x509.Certificate) -> str:
    return str(_lifetime(certificate)).removesuffix(", 0:00:00")


def _lifetime(certificate: x509.Certificate) -> dt.timedelta:
    return certificate.not_valid_after_utc - certificate.not_valid_before_utc + ONE_SECOND


def _changes(old: x509.Certificate, new: x509.Certificate) -> Iterator[Change]:
    if old.subject.public_bytes() != new.subject.public_bytes():
        yield Change(what="subject", before=subject_text(old.subject), after=subject_text(new.subject))
    if _lifetime(old) != _lifetime(new):
        yield Change(what="validity", before=_days(old), after=_days(new))
    before = {extension.oid: extension for extension in old.extensions}
    after = {extension.oid: extension for extension in new.extensions}
    for oid in [*before, *(oid for oid in after if oid not in before)]:
        was, is_now = before.get(oid), after.get(oid)
        if was != is_now:
            name = "".join(dict.fromkeys(type(one.value).__name__ for one in (was, is_now) if one is not None))
            yield Change(what=f"extension {name}", before=_text(was), after=_text(is_now))


def _text(extension: x509.Extension[x509.ExtensionType] | None) -> str:
    if extension is None:
        return ""
    return ("critical " if extension.critical else "") + _words(extension.value)


def _words(value: x509.ExtensionType) -> str:
    if isinstance(value, x509.KeyUsage):
        return ", ".join(name for name, argument in KEY_USAGES.items() if getattr(value, argument))
    if isinstance(value, x509.ExtendedKeyUsage):
        return ", ".join(oid.dotted_string for oid in value)
    if isinstance(value, x509.CertificatePolicies):
        return ", ".join(
            " ".join([one.policy_identifier.dotted_string, *map(str, one.policy_qualifiers or ())])
            for one in value
        )
    if isinstance(value, x509.SubjectAlternativeName):
        return ", ".join(f"{type(name).__name__}:{name.value}" for name in value)
    if isinstance(value, x509.AuthorityInformationAccess):
        return ", ".join(str(one.access_location.value) for one in value)
    return value.public_bytes().hex()
