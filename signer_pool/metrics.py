"""The signer pool's Prometheus metrics. Children are bound once: looking up labels costs more than counting."""

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_WAIT_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
_SERVICE_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
_SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class PoolMetrics:
    """All metrics of one pool in one registry."""

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        priorities: Iterable[str],
        states: Iterable[str],
        queue_depth: Callable[[], float],
    ) -> None:
        lanes = Gauge("certmill_signer_lanes", "Lanes by state", ["state"], registry=registry)
        self.lanes = {state: lanes.labels(state) for state in states}
        depth = Gauge("certmill_signer_queue_depth", "Items waiting for a lane", registry=registry)
        depth.set_function(queue_depth)
        self.batch_size = Histogram(
            "certmill_signer_batch_size", "Items in one batch", buckets=_SIZE_BUCKETS, registry=registry
        )
        wait = Histogram(
            "certmill_signer_wait_seconds",
            "From the call until a lane has the item",
            ["priority"],
            buckets=_WAIT_BUCKETS_S,
            registry=registry,
        )
        self.wait_s = {name: wait.labels(name) for name in priorities}
        self.service_s = Histogram(
            "certmill_signer_service_seconds",
            "Time a batch spends in the token",
            buckets=_SERVICE_BUCKETS_S,
            registry=registry,
        )
        self._signatures = Counter(
            "certmill_signer_signatures", "Signatures by key and result", ["key", "result"], registry=registry
        )
        self._restarts = Counter(
            "certmill_signer_lane_restarts", "Lanes lost, by reason", ["reason"], registry=registry
        )
        self.rejected = Counter(
            "certmill_signer_verifications_rejected", "Signatures that did not verify", registry=registry
        )
        self._good: dict[str, Counter] = {}

    def signed(self, key: str, count: int) -> None:
        """Count signatures that verified."""
        child = self._good.get(key)
        if child is None:
            child = self._good[key] = self._signatures.labels(key, "ok")
        child.inc(count)

    def failed(self, key: str, result: str) -> None:
        """Count a signature that the token refused (`refused`) or gave wrong (`wrong`)."""
        self._signatures.labels(key, result).inc()

    def restarted(self, reason: str) -> None:
        """Count a lane that was lost."""
        self._restarts.labels(reason).inc()
