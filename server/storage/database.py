"""One way in: `write()` and `read()` transactions on the database, SQLite or PostgreSQL.

Callers see only `AsyncConnection`, and write SQL that both speak; where they differ there is a function for it in
`server/storage/` (upserts.py, claims.py).
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from sqlalchemy import Row
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection

from server.errors import DiskFailed, NotDurable, StorageError
from server.storage.disk import is_disk_failure
from server.storage.place import Place, PostgresPlace, SqlitePlace
from server.storage.sqlite import SqliteEngine

AnyRow = Row[*tuple[Any, ...]]
"""A row of any query; its columns are read by name."""

PATIENCE_S = 120.0


class Engine(Protocol):
    """What a kind of database must do. `shared`: other authorities may be on it; `faults`: its driver's errors."""

    shared: bool
    faults: tuple[type[Exception], ...]

    async def open(self) -> None:
        """Make sure that it is there and durable."""

    async def close(self) -> None:
        """Close every connection."""

    def writing(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """Open a transaction that commits durably at the end of the block."""

    def reading(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """Open a transaction on one snapshot."""

    def session(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """Open a connection without transactions, of its own."""

    def alone(self, name: str, patience_s: float) -> AbstractAsyncContextManager[None]:
        """Be the only one inside `name`; raises TimeoutError."""


class Database:
    """Async access to the database, as a context manager.

    `write()` and `read()` raise `StorageError` for every driver error: constraint violations, lost connections,
    deadlocks. A row that the database refuses is not stored, whatever the reason. The next call connects anew.

    `trouble` says why it does not work at present; None as soon as a write has succeeded again. `failed` is set by
    an error after which the disk is not believed (see disk.py): from then on every call raises `DiskFailed`, and
    whoever runs this process ends it.
    """

    def __init__(self, place: Place | Path) -> None:
        self.place: Place = SqlitePlace(place) if isinstance(place, Path) else place
        self.trouble: str | None = None
        self.failed = asyncio.Event()
        self._engine: Engine
        if isinstance(self.place, PostgresPlace):
            from server.storage.postgres import PostgresEngine  # noqa: PLC0415 - asyncpg, for those who need it

            self._engine = PostgresEngine(self.place)
        else:
            self._engine = SqliteEngine(self.place)

    @property
    def shared(self) -> bool:
        """Whether other authorities may work on it."""
        return self._engine.shared

    async def __aenter__(self) -> Self:
        try:
            with self.faults():
                await self._engine.open()
        except BaseException:
            await self._engine.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._engine.close()

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """Open a write transaction; commits durably at the end of the block, else rolls back.

        On SQLite it is the only one. On PostgreSQL others run beside it: read `with_for_update()` what you decide
        by, or let a constraint decide.
        """
        with self._minded():
            async with self._engine.writing() as connection:
                yield connection
        self.trouble = None

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """Open a read transaction on a consistent snapshot."""
        with self._minded():
            async with self._engine.reading() as connection:
                yield connection

    @contextlib.contextmanager
    def _minded(self) -> Iterator[None]:
        """Translate what the driver raises, and keep in mind what it means for the next call."""
        if self.failed.is_set():
            raise DiskFailed(f"{self.place}: {self.trouble}")
        try:
            with self.faults():
                yield
        except StorageError as error:
            cause = error.__cause__
            if is_disk_failure(cause):
                self.trouble = str(error)
                self.failed.set()
                raise DiskFailed(str(error)) from cause
            if isinstance(error, NotDurable) or (cause is not None and not isinstance(cause, IntegrityError)):
                self.trouble = str(error)
            raise

    def session(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """Open a connection of its own where each statement commits; use it inside `faults()`. Not for SQLite."""
        return self._engine.session()

    @asynccontextmanager
    async def alone(self, name: str, *, patience_s: float = PATIENCE_S) -> AsyncIterator[None]:
        """Let nobody else, in any authority on this database, be inside `alone(name)` meanwhile.

        Raises `StorageError`, also when another one stays inside for longer than `patience_s`. A connection that
        breaks meanwhile loses the lock: it saves work, and no invariant may rest on it alone.
        """
        lock = AsyncExitStack()
        with self.faults(f"another authority is busy with {name}"):
            await lock.enter_async_context(self._engine.alone(name, patience_s))
        try:
            yield
        finally:
            with contextlib.suppress(StorageError), self.faults():  # a broken connection has let go of it
                await lock.aclose()

    def faults(self, timeout: str = "no answer in time") -> "_Translated":
        """Turn the driver's errors into `StorageError`, in a `with` block."""
        return _Translated(self.place, self._engine.faults, timeout)


class _Translated:
    def __init__(self, place: Place, faults: tuple[type[Exception], ...], timeout: str) -> None:
        self._place = place
        self._faults = (DBAPIError, PoolTimeoutError, *faults)
        self._timeout = timeout

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and isinstance(error, self._faults):
            raise StorageError(f"{self._place}: {self._reason(error)}") from error

    def _reason(self, error: BaseException) -> str:
        """Return the driver's words without statement or parameters, which may hold what logs must not."""
        if isinstance(error, SQLAlchemyError):
            error = getattr(error, "orig", None) or error
            return type(error).__name__ if isinstance(error, SQLAlchemyError) else _first_line(error)
        return _first_line(error) or self._timeout


def _first_line(error: BaseException) -> str:
    """Leave out DETAIL, which quotes values of rows."""
    return str(error).partition("\n")[0]
