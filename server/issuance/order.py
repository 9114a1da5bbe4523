"""What goes into issuing and what comes out."""

import datetime as dt
import hashlib
from dataclasses import dataclass

from pkix.certificate import PreparedCertificate
from pkix.names import SerialNumber
from pkix.profile import Profile
from server.auth.clients import Client


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One request for a certificate, as an enrolment protocol hands it over.

    `csr` is PEM or DER. `lifetime` shortens the profile's. `idempotency_key` makes a retry safe.
    """

    client: Client
    profile: Profile
    csr: bytes
    request_id: str
    lifetime: dt.timedelta | None = None
    idempotency_key: str | None = None

    def fingerprint(self) -> bytes:
        """Return the SHA-256 of what makes two orders the same request."""
        seconds = "" if self.lifetime is None else str(int(self.lifetime.total_seconds()))
        head = "\x00".join((self.profile.name, seconds)).encode()
        return hashlib.sha256(head + b"\x00" + self.csr).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedOrder:
    """An order whose certificate is prepared and linted, ready for a micro-batch."""

    order: Order
    certificate: PreparedCertificate


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedCertificate:
    """A certificate that is durable and has its OCSP answer. `replayed`: from an idempotency key."""

    serial: SerialNumber
    certificate_der: bytes
    profile: str
    not_before: dt.datetime
    not_after: dt.datetime
    replayed: bool = False
