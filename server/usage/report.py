"""The usage of one client, read in one snapshot: `GET /v1/usage` and `certmill client show`."""

import datetime as dt
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Label, case, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from server.clock import Clock, epoch, from_epoch
from server.issuance.catalogue import has_successor
from server.issuance.quota import year_begins
from server.storage.database import AnyRow, Database
from server.storage.schema import State, certificates, client_usage, clients
from server.usage.forecast import Due, Forecast, forecast

DAY_S = 86400
PACE_DAYS = 90
_SHORTEST_PACE_DAYS = 7  # of a client that has only begun


@dataclass(frozen=True, slots=True, kw_only=True)
class Expiring:
    """Live certificates without successor that end within so many days."""

    days_30: int
    days_60: int
    days_90: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageReport:
    """What a client used. `by_profile` and `by_month` ("2026-11") are of this year, which `used` counts.

    Certificates that are being issued at this moment count; revoked ones too.
    """

    client: str
    at: dt.datetime
    year: int
    used: int
    remaining: int | None
    resets_at: dt.datetime
    by_profile: Mapping[str, int]
    by_month: Mapping[str, int]
    live: int
    expiring: Expiring
    forecast: Forecast


class UsageReports:
    """Reads usage from the database. Cost: every certificate of the client is looked at, some 5 µs each."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def of(self, client: str) -> UsageReport:
        """Return the report; a client that never got anything has one too. Raises `StorageError`."""
        now = self._clock()
        async with self._database.read() as connection:
            used, quota = await _used(connection, client, now.year)
            recorded = await _recorded(connection, client, since=now - dt.timedelta(days=PACE_DAYS), year=now.year)
            live = await _live(connection, client, epoch(now))
            earliest = select(func.min(certificates.c.created_at)).where(certificates.c.client == client)
            first = (await connection.execute(earliest)).scalar_one()
        year = now.year
        of_year = [row for row in recorded if from_epoch(row.day * DAY_S).year == year]
        return UsageReport(
            client=client,
            at=now.replace(microsecond=0),
            year=year,
            used=used,
            remaining=None if quota is None else max(quota - used, 0),
            resets_at=year_begins(year + 1),
            by_profile=_by_profile(of_year),
            by_month=_by_month(of_year, now),
            live=sum(row.live for row in live),
            expiring=Expiring(
                days_30=sum(row.days_30 for row in live),
                days_60=sum(row.days_60 for row in live),
                days_90=sum(row.days_90 for row in live),
            ),
            forecast=forecast(
                today=now.date(), used=used, quota=quota, due=_due(live), new_per_day=_pace(recorded, now, first)
            ),
        )


def _by_profile(of_year: Sequence[AnyRow]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for row in of_year:
        counts[row.profile.partition("@")[0]] += row.number
    return dict(sorted(counts.items()))


def _by_month(of_year: Sequence[AnyRow], now: dt.datetime) -> dict[str, int]:
    counts = Counter({f"{now.year}-{month:02}": 0 for month in range(1, now.month + 1)})
    for row in of_year:
        counts[f"{from_epoch(row.day * DAY_S):%Y-%m}"] += row.number
    return dict(counts)


def _due(live: Sequence[AnyRow]) -> list[Due]:
    return [
        Due(ends=from_epoch(row.ends * DAY_S).date(), life_days=row.life, count=row.alone)
        for row in live
        if row.alone
    ]


async def _used(connection: AsyncConnection, client: str, year: int) -> tuple[int, int | None]:
    u = client_usage.c
    counted = select(u.issued).where(u.client == client, u.year == year)
    limit = select(clients.c.yearly_quota).where(clients.c.name == client)
    used = (await connection.execute(counted)).scalar_one_or_none()
    return used or 0, (await connection.execute(limit)).scalar_one_or_none()


async def _recorded(
    connection: AsyncConnection, client: str, *, since: dt.datetime, year: int
) -> Sequence[AnyRow]:
    """Count what was recorded this year and in the time of the pace: by profile, day, and whether it renews."""
    c = certificates.c
    day, renewal = c.created_at // DAY_S, c.renews.is_not(None)
    query = (
        select(c.profile, day.label("day"), renewal.label("renewal"), func.count().label("number"))
        .where(c.client == client, c.state != State.ABANDONED)
        .where(c.created_at >= min(epoch(since), epoch(year_begins(year))))
        .group_by(c.profile, "day", "renewal")  # by name: PostgreSQL takes two parameters for two expressions
    )
    return (await connection.execute(query)).all()


async def _live(connection: AsyncConnection, client: str, now: int) -> Sequence[AnyRow]:
    """Count the live certificates by day of their end and days of their life; `alone`: without successor."""
    c = certificates.c
    ends, life = c.not_after // DAY_S, (c.not_after - c.not_before) // DAY_S
    rows = (
        select(
            ends.label("ends"), life.label("life"), case((has_successor(), 0), else_=1).label("alone"), c.not_after
        )
        # created_at only leads SQLite to the index of the client: it would take that of all issued certificates.
        .where(c.client == client, c.created_at > 0)
        .where(c.state == State.ISSUED, c.revoked_at.is_(None), c.not_after >= now)
        .subquery()
    )
    r = rows.c

    def within(days: int) -> Label[int]:
        return func.sum(case((r.not_after < now + days * DAY_S, r.alone), else_=0)).label(f"days_{days}")

    query = select(
        r.ends,
        r.life,
        func.count().label("live"),
        func.sum(r.alone).label("alone"),
        within(30),
        within(60),
        within(90),
    ).group_by(r.ends, r.life)
    return (await connection.execute(query)).all()


def _pace(recorded: Sequence[AnyRow], now: dt.datetime, first: int | None) -> float:
    """Return new certificates a day, renewals apart, over 90 days or the time since the client's first."""
    today = epoch(now) // DAY_S
    new = sum(int(row.number) for row in recorded if row.day > today - PACE_DAYS and not row.renewal)
    known = 0 if first is None else today - first // DAY_S + 1
    return new / min(max(known, _SHORTEST_PACE_DAYS), PACE_DAYS)
