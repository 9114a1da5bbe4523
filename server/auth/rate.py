"""How often a client may ask: a token bucket for each client, in the authority's memory.

A bucket holds a minute's requests and fills evenly, so a client may send them at once or spread. It begins full,
also after a restart; each of several authorities has buckets of its own. What is never exceeded is the quota.
"""

import math
from collections.abc import Callable

from server.auth.clients import Client
from server.errors import WINDOW_S, Allowance, RateExceeded
from server.metrics import AuthorityMetrics

_BUCKETS_MAX = 10_000


class RateLimiter:
    """Counts requests. `clock`: monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float], metrics: AuthorityMetrics) -> None:
        self._clock = clock
        self._metrics = metrics
        self._buckets: dict[str, tuple[float, float]] = {}  # tokens, and when there were so many

    def take(self, client: Client) -> Allowance | None:
        """Count one request; None: the client has no limit. Raises `RateExceeded`. Cost: under 2 µs."""
        per_minute = client.rate_per_minute
        if per_minute is None:
            return None
        now = self._clock()
        tokens, then = self._buckets.get(client.name, (float(per_minute), now))
        tokens = min(tokens + (now - then) * per_minute / WINDOW_S, float(per_minute))
        if tokens < 1:
            wait_s = max(math.ceil((1 - tokens) * WINDOW_S / per_minute), 1)
            self._metrics.client_refusals.labels(client.name, RateExceeded.limit).inc()
            raise RateExceeded(
                f"client {client.name} may ask {per_minute} times a minute, and did",
                remedy=f"send it again in {wait_s} s; POST /v1/batches takes many requests at once",
                retry_after_s=wait_s,
                allowance=Allowance(per_minute, 0, wait_s),
            )
        if len(self._buckets) >= _BUCKETS_MAX:
            self._buckets.clear()
        self._buckets[client.name] = (tokens - 1, now)
        missing = per_minute - (tokens - 1)
        return Allowance(per_minute, int(tokens - 1), math.ceil(missing * WINDOW_S / per_minute))
