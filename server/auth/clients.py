"""Who is calling: a TLS client certificate, pinned by its key to a client with its permissions."""

import datetime as dt
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy import select
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from pkix.names import serial_hex
from server.clock import Clock
from server.errors import NotAuthenticated, NotPermitted
from server.storage.database import AnyRow, Database
from server.storage.schema import certificates, clients

ANY = "*"
_REMEMBER = dt.timedelta(seconds=1)
_REMEMBERED_MAX = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """A ministry system. `profiles`, `names`, `organizations` and `identifiers` may hold "*" for any.

    A name permits itself and every name below it: "ministry.gov" permits "www.ministry.gov".
    """

    name: str
    profiles: tuple[str, ...]
    names: tuple[str, ...]
    organizations: tuple[str, ...] = (ANY,)
    identifiers: tuple[str, ...] = (ANY,)
    yearly_quota: int | None = None
    rate_per_minute: int | None = None

    def require_profile(self, profile: str) -> None:
        """Raise `NotPermitted` unless the client may ask for this profile."""
        if ANY not in self.profiles and profile not in self.profiles:
            raise NotPermitted(
                f"client {self.name} may not use profile {profile}",
                field="profile",
                remedy=f"use one of: {', '.join(self.profiles)}; or ask the CA's operators for this profile",
            )

    def require_names(self, names: Sequence[str]) -> None:
        """Raise `NotPermitted` unless every name lies within what the client may ask for."""
        if ANY in self.names:
            return
        for name in names:
            bare = name.removeprefix("*.")
            if not any(bare == allowed or bare.endswith("." + allowed) for allowed in self.names):
                raise NotPermitted(
                    f"client {self.name} may not ask for {name}",
                    field="csr",
                    remedy=f"ask only for names at or below: {', '.join(self.names)}",
                )


CERTMILL = Client(name="certmill", profiles=(ANY,), names=(ANY,))
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
            "spki_sha256": spki_sha256,
        }
        pinned = {"spki_sha256": spki_sha256}
        statement = sqlite_insert(clients).values(name=client.name, disabled=False, **values)
        async with self._database.write() as connection:
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
