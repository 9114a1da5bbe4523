"""What goes into issuing and what comes out."""

import datetime as dt
import hashlib
import json
from dataclasses import dataclass

from pkix.asked import AskedNames
from pkix.certificate import PreparedCertificate
from pkix.names import SerialNumber
from pkix.profile import Profile
from pkix.subject import CertificateNames
from server.auth.clients import Client
from server.clock import from_epoch
from server.storage.database import AnyRow


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRow:
    """The row of a batch that an order stands in: it gets its certificate in the transaction that issues it."""

    job: str
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One request for a certificate, as an enrolment protocol hands it over.

    `csr` is PEM or DER. `lifetime` shortens the profile's. `idempotency_key` makes a retry safe. `asked`: names
    given beside the CSR. `renews`: the serial number (hex) of the certificate that this one follows; then
    `names` are those of that certificate, taken instead of the CSR's. `row`: of a batch; such an order is bulk
    work, and its row is what makes a retry safe.
    """

    client: Client
    profile: Profile
    csr: bytes
    request_id: str
    lifetime: dt.timedelta | None = None
    idempotency_key: str | None = None
    asked: AskedNames | None = None
    renews: str | None = None
    names: CertificateNames | None = None
    row: BatchRow | None = None

    def fingerprint(self) -> bytes:
        """Return the SHA-256 of what makes two orders the same request."""
        seconds = "" if self.lifetime is None else str(int(self.lifetime.total_seconds()))
        parts = [self.profile.name, seconds]
        if self.asked is not None or self.renews is not None:  # without: the same as before there were any
            parts.append(json.dumps([self.asked and self.asked.as_json, self.renews], sort_keys=True))
        head = "\x00".join(parts).encode()
        return hashlib.sha256(head + b"\x00" + self.csr).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedOrder:
    """An order whose certificate is prepared and linted, ready for a micro-batch."""

    order: Order
    certificate: PreparedCertificate
    csr_der: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedCertificate:
    """A certificate that is durable and has its OCSP answer. `replayed`: from an idempotency key."""

    serial: SerialNumber
    certificate_der: bytes
    profile: str
    subject: str
    dns_names: tuple[str, ...]
    not_before: dt.datetime
    not_after: dt.datetime
    replayed: bool = False


def issued_before(row: AnyRow) -> IssuedCertificate:
    """Return what a row of `certificates` says, for a call that is answered again."""
    return IssuedCertificate(
        serial=SerialNumber(int(row.serial, 16)),
        certificate_der=row.der,
        profile=row.profile,
        subject=row.subject,
        dns_names=tuple(row.dns_names),
        not_before=from_epoch(row.not_before),
        not_after=from_epoch(row.not_after),
        replayed=True,
    )
