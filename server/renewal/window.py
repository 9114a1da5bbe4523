"""When a certificate should be renewed (RFC 9773 §4.2). Pure.

All that one bulk day issued would come back on one day, for ever. So the window's place is drawn from the serial
number: between 60 and 85 % of the life, evenly. A bulk day of one-year certificates is renewed over three months;
who looks at the window first after its end still has a seventh of the life left.
"""

import datetime as dt
import hashlib
from dataclasses import dataclass

EARLIEST, LATEST = 0.60, 0.85  # of the life: where windows start
WIDTH = 0.01  # of the life
MEAN = (EARLIEST + LATEST + WIDTH) / 2
LOOK_AGAIN = dt.timedelta(hours=6)  # RFC 9773 §4.3.2
_SOONEST = dt.timedelta(minutes=1)
_DRAWS = 2**64


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewalWindow:
    """The time in which to renew, at a moment of it that the client draws, and when to look again."""

    start: dt.datetime
    end: dt.datetime
    retry_after: dt.timedelta


def renewal_window(
    serial: str, not_before: dt.datetime, not_after: dt.datetime, *, revoked_at: dt.datetime | None = None
) -> RenewalWindow:
    """Return the window of a certificate, always the same; it ends with a revocation, which calls for a new one.

    `serial`: lower-case hex. Whole seconds.
    """
    life = not_after - not_before
    width = life * WIDTH
    draw = int.from_bytes(hashlib.sha256(serial.encode()).digest()[:8]) / _DRAWS
    start = not_before + life * (EARLIEST + (LATEST - EARLIEST) * draw)
    if revoked_at is not None:
        start = min(start, revoked_at - width)
    return RenewalWindow(
        start=start.replace(microsecond=0),
        end=(start + width).replace(microsecond=0),
        retry_after=max(min(LOOK_AGAIN, width / 2), _SOONEST),
    )
