"""One way in: `write()` and `read()` transactions on the embedded SQLite database.

Durability: WAL with synchronous=FULL, so a committed transaction survives power loss. SQLite has one writer;
a lock hands the turn on inside this process instead of letting connections collide on SQLite's own.
The seam for PostgreSQL is this class: callers see only `AsyncConnection`.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlalchemy import Row, event
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from server.errors import StorageError

AnyRow = Row[*tuple[Any, ...]]
"""A row of any query; its columns are read by name."""

_BUSY_TIMEOUT_MS = 5000


class Database:
    """Async access to the database file, as a context manager.

    `write()` and `read()` raise `StorageError` for every driver error, constraint violations included: a row
    that the database refuses is not stored, whatever the reason.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer = _engine(path, begin="BEGIN IMMEDIATE", connections=1)
        self._readers = _engine(path, begin="BEGIN", connections=4)
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._writer.dispose()
        await self._readers.dispose()

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """Open the one write transaction; commits durably at the end of the block, else rolls back."""
        async with self._turn, self._translated(self._writer) as connection:
            yield connection

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """Open a read transaction on a consistent snapshot."""
        async with self._translated(self._readers) as connection:
            yield connection

    @asynccontextmanager
    async def _translated(self, engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
        try:
            async with engine.begin() as connection:
                yield connection
        except (DBAPIError, PoolTimeoutError, sqlite3.Error, OSError) as error:
            raise StorageError(f"database {self._path}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """Return the driver's words without statement or parameters, which may hold what logs must not."""
    if isinstance(error, SQLAlchemyError):
        return str(getattr(error, "orig", type(error).__name__))
    return str(error)


def _engine(path: Path, *, begin: str, connections: int) -> AsyncEngine:
    engine = create_async_engine(
        f"sqlite+aiosqlite:///{path}", pool_size=connections, max_overflow=0, pool_timeout=30
    )

    @event.listens_for(engine.sync_engine, "connect")
    def configure(connection: Any, _record: object) -> None:  # noqa: ANN401 - the driver's own type
        # The driver must not open transactions by itself: `begin` below says when and how.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            f"busy_timeout={_BUSY_TIMEOUT_MS}",
            "foreign_keys=ON",
            "temp_store=MEMORY",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def start(connection: Any) -> None:  # noqa: ANN401
        connection.exec_driver_sql(begin)

    return engine
