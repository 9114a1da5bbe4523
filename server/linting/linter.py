"""Lints what is about to be signed as its profile says: every certificate, or one of each shape and a sample."""

import asyncio
from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric import ed25519
from structlog.typing import FilteringBoundLogger

from pkix.algorithms import SignatureFamily
from pkix.certificate import PreparedCertificate, assemble_certificate
from pkix.errors import ContentRefused, LintError
from pkix.issuer import Issuer
from pkix.shape import certificate_shape
from pkix.unsigned import tlv
from server.errors import LintUnavailable
from server.linting.exceptions import Exceptions
from server.linting.findings import Finding
from server.linting.pool import LintPool
from server.linting.shapes import KnownShapes, ShapeKey
from server.metrics import AuthorityMetrics

_OF_THE_REQUEST = (
    "certificate.tbsCertificate.subject.",
    "certificate.tbsCertificate.subjectPublicKeyInfo",
)
_NAMES = "subjectAltName"
_SHOWN = 5


class CertificateLinter:
    """What `IssuanceService.prepare` asks. It signs nothing and stores nothing but shapes."""

    def __init__(
        self,
        pool: LintPool,
        shapes: KnownShapes,
        exceptions: Exceptions,
        *,
        sample: float,
        chance: Callable[[], float],
        metrics: AuthorityMetrics,
        logger: FilteringBoundLogger,
    ) -> None:
        self._pool = pool
        self._shapes = shapes
        self._exceptions = exceptions
        self._sample = sample
        self._chance = chance
        self._linted = metrics.linted
        self._logger = logger
        self._pending: dict[ShapeKey, asyncio.Event] = {}

    async def check(self, prepared: PreparedCertificate, issuer: Issuer, *, bulk: bool = False) -> None:
        """Return if the certificate may be signed, as far as pkilint knows.

        Raises `LintError` (`ContentRefused` where the request's own content is to blame), naming code and field of
        each finding; `LintUnavailable` if it had to be linted and could not be. Cost: about 20 µs for a shape that
        is known, else that of pkilint.
        """
        profile = prepared.profile
        if profile.linter == "none":
            return
        if profile.lint == "every":
            await self._lint(prepared, issuer, bulk=bulk)
            return
        shape = certificate_shape(prepared.tbs)
        if not shape.recurs:
            await self._lint(prepared, issuer, bulk=bulk)
            return
        key = (profile.linter, profile.identity, shape.sha256)
        while not self._shapes.is_good(key):
            if self._shapes.is_doubtful(key):
                await self._lint(prepared, issuer, bulk=bulk)
                return
            if (pending := self._pending.get(key)) is None:
                await self._lint_first(key, prepared, issuer, bulk=bulk)
                return
            await pending.wait()  # of one new shape one is linted; if that failed, the next
        if self._chance() < self._sample:
            await self._lint_sample(key, prepared, issuer, bulk=bulk)
        else:
            self._linted.labels(profile.linter, "known").inc()

    async def _lint_first(
        self, key: ShapeKey, prepared: PreparedCertificate, issuer: Issuer, *, bulk: bool
    ) -> None:
        done = self._pending[key] = asyncio.Event()
        try:
            await self._lint(prepared, issuer, bulk=bulk)
            await self._shapes.remember(key)
        except LintError:
            await self._shapes.doubt(key)
            raise
        finally:
            del self._pending[key]
            done.set()

    async def _lint_sample(
        self, key: ShapeKey, prepared: PreparedCertificate, issuer: Issuer, *, bulk: bool
    ) -> None:
        """Check what the shape has promised. That the linter is away stops nobody here: it had been linted."""
        try:
            await self._lint(prepared, issuer, bulk=bulk)
        except LintUnavailable:
            self._linted.labels(prepared.profile.linter, "unsampled").inc()
        except LintError as error:
            await self._shapes.doubt(key)
            self._logger.error("a shape that was good has findings", profile=key[1], findings=str(error))
            raise

    async def _lint(self, prepared: PreparedCertificate, issuer: Issuer, *, bulk: bool) -> None:
        linter = prepared.profile.linter
        der = assemble_certificate(prepared, issuer, placeholder_signature(issuer))
        try:
            findings = await self._pool.lint(der, linter, bulk=bulk)
        except LintUnavailable:
            self._linted.labels(linter, "unavailable").inc()
            raise
        stopping = self._exceptions.stopping(findings, linter=linter, profile=prepared.profile.name)
        self._linted.labels(linter, "refused" if stopping else "passed").inc()
        if stopping:
            self._logger.warning(
                "linter refuses a certificate",
                profile=prepared.profile.identity,
                linter=linter,
                findings=[f.code for f in stopping],
            )
            raise lint_error(stopping, linter)


def placeholder_signature(issuer: Issuer) -> bytes:
    """Return what has the form and size of a signature of this issuer, and is none.

    RSA: as long as the modulus. ECDSA: an Ecdsa-Sig-Value of two numbers of the curve's size. Ed25519: 64 octets.
    """
    family, key = issuer.algorithm.family, issuer.public_key
    if isinstance(key, ed25519.Ed25519PublicKey):
        return b"\x55" * 64
    octets = (key.key_size + 7) // 8
    if family is not SignatureFamily.ECDSA:
        return b"\x55" * octets
    number = tlv(0x02, (b"\x01" if key.key_size % 8 else b"\x55") + b"\x55" * (octets - 1))
    return tlv(0x30, number * 2)


def lint_error(findings: list[Finding], linter: str) -> LintError:
    """Return the error that names these findings, by whose content they are about."""
    more = f"; and {len(findings) - _SHOWN} more" if len(findings) > _SHOWN else ""
    detail = f"pkilint ({linter}): " + "; ".join(map(str, findings[:_SHOWN])) + more
    if all(finding.where.startswith(_OF_THE_REQUEST) or _NAMES in finding.where for finding in findings):
        return ContentRefused(detail)
    return LintError(detail)
