"""When certificates are to be renewed, and what a client will need: pure functions of dates."""

import datetime as dt
import secrets
from collections import Counter

import pytest

from server.renewal.window import EARLIEST, LATEST, WIDTH, renewal_window
from server.usage.forecast import Due, Forecast, forecast

DAY = dt.timedelta(days=1)
START = dt.datetime(2027, 1, 4, 9, 0, tzinfo=dt.UTC)


def bulk_day(days: int, *, count: int = 2500, seed: int = 1) -> Counter[dt.date]:
    """Renew what one bulk day issued, each at the middle of its window: certificates by day."""
    by_day: Counter[dt.date] = Counter()
    for number in range(count):
        window = renewal_window(f"{seed:032x}{number:08x}", START, START + days * DAY)
        by_day[(window.start + (window.end - window.start) / 2).date()] += 1
    return by_day


@pytest.mark.parametrize(("days", "peak", "spread"), [(365, 48, 90), (200, 82, 49), (47, 260, 11)])
def test_bulk_day_is_renewed_over_a_quarter_of_the_life(days: int, peak: int, spread: int) -> None:
    by_day = bulk_day(days)
    assert by_day.total() == 2500
    assert max(by_day.values()) <= peak  # an even spread has 2500 / (25 % of the days)
    assert len(by_day) >= spread


def test_window_is_always_the_same_and_leaves_time_to_be_late() -> None:
    end = START + 200 * DAY
    for _ in range(200):
        serial = secrets.token_hex(16)
        window = renewal_window(serial, START, end)
        assert window == renewal_window(serial, START, end)
        life = end - START
        assert EARLIEST * life - DAY <= window.start - START
        assert window.end - START <= (LATEST + WIDTH) * life
        assert window.retry_after == dt.timedelta(hours=6)
    assert renewal_window("00", START, START + dt.timedelta(hours=1)).retry_after == dt.timedelta(minutes=1)


def test_revoked_certificate_is_renewed_at_once() -> None:
    revoked_at = START + 3 * DAY
    window = renewal_window("5f1c", START, START + 200 * DAY, revoked_at=revoked_at)
    assert window.start < window.end <= revoked_at


def test_forecast_adds_renewals_pace_and_finds_the_day_of_the_quota() -> None:
    today = dt.date(2027, 12, 22)  # ten days are left
    renewed_soon = Due(ends=today + 10 * DAY, life_days=30, count=5)  # due after 21 days of its life: in one day
    renewed_next_year = Due(ends=today + 300 * DAY, life_days=365, count=7)
    told = forecast(today=today, used=80, quota=100, due=[renewed_soon, renewed_next_year], new_per_day=2.0)
    assert told == Forecast(
        year_end=80 + 5 + 20, scheduled_renewals=5, new_per_day=2.0, quota_exhausted_on=dt.date(2027, 12, 29)
    )
    assert forecast(today=today, used=100, quota=100, due=[], new_per_day=0.0).quota_exhausted_on == today
    assert forecast(today=today, used=9, quota=None, due=[], new_per_day=1.0).quota_exhausted_on is None
    assert forecast(today=today, used=9, quota=20, due=[], new_per_day=1.0).quota_exhausted_on is None


def test_short_lived_certificates_are_renewed_again_and_again() -> None:
    today = dt.date(2027, 1, 1)
    overdue = Due(ends=today + DAY, life_days=10, count=1)  # every 7 days from today on
    assert forecast(today=today, used=0, quota=None, due=[overdue], new_per_day=0).scheduled_renewals == 53
    assert (
        forecast(
            today=today, used=0, quota=None, due=[Due(ends=today, life_days=0, count=1)], new_per_day=0
        ).scheduled_renewals
        == 365
    )
