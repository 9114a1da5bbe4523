"""Metrics of one OCSP worker. The fast path counts in plain integers; a collector reads them when asked."""

from collections.abc import Iterable
from typing import Protocol

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from ocsp.answers import Answers, Result
from ocsp.forward import Forwarder

_LATENCY = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 2.5, 5)


class ConnectionCounts(Protocol):
    """What the listener counts."""

    handovers: int
    refused_connections: int

    def open_connections(self) -> int:
        """Count the connections that are open now."""


class WorkerMetrics:
    """Registers everything that a worker exports."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self.slow_seconds = Histogram(
            "certmill_ocsp_slow_request_seconds",
            "Time of requests that the fast path did not know",
            buckets=_LATENCY,
            registry=registry,
        )

    def watch(self, *, answers: Answers, connections: ConnectionCounts, forwarder: Forwarder) -> None:
        """Export the plain counters of the running parts."""
        self._registry.register(_WorkerCollector(answers, connections, forwarder))


class _WorkerCollector(Collector):
    def __init__(self, answers: Answers, connections: ConnectionCounts, forwarder: Forwarder) -> None:
        self._answers = answers
        self._connections = connections
        self._forwarder = forwarder

    def collect(self) -> Iterable[Metric]:
        answers, forwarder = self._answers, self._forwarder
        responses = CounterMetricFamily(
            "certmill_ocsp_responses", "OCSP answers by result and path", labels=["result", "path"]
        )
        for result in Result:
            responses.add_metric([result.name.lower(), "fast"], answers.fast[result])
            responses.add_metric([result.name.lower(), "slow"], answers.slow[result])
        yield responses
        forwards = CounterMetricFamily(
            "certmill_ocsp_forwards", "Answers asked of the authority, by result", labels=["result"]
        )
        forwards.add_metric(["succeeded"], forwarder.succeeded)
        forwards.add_metric(["failed"], forwarder.failed)
        yield forwards
        for name, text, value in (
            ("handovers", "Connections handed over to the slow path", self._connections.handovers),
            ("refused_connections", "Connections refused at the limit", self._connections.refused_connections),
            ("stale_refused", "Stored answers not served: stale or revocation pending", answers.stale_refused),
            ("unknown_serial", "Questions about certificates never issued here", answers.unknown_serials),
            ("unknown_issuer", "Questions about other issuers, or named by other hashes", answers.unknown_issuers),
        ):
            yield CounterMetricFamily(f"certmill_ocsp_{name}", text, value=value)
        yield GaugeMetricFamily(
            "certmill_ocsp_connections", "Open connections", value=self._connections.open_connections()
        )
        yield GaugeMetricFamily(
            "certmill_ocsp_generation", "Generation of the response store", value=max(0, answers.generation())
        )
        yield GaugeMetricFamily(
            "certmill_ocsp_store_open", "Whether there is a response store to answer from", value=int(answers.open)
        )
