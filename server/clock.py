"""Time as a parameter."""

import datetime as dt
from collections.abc import Callable

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
