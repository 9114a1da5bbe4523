"""Metrics of batches."""

from prometheus_client import CollectorRegistry, Counter, Gauge


class BatchMetrics:
    """Rows by their ends, jobs by state, what waits, and whether it goes on."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.rows = Counter(
            "certmill_batch_rows", "Rows of batches that came to an end, by which", ["state"], registry=registry
        )
        self.retries = Counter(
            "certmill_batch_retries", "Rows put off by a passing fault, by its kind", ["reason"], registry=registry
        )
        self.jobs = Gauge("certmill_batch_jobs", "Batches by state", ["state"], registry=registry)
        self.rows_waiting = Gauge(
            "certmill_batch_rows_waiting", "Rows of queued and running batches without an end", registry=registry
        )
        self.rows_in_flight = Gauge(
            "certmill_batch_rows_in_flight", "Rows that are being worked on", registry=registry
        )
        self.oldest_waiting_seconds = Gauge(
            "certmill_batch_oldest_waiting_seconds",
            "Age of the oldest batch that has rows to do",
            registry=registry,
        )
        self.stalled_seconds = Gauge(
            "certmill_batch_stalled_seconds",
            "Longest time that a running batch has finished no row",
            registry=registry,
        )
        self.listeners = Gauge(
            "certmill_batch_listeners", "Connections that follow the progress of batches", registry=registry
        )
