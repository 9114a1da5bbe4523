"""SQLite, the embedded default: WAL with synchronous=FULL, so a committed transaction survives power loss.

SQLite has one writer; a lock hands the turn on inside this process instead of letting connections collide on
SQLite's own. Other processes (`certmill client …`) wait for theirs at BEGIN IMMEDIATE.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from server.storage.disk import CHECKPOINT_COMMITS
from server.storage.place import SqlitePlace

_BUSY_TIMEOUT_MS = 5000


class SqliteEngine:
    """The `Engine` over a file of this home, whose lock keeps every other authority out."""

    shared = False
    faults: tuple[type[Exception], ...] = (sqlite3.Error, OSError)

    def __init__(self, place: SqlitePlace) -> None:
        self._writer = _engine(place, begin="BEGIN IMMEDIATE", connections=1)
        self._readers = _engine(place, begin="BEGIN", connections=4)
        self._checkpointer = _engine(place, begin=None, connections=1)
        self._commits = 0
        self._turn = asyncio.Lock()
        self._alone: dict[str, asyncio.Lock] = {}

    async def open(self) -> None:
        """Do nothing: a file is there or is made."""

    async def close(self) -> None:
        """Close every connection."""
        await self._writer.dispose()
        await self._readers.dispose()
        await self._checkpointer.dispose()

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """Open the one write transaction."""
        async with self._turn:
            await self._checkpoint()
            async with self._writer.begin() as connection:
                yield connection

    async def _checkpoint(self) -> None:
        """Move the log into the file now and then. SQLite would do so by itself, and hide an fsync that failed."""
        self._commits += 1
        if self._commits >= CHECKPOINT_COMMITS:
            self._commits = 0
            async with self._checkpointer.connect() as connection:
                await connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)")

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """Open a read transaction: a snapshot."""
        async with self._readers.begin() as connection:
            yield connection

    def session(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """Raise: nobody else is on the database, so there is nothing to hold."""
        raise NotImplementedError

    @asynccontextmanager
    async def alone(self, name: str, patience_s: float) -> AsyncIterator[None]:
        """Be alone among the tasks of this process: there is no other authority."""
        async with asyncio.timeout(patience_s):
            await self._alone.setdefault(name, asyncio.Lock()).acquire()
        try:
            yield
        finally:
            self._alone[name].release()


def _engine(place: SqlitePlace, *, begin: str | None, connections: int) -> AsyncEngine:
    engine = create_async_engine(
        f"sqlite+aiosqlite:///{place.path}", pool_size=connections, max_overflow=0, pool_timeout=30
    )

    @event.listens_for(engine.sync_engine, "connect")
    def configure(connection: Any, _record: object) -> None:  # noqa: ANN401 - the driver's own type
        # The driver must not open transactions by itself: `begin` below says when and how.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "wal_autocheckpoint=0",
            f"busy_timeout={_BUSY_TIMEOUT_MS}",
            "foreign_keys=ON",
            "temp_store=MEMORY",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    if begin is not None:

        @event.listens_for(engine.sync_engine, "begin")
        def start(connection: Any) -> None:  # noqa: ANN401
            connection.exec_driver_sql(begin)

    return engine
