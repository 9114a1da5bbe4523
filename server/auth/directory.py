"""The clients as operators see them: added, listed, limited, pinned to another key, disabled; each act audited."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from server.audit.log import AuditEntry, append
from server.auth.clients import ANY, CERTMILL
from server.clock import Clock, epoch
from server.errors import Conflict, InvalidRequest, NotFound
from server.storage.database import AnyRow, Database
from server.storage.schema import State, certificates, clients

_CLIENT = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_DNS_NAME = re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*")
_IP_ADDRESS = re.compile(r"[0-9.]+|[0-9a-f:.]*:[0-9a-f:.]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientRecord:
    """A client. `live_certificates`: issued to it, neither revoked nor expired."""

    name: str
    profiles: tuple[str, ...]
    names: tuple[str, ...]
    disabled: bool
    spki_sha256: bytes
    live_certificates: int


class ClientDirectory:
    """Reads and changes the clients; `operator` is who does it, for the audit log.

    `profiles` are those that clients may use.
    The authority takes notice of a change within a second, also on open connections.
    """

    def __init__(self, database: Database, clock: Clock, *, operator: str, profiles: Sequence[str]) -> None:
        self._database = database
        self._clock = clock
        self._operator = operator
        self._offered = [ANY, *profiles]

    async def records(self) -> list[ClientRecord]:
        """Return all clients, by name; raises `StorageError`."""
        c = certificates.c
        now = epoch(self._clock())
        alive = (c.state == State.ISSUED) & c.revoked_at.is_(None) & (c.not_after >= now)
        counted = select(c.client, func.count().label("live")).where(alive).group_by(c.client).subquery()
        query = (
            select(clients, func.coalesce(counted.c.live, 0).label("live"))
            .outerjoin(counted, counted.c.client == clients.c.name)
            .order_by(clients.c.name)
        )
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        return [
            ClientRecord(
                name=row.name,
                profiles=tuple(row.profiles),
                names=tuple(row.names),
                disabled=row.disabled,
                spki_sha256=row.spki_sha256,
                live_certificates=row.live,
            )
            for row in rows
        ]

    async def add(self, name: str, spki_sha256: bytes, profiles: Sequence[str], names: Sequence[str]) -> None:
        """Add a client that is known by its key; raises `InvalidRequest`, `Conflict`, `StorageError`."""
        if not _CLIENT.fullmatch(name) or name == CERTMILL.name:
            raise InvalidRequest(
                f"{name[:80]!r} cannot be a client's name",
                field="NAME",
                remedy="use 1 to 64 of a-z, 0-9, dot, underscore and hyphen; certmill itself is taken",
            )
        allowed = {"profiles": _profiles(profiles, self._offered), "names": _names(names)}
        async with self._database.write() as connection:
            if await _find(connection, name) is not None:
                raise Conflict(
                    f"there is a client {name} already",
                    field="NAME",
                    remedy=f"change it by: certmill client limit {name} …, or certmill client pin {name} …",
                )
            await _require_free(connection, spki_sha256)
            row = {"name": name, "spki_sha256": spki_sha256, "disabled": False, **allowed}
            await connection.execute(insert(clients), row)
            await self._audit(connection, "client.added", name, {**allowed, "spki_sha256": spki_sha256.hex()})

    async def limit(self, name: str, profiles: Sequence[str] | None, names: Sequence[str] | None) -> None:
        """Replace what a client may ask for; None leaves it. Raises as `add` does, and `NotFound`."""
        changes: dict[str, object] = {}
        if profiles is not None:
            changes["profiles"] = _profiles(profiles, self._offered)
        if names is not None:
            changes["names"] = _names(names)
        if not changes:
            raise InvalidRequest("nothing to change", remedy="give --profile, --name or both")
        await self._change(name, "client.limited", changes, changes)

    async def pin(self, name: str, spki_sha256: bytes) -> None:
        """Know a client by another key from now on; raises `NotFound`, `Conflict`, `StorageError`."""
        await self._change(
            name, "client.pinned", {"spki_sha256": spki_sha256}, {"spki_sha256": spki_sha256.hex()}, spki_sha256
        )

    async def disable(self, name: str, *, disabled: bool) -> None:
        """Refuse a client from now on, or accept it again; its certificates stay as they are."""
        action = "client.disabled" if disabled else "client.enabled"
        await self._change(name, action, {"disabled": disabled}, {})

    async def _change(
        self,
        name: str,
        action: str,
        changes: dict[str, object],
        detail: dict[str, object],
        spki_sha256: bytes | None = None,
    ) -> None:
        async with self._database.write() as connection:
            if await _find(connection, name) is None:
                raise NotFound(
                    f"there is no client {name[:80]!r}", field="NAME", remedy="see: certmill client list"
                )
            if spki_sha256 is not None:
                await _require_free(connection, spki_sha256, but=name)
            await connection.execute(update(clients).where(clients.c.name == name).values(**changes))
            await self._audit(connection, action, name, detail)

    async def _audit(self, connection: AsyncConnection, action: str, name: str, detail: dict[str, object]) -> None:
        entry = AuditEntry(actor=self._operator, action=action, object=name, request_id="-", detail=detail)
        await append(connection, epoch(self._clock()), [entry])


async def _find(connection: AsyncConnection, name: str) -> AnyRow | None:
    return (await connection.execute(select(clients).where(clients.c.name == name))).one_or_none()


async def _require_free(connection: AsyncConnection, spki_sha256: bytes, *, but: str = "") -> None:
    query = select(clients.c.name).where(clients.c.spki_sha256 == spki_sha256, clients.c.name != but)
    other = (await connection.execute(query)).scalar_one_or_none()
    if other is not None:
        raise Conflict(
            f"this key is that of the client {other}",
            field="--certificate",
            remedy="each client needs a key of its own: it is what tells them apart",
        )


def _profiles(profiles: Sequence[str], offered: Sequence[str]) -> list[str]:
    for profile in profiles:
        if profile not in offered:
            raise InvalidRequest(
                f"there is no profile {profile[:64]!r}", field="--profile", remedy=f"use {', '.join(offered)}"
            )
    return sorted(set(profiles))


def _names(names: Sequence[str]) -> list[str]:
    for name in names:
        if name != ANY and not _DNS_NAME.fullmatch(name) and not _IP_ADDRESS.fullmatch(name):
            raise InvalidRequest(
                f"{name[:80]!r} is no name that a client can be limited to",
                field="--name",
                remedy="a DNS name in lower case (itself and all below it), an IP address, or * for any name",
            )
    return sorted(set(names))
