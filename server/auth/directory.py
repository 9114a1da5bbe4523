"""The clients as operators see them: added, listed, limited, pinned to another key, disabled; each act audited."""

import datetime as dt
import re
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Select, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from server.audit.log import AuditEntry, append
from server.auth.clients import CERTMILL
from server.auth.limits import Limits
from server.clock import Clock, epoch
from server.errors import Conflict, InvalidRequest, NotFound
from server.storage.database import AnyRow, Database
from server.storage.schema import State, certificates, client_usage, clients

_CLIENT = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_NOTHING: dict[str, object] = {"profiles": [], "names": [], "organizations": [], "identifiers": []}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientRecord:
    """A client. `issued`: recorded for it this year. `live_certificates`: neither revoked nor expired."""

    name: str
    profiles: tuple[str, ...]
    names: tuple[str, ...]
    organizations: tuple[str, ...]
    identifiers: tuple[str, ...]
    yearly_quota: int | None
    rate_per_minute: int | None
    disabled: bool
    spki_sha256: bytes
    issued: int
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
        self._profiles = profiles

    async def records(self, name: str | None = None) -> list[ClientRecord]:
        """Return all clients, by name, or the one of this name; raises `StorageError`, `NotFound`."""
        now = self._clock()
        async with self._database.read() as connection:
            rows = (await connection.execute(_records_query(name, now))).all()
        if name is not None and not rows:
            raise _unknown(name)
        return [_record(row) for row in rows]

    async def add(self, name: str, spki_sha256: bytes, limits: Limits) -> None:
        """Add a client that is known by its key and may do what `limits` say, else nothing.

        Raises `InvalidRequest`, `Conflict`, `StorageError`.
        """
        if not _CLIENT.fullmatch(name) or name == CERTMILL.name:
            raise InvalidRequest(
                f"{name[:80]!r} cannot be a client's name",
                field="NAME",
                remedy="use 1 to 64 of a-z, 0-9, dot, underscore and hyphen; certmill itself is taken",
            )
        allowed = {**_NOTHING, **limits.columns(self._profiles)}
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

    async def limit(self, name: str, limits: Limits) -> None:
        """Replace the limits that are given. Raises as `add` does, and `NotFound`."""
        changes = limits.columns(self._profiles)
        if not changes:
            raise InvalidRequest(
                "nothing to change",
                remedy="give --profile, --name, --organization, --identifier, --quota or --rate",
            )
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
                raise _unknown(name)
            if spki_sha256 is not None:
                await _require_free(connection, spki_sha256, but=name)
            await connection.execute(update(clients).where(clients.c.name == name).values(**changes))
            await self._audit(connection, action, name, detail)

    async def _audit(self, connection: AsyncConnection, action: str, name: str, detail: dict[str, object]) -> None:
        entry = AuditEntry(actor=self._operator, action=action, object=name, request_id="-", detail=detail)
        await append(connection, epoch(self._clock()), [entry])


def _records_query(name: str | None, now: dt.datetime) -> Select[AnyRow]:
    c, u = certificates.c, client_usage.c
    alive = (c.state == State.ISSUED) & c.revoked_at.is_(None) & (c.not_after >= epoch(now))
    counted = select(c.client, func.count().label("live")).where(alive).group_by(c.client).subquery()
    query = (
        select(clients, func.coalesce(counted.c.live, 0).label("live"), func.coalesce(u.issued, 0).label("issued"))
        .outerjoin(counted, counted.c.client == clients.c.name)
        .outerjoin(client_usage, (u.client == clients.c.name) & (u.year == now.year))
        .order_by(clients.c.name)
    )
    return query if name is None else query.where(clients.c.name == name)


def _record(row: AnyRow) -> ClientRecord:
    return ClientRecord(
        name=row.name,
        profiles=tuple(row.profiles),
        names=tuple(row.names),
        organizations=tuple(row.organizations),
        identifiers=tuple(row.identifiers),
        yearly_quota=row.yearly_quota,
        rate_per_minute=row.rate_per_minute,
        disabled=row.disabled,
        spki_sha256=row.spki_sha256,
        issued=row.issued,
        live_certificates=row.live,
    )


def _unknown(name: str) -> NotFound:
    return NotFound(f"there is no client {name[:80]!r}", field="NAME", remedy="see: certmill client list")


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
