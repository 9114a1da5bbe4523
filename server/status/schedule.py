"""When each published response is due again: rows of `ocsp_responses`.

For SQLite's planner: it has no statistics, and takes a condition on the issuer, which nearly all rows meet, for a
narrow one. So a query that names the issuer in WHERE names `refresh_at` too (their index is narrow), and one that
reads all rows anyway names the issuer in FILTER.
"""

import random
from collections.abc import Sequence

from sqlalchemy import BigInteger, delete, func, literal, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ocsp.presigner import SignedResponse
from pkix.names import serial_hex
from server.storage.database import AnyRow
from server.storage.schema import certificates, ocsp_responses
from server.storage.upserts import insert_for

# Refresh at 40 to 50 % of the life: before half (BR 4.9.9), spread so that a burst does not come back as one.
_EARLIEST, _LATEST = 0.40, 0.50


def schedule_row(issuer: str, signed: SignedResponse, not_after: int) -> dict[str, object]:
    """Make the row of a response: due again after 40 to 50 % of its life."""
    this_update, next_update = signed.stored.this_update, signed.stored.next_update
    share = random.uniform(_EARLIEST, _LATEST)  # noqa: S311 - spreads load, decides nothing
    return {
        "issuer": issuer,
        "serial": serial_hex(signed.prepared.status.serial),
        "hash_name": signed.prepared.hash_name,
        "this_update": this_update,
        "next_update": next_update,
        "refresh_at": this_update + int((next_update - this_update) * share),
        "not_after": not_after,
    }


async def record(connection: AsyncConnection, rows: Sequence[dict[str, object]]) -> None:
    """Insert or replace schedule rows."""
    if not rows:
        return
    statement = insert_for(connection, ocsp_responses)
    changed = {
        name: statement.excluded[name] for name in ("this_update", "next_update", "refresh_at", "not_after")
    }
    await connection.execute(
        statement.on_conflict_do_update(index_elements=["issuer", "serial", "hash_name"], set_=changed),
        sorted(rows, key=_key),  # in one order everywhere: two authorities never wait for each other in a circle
    )


def _key(row: dict[str, object]) -> tuple[str, str]:
    return str(row["serial"]), str(row["hash_name"])


async def due(connection: AsyncConnection, issuer: str, now: int, limit: int) -> Sequence[AnyRow]:
    """Return up to `limit` responses that are due, oldest first, with the certificate's status."""
    c, o = certificates.c, ocsp_responses.c
    query = (
        select(o.serial, o.hash_name, o.not_after, c.revoked_at, c.reason)
        .join(certificates, (c.issuer == o.issuer) & (c.serial == o.serial))
        .where(o.issuer == issuer, o.refresh_at <= now, o.not_after >= now, c.state == "issued")
        .order_by(o.refresh_at)
        .limit(limit)
    )
    return (await connection.execute(query)).all()


async def hurry(
    connection: AsyncConnection, issuer: str, serials: Sequence[str], *, if_revoked: bool = False
) -> None:
    """Make everything published for these certificates due now; `if_revoked`: for those that are revoked."""
    if not serials:
        return
    c, o = certificates.c, ocsp_responses.c
    statement = update(ocsp_responses).where(o.issuer == issuer, o.serial.in_(serials)).values(refresh_at=0)
    if if_revoked:
        revoked = select(c.id).where(c.issuer == o.issuer, c.serial == o.serial, c.revoked_at.is_not(None))
        statement = statement.where(revoked.exists())
    await connection.execute(statement)


async def expired(connection: AsyncConnection, issuer: str, now: int, limit: int) -> list[tuple[str, str]]:
    """Return (serial, hash name) of responses for expired certificates that are past nextUpdate."""
    o = ocsp_responses.c
    query = (
        select(o.serial, o.hash_name)
        # What is past nextUpdate has been due for half of its life; that condition is the narrow one.
        .where(o.issuer == issuer, o.refresh_at <= now, o.not_after < now, o.next_update < now)
        .limit(limit)
    )
    return [(row.serial, row.hash_name) for row in await connection.execute(query)]


async def forget(connection: AsyncConnection, issuer: str, gone: Sequence[tuple[str, str]]) -> None:
    """Delete schedule rows."""
    o = ocsp_responses.c
    for serial, hash_name in gone:
        await connection.execute(
            delete(ocsp_responses).where(o.issuer == issuer, o.serial == serial, o.hash_name == hash_name)
        )


async def freshness(connection: AsyncConnection, issuer: str, now: int) -> AnyRow:
    """Return (responses, overdue, oldest thisUpdate, nearest nextUpdate) over live certificates."""
    o = ocsp_responses.c
    live = (o.issuer == issuer) & (o.not_after >= now)
    query = select(
        func.count().filter(live),
        func.count().filter(live & (o.refresh_at <= now)),
        func.coalesce(func.min(o.this_update).filter(live), literal(now, BigInteger)),
        func.coalesce(func.min(o.next_update).filter(live), literal(now, BigInteger)),
    )
    return (await connection.execute(query)).one()
