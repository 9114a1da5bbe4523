"""The yearly quota of a client: how many certificates were recorded for it in a calendar year (UTC).

The count is a row for each client and year, changed only in the transactions that record intents and that
abandon them. So it is what the table of certificates says, without counting it, and no two calls, batches or
authorities get the same last certificate: whoever comes second waits for the row. Renewals count; revoking gives
nothing back.
Cost: one statement for each micro-batch.
"""

import datetime as dt
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from sqlalchemy import Integer, bindparam, literal_column, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from server.clock import from_epoch
from server.errors import QuotaExhausted
from server.issuance.order import PreparedOrder
from server.storage.schema import client_usage

# In words: SQLAlchemy does not correlate a subquery with the table of the INSERT around it.
_QUOTA = literal_column("(SELECT yearly_quota FROM clients WHERE clients.name = client_usage.client)", Integer)


def year_of(moment: int) -> int:
    """Return the calendar year (UTC) of a time in seconds since 1970."""
    return from_epoch(moment).year


def year_begins(year: int) -> dt.datetime:
    """Return the first moment of a calendar year."""
    return dt.datetime(year, 1, 1, tzinfo=dt.UTC)


async def charge(connection: AsyncConnection, batch: Sequence[PreparedOrder], now: int) -> Mapping[int, Exception]:
    """Count the batch, and refuse what exceeds a quota: of each client the last in the batch. The last check."""
    year = year_of(now)
    places: defaultdict[str, list[int]] = defaultdict(list)
    for index, prepared in enumerate(batch):
        places[prepared.order.client.name].append(index)
    # In the order of names: two authorities that charge the same clients never wait for each other in a circle.
    wanted = [{"client": name, "year": year, "issued": len(places[name])} for name in sorted(places)]
    refused: dict[int, Exception] = {}
    back: Counter[tuple[str, int]] = Counter()
    for name, total, limit in await _add(connection, wanted):
        if limit is None or total <= limit:
            continue
        excess = min(total - limit, len(places[name]))
        back[name, year] = excess
        for index in places[name][-excess:]:
            refused[index] = _exhausted(name, year, limit=limit, used=total - excess)
    await _take_back(connection, back)
    return refused


async def refund(connection: AsyncConnection, abandoned: Iterable[tuple[str, int]]) -> None:
    """Take intents that were abandoned from the counts again: the client and the time of each."""
    await _take_back(connection, Counter((client, year_of(created_at)) for client, created_at in abandoned))


async def _add(
    connection: AsyncConnection, wanted: Sequence[Mapping[str, object]]
) -> Sequence[tuple[str, int, int | None]]:
    """Add to the counts; return for each client the new count and its quota as the database has it now."""
    u = client_usage.c
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement = insert(client_usage)
    added = statement.on_conflict_do_update(
        index_elements=["client", "year"], set_={"issued": u.issued + statement.excluded.issued}
    )
    # Rows beside the statement, not in its VALUES, or SQLAlchemy compiles it anew for each batch (3 ms).
    rows = await connection.execute(added.returning(u.client, u.issued, _QUOTA.label("quota")), wanted)
    return [(row.client, row.issued, row.quota) for row in rows]


async def _take_back(connection: AsyncConnection, amounts: Mapping[tuple[str, int], int]) -> None:
    if not amounts:
        return
    u = client_usage.c
    statement = (
        update(client_usage)
        .where(u.client == bindparam("the_client"), u.year == bindparam("the_year"))
        .values(issued=u.issued - bindparam("amount"))
    )
    rows = [
        {"the_client": client, "the_year": year, "amount": amount}
        for (client, year), amount in sorted(amounts.items())
    ]
    await connection.execute(statement, rows)


def _exhausted(name: str, year: int, *, limit: int, used: int) -> QuotaExhausted:
    resets_at = year_begins(year + 1)
    return QuotaExhausted(
        f"client {name} has used {used} of the {limit} certificates that it may get in {year}; "
        f"the next year's begin at {resets_at:%Y-%m-%dT%H:%M:%SZ}",
        remedy="ask the CA's operators for a larger quota; GET /v1/usage shows what was used",
        quota=limit,
        used=used,
        resets_at=resets_at,
    )
