"""The database for code that may block: migrations, and what must be known before anything is opened."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from sqlalchemy import Connection, create_engine
from sqlalchemy.exc import SQLAlchemyError

from server.errors import ServerError, StorageError
from server.storage.place import Place, PostgresPlace, SqlitePlace

T = TypeVar("T")


def blocking(place: Place, work: Callable[[Connection], T]) -> T:
    """Run `work` on a connection of its own and return what it returns; raises `StorageError`.

    What it does not commit is rolled back. On PostgreSQL it runs in a loop of its own, in a thread of its own.
    """
    if isinstance(place, SqlitePlace):
        return _sqlite(place, work)
    with ThreadPoolExecutor(1, thread_name_prefix="database") as thread:
        return thread.submit(asyncio.run, _postgres(place, work)).result()


def _sqlite(place: SqlitePlace, work: Callable[[Connection], T]) -> T:
    engine = create_engine(f"sqlite:///{place.path}")
    try:
        with engine.connect() as connection:
            return work(connection)
    except SQLAlchemyError as error:
        raise StorageError(f"{place}: {getattr(error, 'orig', error)}") from error
    finally:
        engine.dispose()


async def _postgres(place: PostgresPlace, work: Callable[[Connection], T]) -> T:
    from sqlalchemy.ext.asyncio import create_async_engine  # noqa: PLC0415
    from sqlalchemy.pool import NullPool  # noqa: PLC0415

    from server.storage.postgres import FAULTS, connect  # noqa: PLC0415 - asyncpg, for those who need it

    faults: tuple[type[Exception], ...] = (SQLAlchemyError, *FAULTS)
    engine = create_async_engine(
        "postgresql+asyncpg://", async_creator=lambda: connect(place, statement_s=None), poolclass=NullPool
    )
    try:
        async with engine.connect() as connection:
            return await connection.run_sync(work)
    except ServerError:
        raise
    except faults as error:
        reason = str(getattr(error, "orig", error)).partition("\n")[0]
        raise StorageError(f"{place}: {reason or 'no answer in time'}") from error
    finally:
        await engine.dispose()
