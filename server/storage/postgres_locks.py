"""PostgreSQL's advisory locks: numbers that connections hold until they end, whatever ends them."""

import hashlib

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

ALONE, PRESENT = 0x636D6101, 0x636D6102
"""Classes of locks: of `Database.alone`, and of the authorities that run and their leader."""


async def try_lock(connection: AsyncConnection, kind: int, name: str) -> bool:
    """Take the lock for as long as the connection lives, unless another connection has it."""
    query = text("select pg_try_advisory_lock(:kind, :name)")
    return bool((await connection.execute(query, {"kind": kind, "name": _number(name)})).scalar_one())


async def is_locked(connection: AsyncConnection, kind: int, name: str) -> bool:
    """Say whether any connection holds the lock."""
    return _number(name) in await _held(connection, kind)


async def present(connection: AsyncConnection) -> int:
    """Return how many locks authorities hold: 0 if none runs on the database."""
    return len(await _held(connection, PRESENT))


async def _held(connection: AsyncConnection, kind: int) -> set[int]:
    query = text(
        "select objid from pg_locks where locktype = 'advisory' and classid = :kind and objsubid = 2 "
        "and database = (select oid from pg_database where datname = current_database())"
    )
    held = {int(number) for number in (await connection.execute(query, {"kind": kind})).scalars()}
    return {number - (1 << 32) if number >= 1 << 31 else number for number in held}


def _number(name: str) -> int:
    """Return the second half of a lock's key, an int4."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big", signed=True)
