"""Locks on subject keys, held until the transaction ends: who certifies a key, and who finds it compromised.

On PostgreSQL writers run at the same time; without a lock, a key could be found good in one transaction while
another revokes it as compromised. SQLite has one writer at a time and needs none.
"""

from collections.abc import Iterable

from sqlalchemy import BigInteger, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection

_QUERY = "select {lock}(number) from unnest(:numbers) as number order by number"
_SHARED = text(_QUERY.format(lock="pg_advisory_xact_lock_shared")).bindparams(
    bindparam("numbers", type_=ARRAY(BigInteger))
)
_ALONE = text(_QUERY.format(lock="pg_advisory_xact_lock")).bindparams(
    bindparam("numbers", type_=ARRAY(BigInteger))
)


async def hold_keys(connection: AsyncConnection, spki_sha256: Iterable[bytes], *, alone: bool) -> None:
    """Wait for the keys: `alone` to revoke one, together with others to certify them."""
    if connection.dialect.name != "postgresql":
        return
    numbers = sorted({int.from_bytes(key[:8], "big", signed=True) for key in spki_sha256})
    await connection.execute(_ALONE if alone else _SHARED, {"numbers": numbers})
