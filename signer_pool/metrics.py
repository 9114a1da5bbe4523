"""The signer pool's Prometheus metrics. Children are bound once: looking up labels costs more than counting."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from signer_pool.ckr import classify

_WAIT_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
_SERVICE_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
_SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class PoolMetrics:
    """All metrics of one pool in one registry."""

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        priorities: Sequence[str],
        queue_depth: Callable[[int], float],
    ) -> None:
        depth = Gauge("certmill_signer_queue_depth", "Items waiting for a lane", ["priority"], registry=registry)
        for number, name in enumerate(priorities):
            depth.labels(name).set_function(partial(queue_depth, number))
        self._lanes = Gauge(
            "certmill_signer_lanes", "Lanes (sessions) by token and state", ["token", "state"], registry=registry
        )
        self._token_down = Gauge(
            "certmill_signer_token_down", "Whether the token is latched down, 1 or 0", ["token"], registry=registry
        )
        self._batch_size = Histogram(
            "certmill_signer_batch_size", "Items in one batch", buckets=_SIZE_BUCKETS, registry=registry
        )
        wait = Histogram(
            "certmill_signer_wait_seconds",
            "From the call until a lane has the item",
            ["priority"],
            buckets=_WAIT_BUCKETS_S,
            registry=registry,
        )
        self._wait_s = [wait.labels(name) for name in priorities]
        service = Histogram(
            "certmill_signer_service_seconds",
            "Time a batch spends in the token",
            ["priority"],
            buckets=_SERVICE_BUCKETS_S,
            registry=registry,
        )
        self._service_s = [service.labels(name) for name in priorities]
        self._signatures = Counter(
            "certmill_signer_signatures",
            "Signatures by key and result: ok, wrong (did not verify), refused (by the token)",
            ["key", "result"],
            registry=registry,
        )
        self._restarts = Counter(
            "certmill_signer_lane_restarts", "Lanes lost, by reason", ["token", "reason"], registry=registry
        )
        self._missing_keys = Gauge(
            "certmill_signer_missing_keys",
            "Keys that another token has and this one lacks",
            ["token"],
            registry=registry,
        )
        self._ckr = Counter(
            "certmill_signer_ckr", "PKCS #11 errors by return value", ["token", "code"], registry=registry
        )
        self._rejected = Counter(
            "certmill_signer_verifications_rejected", "Signatures that did not verify", registry=registry
        )
        self._retries = Counter(
            "certmill_signer_retries", "Items signed again elsewhere, by reason", ["reason"], registry=registry
        )
        self._ok: dict[str, Counter] = {}

    def sent(self, priority: int, waits_s: list[float]) -> None:
        """Observe a batch that leaves."""
        self._batch_size.observe(len(waits_s))
        observe = self._wait_s[priority].observe
        for wait_s in waits_s:
            observe(wait_s)

    def answered(self, token: str, priority: int, service_s: float, healed: Mapping[int, int]) -> None:
        """Observe an answer; `healed` are errors that the lane dealt with, by CKR code."""
        self._service_s[priority].observe(service_s)
        for code, count in healed.items():
            self._ckr.labels(token, classify(code).name).inc(count)

    def delivered(self, key: str, *, verified: int, wrong: int, refused: int) -> None:
        """Count the signatures of one batch."""
        ok = self._ok.get(key)
        if ok is None:
            ok = self._ok[key] = self._signatures.labels(key, "ok")
        ok.inc(verified)
        if wrong:
            self._signatures.labels(key, "wrong").inc(wrong)
            self._rejected.inc(wrong)
        if refused:
            self._signatures.labels(key, "refused").inc(refused)

    def refused(self, token: str, code: int) -> None:
        """Count an error of the token; 0 stands for an error that no CKR tells."""
        if code:
            self._ckr.labels(token, classify(code).name).inc()

    def retried(self, reason: str, count: int) -> None:
        """Count items that are signed again."""
        self._retries.labels(reason).inc(count)

    def restarted(self, token: str, reason: str) -> None:
        """Count a lane that was lost."""
        self._restarts.labels(token, reason).inc()

    def count_lanes(
        self, counts: Mapping[tuple[str, str], int], down: Mapping[str, bool], missing_keys: Mapping[str, int]
    ) -> None:
        """Set the gauges: lanes by (token, state), which tokens are down, how many keys each lacks."""
        for (token, state), count in counts.items():
            self._lanes.labels(token, state).set(count)
        for token, is_down in down.items():
            self._token_down.labels(token).set(is_down)
        for token, count in missing_keys.items():
            self._missing_keys.labels(token).set(count)
