import datetime as dt
from dataclasses import replace

import pytest

from pkix.certificate import ONE_SECOND, choose_validity
from pkix.validity import Maximum, longest_lifetime
from tests.support.ca import make_ca
from tests.support.profiles import BUILT_IN

PUBLIC = BUILT_IN["tls-server-public"]
BEGIN_100, BEGIN_47 = dt.datetime(2027, 3, 15, tzinfo=dt.UTC), dt.datetime(2029, 3, 15, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("at", "days"),
    [
        (BEGIN_100 - dt.timedelta(days=365), 200),
        (BEGIN_100 - ONE_SECOND, 200),
        (BEGIN_100, 100),
        (BEGIN_100 + ONE_SECOND, 100),
        (BEGIN_47 - ONE_SECOND, 100),
        (BEGIN_47, 47),
        (BEGIN_47 + ONE_SECOND, 47),
        (BEGIN_47 + dt.timedelta(days=3650), 47),
    ],
)
def test_public_tls_lives_as_long_as_the_rules_of_the_day_allow(at: dt.datetime, days: int) -> None:
    assert longest_lifetime(Maximum.CABF_TLS, at) == dt.timedelta(days=days)
    assert PUBLIC.longest(at) == min(PUBLIC.validity, dt.timedelta(days=days - 1))
    assert replace(PUBLIC, validity=dt.timedelta(days=7)).longest(at) == dt.timedelta(days=7)
    assert BUILT_IN["tls-client"].longest(at) == dt.timedelta(days=365)


@pytest.mark.parametrize(("after", "days"), [(-1, 199), (0, 99), (60, 99)])
def test_the_day_of_issue_counts_although_not_before_lies_earlier(after: int, days: int) -> None:
    now = BEGIN_100 + dt.timedelta(seconds=after)
    validity = choose_validity(
        now=now,
        backdate=dt.timedelta(minutes=5),
        lifetime=dt.timedelta(days=365),
        issuer=make_ca(now=now).issuer.certificate,
        profile=PUBLIC,
    )
    assert validity.not_before < BEGIN_100
    assert validity.not_after - validity.not_before + ONE_SECOND == dt.timedelta(days=days)
