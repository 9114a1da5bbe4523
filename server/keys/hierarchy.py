"""The CA hierarchy: root, issuing CA under it, OCSP responder. Made once, found again at every start.

Each certificate follows the order of all issuing: a durable intent, the signature, the durable certificate.
A crash in between leaves an intent that the next start closes, and the step is done again with the same key.
"""

import asyncio
import datetime as dt
import hashlib
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from sqlalchemy import Select, insert, select, update

from pkix.algorithms import KeyAlgorithm, SigningPublicKey, signature_algorithm
from pkix.attributes import normalised, subject_text
from pkix.certificate import Validity, choose_validity, prepare_ca_certificate, prepare_certificate
from pkix.csr import bounds_in_characters
from pkix.errors import LintError
from pkix.issuer import Issuer
from pkix.lint import lint_certificate
from pkix.names import SerialNumber, TbsDer, serial_hex
from pkix.profile import Profile
from pkix.subject import CertificateNames
from pkix.unsigned import assemble
from server.audit.log import AuditEntry, append
from server.clock import epoch
from server.config import Config
from server.errors import ConfigError
from server.ground import Ground
from server.home import Home
from server.issuance.profile_files import OCSP_RESPONDER, SUBORDINATE_CA
from server.issuance.profiles import ProfileRegistry
from server.issuance.serial import new_serial
from server.keys.certified import replace_responder
from server.keys.described import describe_issuer
from server.storage.schema import State, certificates, issuers
from signer_pool.pool import Priority, SignerPool

ROOT, ISSUING, OCSP = "root", "issuing", "ocsp"
RESPONDER_RENEWAL = dt.timedelta(days=30)
_BACKDATE = dt.timedelta(minutes=5)
_YEAR = dt.timedelta(days=365)
_KEYS_NAMED = 20
_TOKENS_DEADLINE_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Hierarchy:
    """The CAs of this installation."""

    root: Issuer
    issuing: Issuer


