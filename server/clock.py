"""Time as a parameter."""

import datetime as dt
from collections.abc import Callable

APART_S = 60
"""Clocks of authorities on one database may differ by so much. What is further ahead was made by a wrong clock."""

Clock = Callable[[], dt.datetime]
"""Returns now: an aware UTC datetime."""


def utc_now() -> dt.datetime:
    """Return the machine's clock in UTC."""
    return dt.datetime.now(dt.UTC)


def epoch(moment: dt.datetime) -> int:
    """Return whole seconds since 1970-01-01T00:00:00Z."""
    return int(moment.timestamp())


def from_epoch(seconds: int) -> dt.datetime:
    """Return the aware UTC datetime of whole seconds since 1970."""
    return dt.datetime.fromtimestamp(seconds, dt.UTC)
