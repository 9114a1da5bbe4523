"""How many certificates a client will have used at the end of the year, and when its quota ends. Pure.

What it has used, and the renewals that its live certificates will need until then, each again after the same part
of its life, and new certificates at the pace of the last weeks. Left out: that new ones may need renewal within
the year. Counted twice, as renewal and as pace: what a client asks anew for instead of renewing.
"""

import datetime as dt
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from server.renewal.window import MEAN

DAY = dt.timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """`count` live certificates without successor that live `life_days` and end on `ends`."""

    ends: dt.date
    life_days: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """`quota_exhausted_on`: the day on which the quota does not suffice any more; None: not this year."""

    year_end: int
    scheduled_renewals: int
    new_per_day: float
    quota_exhausted_on: dt.date | None


def forecast(*, today: dt.date, used: int, quota: int | None, due: Sequence[Due], new_per_day: float) -> Forecast:
    """Forecast to the end of today's year. Cost: a step for each day and for each renewal within the year."""
    next_year = dt.date(today.year + 1, 1, 1)
    renewals: Counter[dt.date] = Counter()
    for one in due:
        life = max(one.life_days, 1)
        period = dt.timedelta(days=max(int(life * MEAN), 1))
        day = max(one.ends - dt.timedelta(days=life) + period, today)
        while day < next_year:
            renewals[day] += one.count
            day += period
    total = float(used)
    exhausted = today if quota is not None and used >= quota else None
    day = today
    while day < next_year:
        total += renewals[day] + new_per_day
        if quota is not None and exhausted is None and total > quota:
            exhausted = day
        day += DAY
    return Forecast(
        year_end=round(total),
        scheduled_renewals=renewals.total(),
        new_per_day=round(new_per_day, 3),
        quota_exhausted_on=exhausted,
    )