class HierarchyBuilder:
    """Makes what is missing of the hierarchy, with keys in the token."""

    def __init__(self, *, config: Config, pool: SignerPool, profiles: ProfileRegistry, ground: Ground) -> None:
        self._config = config
        self._pool = pool
        self._database = ground.database
        self._profiles = profiles
        self._clock = ground.clock
        self._authority = ground.authority or None

    async def ensure(self) -> Hierarchy:
        """Return the hierarchy; raises `SignerPoolError`, `StorageError`, or `ConfigError` for a wrong token."""
        ca = self._config.ca
        root = await self._ensure_ca(ROOT, ca.root_key, _YEAR * ca.root_years, issuer=None)
        issuing = await self._ensure_ca(ISSUING, ca.issuing_key, _YEAR * ca.issuing_years, issuer=root)
        await self._ensure_responder_key(ca.ocsp_key)
        return Hierarchy(root=root, issuing=issuing)

    async def ensure_responder(self, issuing: Issuer) -> x509.Certificate:
        """Return the responder's certificate, a new one if less than 30 days are left."""
        key = self._pool.public_key(OCSP)
        profile = self._profiles.own(OCSP_RESPONDER)
        c = certificates.c
        query = (
            select(c.der)
            .where(
                c.issuer == ISSUING,
                c.profile == profile.identity,
                c.state == State.ISSUED,
                c.revoked_at.is_(None),
                c.spki_sha256 == _spki_sha256(key),
                c.not_after > epoch(self._clock() + RESPONDER_RENEWAL),
                c.not_before <= epoch(self._clock()),  # else made while the clock was wrong
            )
            .order_by(c.not_after.desc())
            .limit(1)
        )
        der = await self._scalar(query)
        if der is None:
            async with self._database.alone("responder"):  # of several authorities one issues it
                der = await self._scalar(query)
                if der is None:
                    subject = self._subject("OCSP responder")
                    der = await self._issue_below(
                        issuing, ISSUING, profile, subject=subject, key=key, lifetime=profile.validity
                    )
        return x509.load_der_x509_certificate(der)

    async def _scalar(self, query: Select[bytes]) -> bytes | None:
        async with self._database.read() as connection:
            der: bytes | None = (await connection.execute(query)).scalar_one_or_none()
        return der

    async def _ensure_ca(
        self, label: str, algorithm: KeyAlgorithm, lifetime: dt.timedelta, *, issuer: Issuer | None
    ) -> Issuer:
        der = await self._scalar(select(issuers.c.certificate_der).where(issuers.c.label == label))
        if der is None:
            key = await self._ensure_key(label, algorithm)
            der = await self._issue_ca(label, key, lifetime, issuer=issuer)
        found = describe_issuer(self._config.listen.url, label, x509.load_der_x509_certificate(der))
        if label not in self._pool.labels():
            raise ConfigError(self._why_missing(label))
        self._pool.pin_key(label, found.public_key)
        return found

    async def _ensure_responder_key(self, algorithm: KeyAlgorithm) -> None:
        """Make the responder's key if every token lacks it, be it that the one with a certificate is lost."""
        if OCSP not in self._pool.labels():
            await self._pool.all_tokens_seen(deadline_s=_TOKENS_DEADLINE_S)
        if OCSP not in self._pool.labels():
            home = Home(self._config.home)
            await asyncio.to_thread(replace_responder, home, self._database.place, issuer=ISSUING)
            await self._pool.generate_key(OCSP, algorithm)

    async def _ensure_key(self, label: str, algorithm: KeyAlgorithm) -> SigningPublicKey:
        if label in self._pool.labels():
            return self._pool.public_key(label)
        return await self._pool.generate_key(label, algorithm)

    def _why_missing(self, label: str) -> str:
        keys = sorted(self._pool.labels())
        more = f" and {len(keys) - _KEYS_NAMED} more" if len(keys) > _KEYS_NAMED else ""
        there = ", ".join(map(repr, keys[:_KEYS_NAMED])) + more
        return (
            f"setting keys.{label}: no token holds the key {getattr(self._config.keys, label)}, which the "
            f"database of this home needs; the tokens have {there or 'no keys at all'}; connect the token that "
            "this certmill was initialised with, or correct [[tokens]] and [keys]; `certmill token check` tells "
            "what each token lacks"
        )

    async def _issue_ca(
        self, label: str, key: SigningPublicKey, lifetime: dt.timedelta, *, issuer: Issuer | None
    ) -> bytes:
        subject = self._subject(f"{normalised(self._config.ca.organization)} {label} CA"[:64].strip())
        if issuer is not None:
            profile = self._profiles.own(SUBORDINATE_CA)
            return await self._issue_below(
                issuer, ROOT, profile, subject=subject, key=key, lifetime=lifetime, makes=label
            )
        now = self._clock().replace(microsecond=0)
        validity = Validity(not_before=now - _BACKDATE, not_after=now - _BACKDATE + lifetime)
        serial = new_serial()
        tbs = prepare_ca_certificate(
            subject=subject, public_key=key, serial=serial, validity=validity, issuer=None, path_length=None
        )
        facts = _facts(
            issuer=ROOT,
            serial=serial,
            profile=f"ca-{label}@1",
            subject=subject,
            spki_sha256=_spki_sha256(key),
            tbs=tbs,
            validity=validity,
        )
        return await self._sign_recorded(facts, tbs, ROOT, key, issuer_label=label)

    async def _issue_below(
        self,
        issuer: Issuer,
        issuer_label: str,
        profile: Profile,
        *,
        subject: x509.Name,
        key: SigningPublicKey,
        lifetime: dt.timedelta,
        makes: str | None = None,
    ) -> bytes:
        """Issue a certificate for a key in the token, under an internal profile; `makes` names the CA it makes."""
        now = self._clock()
        prepared = prepare_certificate(
            issuer=issuer,
            profile=profile,
            serial=new_serial(),
            validity=choose_validity(
                now=now, backdate=_BACKDATE, lifetime=lifetime, issuer=issuer.certificate, profile=profile
            ),
            public_key=key,
            spki_sha256=_spki_sha256(key),
            names=CertificateNames(subject=subject, dns_names=(), ip_addresses=()),
        )
        try:
            lint_certificate(prepared, issuer, now=now)
        except LintError as error:
            raise ConfigError(
                f"profile {profile.identity}: certmill cannot have its own certificate under it: {error}; "
                "correct the profile, or ca.country, ca.organization or the kind of key in [ca]"
            ) from None
        validity = Validity(not_before=prepared.not_before, not_after=prepared.not_after)
        facts = _facts(
            issuer=issuer_label,
            serial=prepared.serial,
            profile=profile.identity,
            subject=subject,
            spki_sha256=prepared.spki_sha256,
            tbs=prepared.tbs,
            validity=validity,
        )
        return await self._sign_recorded(facts, prepared.tbs, issuer_label, issuer.public_key, issuer_label=makes)

    def _subject(self, common_name: str) -> x509.Name:
        ca = self._config.ca
        values = (
            (NameOID.COUNTRY_NAME, ca.country),
            (NameOID.ORGANIZATION_NAME, normalised(ca.organization)),
            (NameOID.COMMON_NAME, common_name),
        )
        with bounds_in_characters():
            return x509.Name([x509.NameAttribute(oid, value, _validate=False) for oid, value in values])

    async def _sign_recorded(
        self,
        facts: dict[str, object],
        tbs: TbsDer,
        key_label: str,
        signer: SigningPublicKey,
        *,
        issuer_label: str | None = None,
    ) -> bytes:
        """Intent, signature, issued; `issuer_label` names the CA that the certificate makes."""
        now = epoch(self._clock())
        async with self._database.write() as connection:
            await connection.execute(
                insert(certificates), [{**facts, "created_at": now, "authority": self._authority}]
            )
            await append(connection, now, [_audit(facts, "certificate.intent")])
        signature = await self._pool.sign(key_label, tbs, Priority.INTERACTIVE)
        der = assemble(tbs, signature_algorithm(signer), signature)
        x509.load_der_x509_certificate(der)
        c = certificates.c
        async with self._database.write() as connection:
            await connection.execute(
                update(certificates)
                .where(c.issuer == facts["issuer"], c.serial == facts["serial"])
                .values(state=State.ISSUED, der=der)
            )
            if issuer_label is not None:
                row = {"label": issuer_label, "key_label": issuer_label, "certificate_der": der}
                await connection.execute(insert(issuers), [row])
            await append(connection, now, [_audit(facts, "certificate.issued")])
        return der


def _facts(
    *,
    issuer: str,
    serial: SerialNumber,
    profile: str,
    subject: x509.Name,
    spki_sha256: bytes,
    tbs: TbsDer,
    validity: Validity,
) -> dict[str, object]:
    return {
        "issuer": issuer,
        "serial": serial_hex(serial),
        "state": State.INTENT,
        "profile": profile,
        "client": "certmill",
        "request_id": "-",
        "subject": subject_text(subject),
        "dns_names": [],
        "tbs_sha256": hashlib.sha256(tbs).digest(),
        "spki_sha256": spki_sha256,
        "not_before": epoch(validity.not_before),
        "not_after": epoch(validity.not_after),
    }


def _spki_sha256(key: SigningPublicKey) -> bytes:
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()


def _audit(facts: dict[str, object], action: str) -> AuditEntry:
    return AuditEntry(
        actor="certmill",
        action=action,
        object=str(facts["serial"]),
        request_id="-",
        detail={"profile": facts["profile"]},
    )
