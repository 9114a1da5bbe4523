"""The token bucket of a client."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from server.auth.clients import Client
from server.auth.rate import RateLimiter
from server.errors import RateExceeded
from server.metrics import AuthorityMetrics

FREE = Client(name="free", profiles=(), names=())


def limited(per_minute: int) -> Client:
    return Client(name="tax", profiles=(), names=(), rate_per_minute=per_minute)


def test_a_minutes_requests_at_once_then_as_they_come_back() -> None:
    now = 0.0
    registry = CollectorRegistry()
    limiter = RateLimiter(lambda: now, AuthorityMetrics(registry))
    client = limited(6)
    left = [limiter.take(client) for _ in range(6)]
    assert left[0] is not None
    assert left[0].headers == {"RateLimit-Policy": '"requests";q=6;w=60', "RateLimit": '"requests";r=5;t=10'}
    with pytest.raises(RateExceeded) as refused:
        limiter.take(client)
    assert refused.value.retry_after_s == 10
    now = 9.9
    with pytest.raises(RateExceeded):
        limiter.take(client)
    now = 10.0
    limiter.take(client)
    assert limiter.take(FREE) is None
    assert registry.get_sample_value("certmill_client_refusals_total", {"client": "tax", "limit": "rate"}) == 2


@given(
    per_minute=st.integers(1, 1000),
    pauses=st.lists(st.floats(0, 30), min_size=1, max_size=80),
)
def test_retry_after_is_never_too_early_and_no_minute_has_more_than_twice_the_rate(
    per_minute: int, pauses: list[float]
) -> None:
    now = 0.0
    limiter = RateLimiter(lambda: now, AuthorityMetrics(CollectorRegistry()))
    client = limited(per_minute)
    taken: list[float] = []
    for pause in pauses:
        now += pause
        try:
            limiter.take(client)
        except RateExceeded as error:
            now += error.retry_after_s
            limiter.take(client)
        taken.append(now)
        assert sum(at > now - 60 for at in taken) <= 2 * per_minute
