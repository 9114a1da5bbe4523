"""The authorities on one database: who is there, and which one does the work that one does for all.

On PostgreSQL each holds an advisory lock by its id for as long as its connection lives, and one of them the lock
of the leader. Leadership saves doubled work (refreshing, scheduled CRLs, comparisons); nothing breaks if two
believe to lead for a moment: stores merge monotonically, and CRL numbers are the database's.
"""

import asyncio
import contextlib
import uuid
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncConnection
from structlog.typing import FilteringBoundLogger

from server.clock import APART_S, Clock, epoch
from server.errors import AlreadyRunning, ConfigError, ServerError, StorageError
from server.home import Home, write_file
from server.storage.claims import database_time
from server.storage.database import Database
from server.storage.postgres_locks import PRESENT, is_locked, try_lock
from server.storage.schema import authorities
from server.storage.upserts import insert_for

LOOK_S = 2.0
HEARTBEAT_S = 20.0
PATIENCE_S = 40.0
_POLL_S = 0.1
_LEADER = "leader"


class Leadership(Protocol):
    """Whether the work that one authority does for all is ours now."""

    @property
    def leads(self) -> bool:
        """Say so."""


@dataclass(frozen=True, slots=True)
class _Alone:
    leads: bool = True


ALONE: Leadership = _Alone()
"""For a database that is nobody else's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """An authority as others see it: the id of its home, its host, its response store."""

    id: str
    host: str
    store: str


def authority_id(home: Home) -> str:
    """Return the id of a home; drawn once, kept in a file. Blocking; raises `StorageError`."""
    try:
        if not home.authority_id.exists():
            write_file(home.authority_id, f"{uuid.uuid4()}\n".encode(), mode=0o600)
        return str(uuid.UUID(home.authority_id.read_text("ascii").strip()))
    except OSError as error:
        raise StorageError(f"{home.authority_id} cannot be read or made: {error.strerror}") from None
    except ValueError:
        raise ConfigError(
            f"{home.authority_id} holds no UUID; restore it, or remove it while certmill is stopped"
        ) from None


class Presence:
    """Makes this authority known on the database for as long as the context lives. Raises what `_enter` raises."""

    def __init__(
        self,
        database: Database,
        me: Identity,
        *,
        clock: Clock,
        logger: FilteringBoundLogger,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._database = database
        self._me = me
        self._clock = clock
        self._logger = logger
        self._patience_s = patience_s
        self._leads = not database.shared
        self._stack = AsyncExitStack()
        self._connection: AsyncConnection | None = None
        self._seen = 0.0

    @property
    def leads(self) -> bool:
        """Whether the work that one authority does for all is ours now."""
        return self._leads

    async def __aenter__(self) -> Self:
        if self._database.shared:
            await self._enter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connection is not None:
            with contextlib.suppress(ServerError), self._database.faults():
                await self._connection.execute(delete(authorities).where(authorities.c.id == self._me.id))
        await self._leave()

    async def run(self) -> None:
        """Keep the locks, or get them again after the connection broke, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            if not self._database.shared:
                continue
            try:
                if self._connection is None:
                    await self._enter()
                else:
                    await self._look(self._connection)
            except ServerError as error:
                self._logger.error("the other authorities are out of sight, will try again", error=str(error))
                await self._leave()

    async def _enter(self) -> None:
        """Take the lock of our id; raises `AlreadyRunning`, `ConfigError` or `StorageError`."""
        try:
            with self._database.faults():
                connection = await self._stack.enter_async_context(self._database.session())
                await self._require_fit(connection)
                self._connection = connection
                await self._look(connection)
        except BaseException:
            await self._leave()
            raise

    async def _leave(self) -> None:
        self._leads = not self._database.shared
        self._connection, self._seen = None, 0.0
        stack, self._stack = self._stack, AsyncExitStack()
        with contextlib.suppress(ServerError), self._database.faults():
            await stack.aclose()

    async def _look(self, connection: AsyncConnection) -> None:
        with self._database.faults():
            leads = await try_lock(connection, PRESENT, _LEADER) if not self._leads else self._leads
            now = asyncio.get_running_loop().time()
            if not self._seen or now - self._seen >= HEARTBEAT_S:
                await self._heartbeat(connection)
                self._seen = now
            else:
                await database_time(connection, 0)  # does it live?
        if leads and not self._leads:
            self._logger.info("this authority leads", authority=self._me.id)
        self._leads = leads

    async def _heartbeat(self, connection: AsyncConnection) -> None:
        seen = {"host": self._me.host, "store": self._me.store, "seen_at": await database_time(connection, 0)}
        statement = insert_for(connection, authorities).values(id=self._me.id, **seen)
        await connection.execute(statement.on_conflict_do_update(index_elements=["id"], set_=seen))

    async def _require_fit(self, connection: AsyncConnection) -> None:
        """See that we are no copy, have the time of the database, and the response store of the others."""
        apart = epoch(self._clock()) - await database_time(connection, 0)
        if abs(apart) > APART_S:
            raise StorageError(
                f"{self._database.place}: the clock of this host and that of the database's differ by {apart} s; "
                "let both follow the same time servers"
            )
        await self._take_id(connection)
        others = (await connection.execute(select(authorities).where(authorities.c.id != self._me.id))).all()
        for other in others:
            if (other.host, other.store) == (self._me.host, self._me.store):
                continue
            if await is_locked(connection, PRESENT, other.id):
                raise ConfigError(
                    f"setting ocsp.store: the authority {other.id} on host {other.host} runs on the same database "
                    f"with the response store {other.store}, this one on {self._me.host} with {self._me.store}; "
                    "each would miss the other's answers: give both the same directory on one host"
                )

    async def _take_id(self, connection: AsyncConnection) -> None:
        """Take the lock of our id. A process of ours that was killed may hold it until the server notices."""
        deadline = asyncio.get_running_loop().time() + self._patience_s
        while not await try_lock(connection, PRESENT, self._me.id):
            if asyncio.get_running_loop().time() >= deadline:
                raise AlreadyRunning(
                    f"another authority on {self._database.place} has the id {self._me.id} of this home; if this "
                    "home is a copy of another one, remove its file authority-id"
                )
            await asyncio.sleep(_POLL_S)


def store_identity(directory: Path) -> str:
    """Name the response store's directory, whatever the way that leads there. Blocking."""
    return str(directory.resolve())
