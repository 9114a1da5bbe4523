"""Who is calling: a TLS client certificate, pinned by its key to a client with its permissions."""

import datetime as dt
import hashlib
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy import select

from pkix.names import serial_hex
from pkix.subject import CertificateNames
from server.auth.permissions import ANY, claims, holds
from server.clock import Clock
from server.errors import NotAuthenticated, NotPermitted
from server.storage.database import AnyRow, Database
from server.storage.schema import certificates, clients
from server.storage.upserts import insert_for

_REMEMBER = dt.timedelta(seconds=1)
_REMEMBERED_MAX = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """A ministry system and its limits; permissions.py says what a value holds, "*" holds everything.

    `yearly_quota`: certificates in a calendar year (UTC). `rate_per_minute`: requests for them. None: no limit.
    """

    name: str
    profiles: tuple[str, ...]
    names: tuple[str, ...]
    organizations: tuple[str, ...] = ()
    identifiers: tuple[str, ...] = ()
    yearly_quota: int | None = None
    rate_per_minute: int | None = None

    def require_profile(self, profile: str) -> None:
        """Raise `NotPermitted` unless the client may ask for this profile."""
        if ANY not in self.profiles and profile not in self.profiles:
            raise NotPermitted(
                f"client {self.name} may not use profile {profile}",
                field="profile",
                remedy=f"it has: {', '.join(self.profiles) or 'none'}; ask the CA's operators for more",
                limit="profiles",
            )

    def require_names(self, names: CertificateNames) -> None:
        """Raise `NotPermitted` unless everything that identifies somebody lies within the limits."""
        limits = {
            "names": self.names,
            "organizations": self.organizations,
            "identifiers": self.identifiers,
        }
        for claim in claims(names):
            allowed = limits[claim.limit]
            if not holds(allowed, claim):
                raise NotPermitted(
                    f"client {self.name} may not ask for {claim.shown[:120]}: its {claim.limit} do not hold it",
                    field="csr",
                    remedy=f"it has: {', '.join(allowed) or 'none'}; ask the CA's operators for more",
                    limit=claim.limit,
                )


CERTMILL = Client(name="certmill", profiles=(ANY,), names=(ANY,), organizations=(ANY,), identifiers=(ANY,))
"""certmill itself, when it issues its own certificates."""


class ClientRegistry:
    """Finds the client of a TLS certificate; an answer is remembered for one second."""

    def __init__(self, database: Database, clock: Clock, *, issuer_label: str) -> None:
        self._database = database
        self._clock = clock
        self._issuer_label = issuer_label
        self._remembered: dict[bytes, tuple[dt.datetime, Client]] = {}

    async def identify(self, certificate_der: bytes | None) -> Client:
        """Return the client; raises `NotAuthenticated` if unknown, disabled, expired or revoked.

        The TLS layer has verified chain and validity at the handshake; connections outlive both, so
        revocation and expiry are looked at again here.
        """
        if certificate_der is None:
            raise _stranger("no client certificate was presented")
        now = self._clock()
        fingerprint = hashlib.sha256(certificate_der).digest()
        remembered = self._remembered.get(fingerprint)
        if remembered is not None and remembered[0] > now:
            return remembered[1]
        client = await self._look_up(x509.load_der_x509_certificate(certificate_der), now)
        if len(self._remembered) >= _REMEMBERED_MAX:
            self._remembered.clear()
        self._remembered[fingerprint] = (now + _REMEMBER, client)
        return client

    async def _look_up(self, certificate: x509.Certificate, now: dt.datetime) -> Client:
        if certificate.not_valid_after_utc < now:
            raise _stranger("the client certificate has expired")
        spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        c = certificates.c
        status = select(c.revoked_at).where(
            c.issuer == self._issuer_label,
            c.serial == serial_hex(certificate.serial_number),
            c.state == "issued",
        )
        known = select(clients).where(clients.c.spki_sha256 == hashlib.sha256(spki).digest())
        async with self._database.read() as connection:
            row = (await connection.execute(known)).one_or_none()
            issued = (await connection.execute(status)).one_or_none()
        if row is None or row.disabled:
            raise _stranger("the client certificate belongs to no active client")
        if issued is None or issued.revoked_at is not None:
            raise _stranger("the client certificate is not a valid certificate of this CA")
        return _client(row)

    async def active(self, name: str) -> Client | None:
        """Return what a client may do now; None if there is none of this name, or it is disabled."""
        query = select(clients).where(clients.c.name == name)
        async with self._database.read() as connection:
            row = (await connection.execute(query)).one_or_none()
        return None if row is None or row.disabled else _client(row)

    @property
    def shared(self) -> bool:
        """Whether other authorities know the same clients."""
        return self._database.shared

    async def knows(self, name: str) -> bool:
        """Say whether there is a client of this name."""
        query = select(clients.c.name).where(clients.c.name == name)
        async with self._database.read() as connection:
            return (await connection.execute(query)).first() is not None

    async def enrol(self, client: Client, spki_sha256: bytes) -> None:
        """Create the client; one that exists is pinned to this key, and keeps what it may do."""
        values = {
            "profiles": list(client.profiles),
            "names": list(client.names),
            "organizations": list(client.organizations),
            "identifiers": list(client.identifiers),
            "yearly_quota": client.yearly_quota,
            "rate_per_minute": client.rate_per_minute,
            "spki_sha256": spki_sha256,
        }
        pinned = {"spki_sha256": spki_sha256}
        async with self._database.write() as connection:
            statement = insert_for(connection, clients).values(name=client.name, disabled=False, **values)
            await connection.execute(statement.on_conflict_do_update(index_elements=["name"], set_=pinned))


def _client(row: AnyRow) -> Client:
    return Client(
        name=row.name,
        profiles=tuple(row.profiles),
        names=tuple(row.names),
        organizations=tuple(row.organizations),
        identifiers=tuple(row.identifiers),
        yearly_quota=row.yearly_quota,
        rate_per_minute=row.rate_per_minute,
    )


def _stranger(detail: str) -> NotAuthenticated:
    return NotAuthenticated(
        detail, remedy="call with the certificate and key that the CA's operators gave to your system"
    )
