"""PostgreSQL, which several authorities may share.

Writers run beside each other under READ COMMITTED: what a transaction reads in order to decide is decided by a
constraint, or read `with_for_update()`. Readers see one snapshot (REPEATABLE READ, read only).
A connection whose server would not wait for the disk at COMMIT is refused.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from server.errors import NotDurable
from server.storage.place import PostgresPlace
from server.storage.postgres_locks import ALONE, try_lock

STATEMENT_S = 30.0
CONNECT_S = 10.0
_POLL_S = 0.05
_SESSION = {
    "application_name": "certmill",
    "timezone": "UTC",
    # The server lets go of the locks of a host that is gone, after half a minute instead of hours.
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "30000",
}

FAULTS: tuple[type[Exception], ...] = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError)  # SSLError is one


class PostgresEngine:
    """The `Engine` over a PostgreSQL. What breaks a connection raises; the next transaction gets a new one."""

    shared = True
    faults = FAULTS

    def __init__(self, place: PostgresPlace) -> None:
        self._place = place
        size = {"pool_size": place.connections, "max_overflow": 0, "pool_timeout": STATEMENT_S}
        self._writer = _engine(place, **size)
        self._readers = _engine(place, isolation_level="REPEATABLE READ", **size)
        self._sessions = _engine(place, isolation_level="AUTOCOMMIT", poolclass=NullPool)

    async def open(self) -> None:
        """See that the database is there, and that what it commits is durable; raises `StorageError`."""
        async with self._writer.begin() as connection:
            await connection.execute(text("select 1"))

    async def close(self) -> None:
        """Close every connection."""
        for engine in (self._writer, self._readers, self._sessions):
            await engine.dispose()

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """Open a write transaction."""
        async with self._writer.begin() as connection:
            yield connection

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """Open a read transaction: a snapshot."""
        async with self._readers.connect() as connection:
            await connection.execution_options(postgresql_readonly=True)
            async with connection.begin():
                yield connection

    @asynccontextmanager
    async def session(self) -> AsyncIterator[AsyncConnection]:
        """Open a connection of its own, without transactions: what it locks stays locked until it ends."""
        async with self._sessions.connect() as connection:
            yield connection

    @asynccontextmanager
    async def alone(self, name: str, patience_s: float) -> AsyncIterator[None]:
        """Hold an advisory lock; whoever dies loses it with the connection."""
        async with self.session() as connection:
            async with asyncio.timeout(patience_s):
                while not await try_lock(connection, ALONE, name):  # noqa: ASYNC110 - others wait elsewhere
                    await asyncio.sleep(_POLL_S)
            yield


async def connect(place: PostgresPlace, *, statement_s: float | None = STATEMENT_S) -> Any:  # noqa: ANN401 - asyncpg.Connection, without stubs
    """Connect as the URL says (libpq's parameters); raises `StorageError` unless commits are durable."""
    connection = await asyncpg.connect(
        place.url,
        password=place.password or "",  # not from ~/.pgpass
        timeout=CONNECT_S,
        command_timeout=statement_s,
        server_settings=_SESSION,
    )
    try:
        await _require_durable(connection, place)
    except BaseException:
        connection.terminate()
        raise
    return connection


async def _require_durable(connection: Any, place: PostgresPlace) -> None:  # noqa: ANN401
    for setting in ("synchronous_commit", "fsync", "full_page_writes"):
        if await connection.fetchval("select current_setting($1)", setting) == "off":
            raise NotDurable(
                f"{place}: the server has {setting} = off: it confirms what a crash can lose, and certmill does "
                f"not work on it; set {setting} = on in postgresql.conf (or for this role or database)"
            )


def _engine(place: PostgresPlace, **options: Any) -> AsyncEngine:  # noqa: ANN401
    async def creator() -> Any:  # noqa: ANN401
        return await connect(place)

    return create_async_engine("postgresql+asyncpg://", async_creator=creator, **options)
