"""Metrics of the authority. Names follow the Prometheus conventions; each is documented where it is made."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from server.batches.metrics import BatchMetrics

_LATENCY = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class AuthorityMetrics:
    """Every metric that the authority itself counts; the signer pool and the responder have their own."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.batches = BatchMetrics(registry)
        self.http_requests = Counter(
            "certmill_http_requests",
            "API and admin requests by route template, method and status",
            ["listener", "route", "method", "status"],
            registry=registry,
        )
        self.http_request_seconds = Histogram(
            "certmill_http_request_seconds",
            "Time from headers to answer",
            ["listener", "route"],
            buckets=_LATENCY,
            registry=registry,
        )
        self.certificates_issued = Counter(
            "certmill_certificates_issued", "Certificates issued by profile", ["profile"], registry=registry
        )
        self.issuance_refused = Counter(
            "certmill_issuance_refused", "Requests refused, by kind of error", ["reason"], registry=registry
        )
        self.client_refusals = Counter(
            "certmill_client_refusals",
            "Requests for certificates that a limit of the client refused",
            ["client", "limit"],
            registry=registry,
        )
        self.client_quota = Gauge(
            "certmill_client_quota_certificates",
            "Certificates that the client may get this year; absent: no limit",
            ["client"],
            registry=registry,
        )
        self.client_used = Gauge(
            "certmill_client_used_certificates",
            "Certificates that were recorded for the client this year",
            ["client"],
            registry=registry,
        )
        self.issuance_failed = Counter(
            "certmill_issuance_failed",
            "Batches that failed after their intents were durable",
            registry=registry,
        )
        self.intents_abandoned = Counter(
            "certmill_intents_abandoned", "Intents closed without a release", registry=registry
        )
        self.issuance_batch_size = Histogram(
            "certmill_issuance_batch_size", "Certificates in a micro-batch", buckets=_BATCH, registry=registry
        )
        self.issuance_batch_seconds = Histogram(
            "certmill_issuance_batch_seconds",
            "Time of steps 4 to 8 for one micro-batch",
            buckets=_LATENCY,
            registry=registry,
        )
        self.issuance_queue_depth = Gauge(
            "certmill_issuance_queue_depth", "Prepared certificates waiting for a batch", registry=registry
        )
        self.storage_up = Gauge(
            "certmill_storage_up",
            "Whether database and responses can be written; 0: nothing can be issued",
            ["part"],
            registry=registry,
        )
        self.linted = Counter(
            "certmill_lint_certificates",
            "Certificates before signing: passed, refused, unavailable (so not signed), known (by its shape), "
            "unsampled (known, and the sample was due while the linter was not there)",
            ["linter", "result"],
            registry=registry,
        )
        self.lint_seconds = Histogram(
            "certmill_lint_seconds",
            "Time of one certificate in a linter's process",
            ["linter"],
            buckets=_LATENCY,
            registry=registry,
        )
        self.lint_queue_depth = Gauge(
            "certmill_lint_queue_depth", "Certificates waiting to be linted", registry=registry
        )
        self.lint_workers = Gauge("certmill_lint_workers", "Linter processes that are ready", registry=registry)
        self.lint_worker_restarts = Counter(
            "certmill_lint_worker_restarts", "Linter processes lost, by reason", ["reason"], registry=registry
        )
        self.lint_shapes = Gauge(
            "certmill_lint_shapes", "Shapes known to be good (or doubtful)", ["state"], registry=registry
        )
        self.orders_prepared = Counter(
            "certmill_orders_prepared",
            "Bulk orders prepared, by whom: processes of the workshop, or the authority itself",
            ["by"],
            registry=registry,
        )
        self.preparing_queue_depth = Gauge(
            "certmill_preparing_queue_depth", "Frames of orders waiting for the workshop", registry=registry
        )
        self.preparing_workers = Gauge(
            "certmill_preparing_workers", "Processes of the workshop that are ready", registry=registry
        )
        self.preparing_worker_restarts = Counter(
            "certmill_preparing_worker_restarts",
            "Processes of the workshop lost, by reason",
            ["reason"],
            registry=registry,
        )
        self.idempotent_replays = Counter(
            "certmill_idempotent_replays", "Requests answered from their idempotency key", registry=registry
        )
        self.revocations = Counter(
            "certmill_revocations", "Certificates revoked, by reason", ["reason"], registry=registry
        )
        self.revocation_seconds = Histogram(
            "certmill_revocation_seconds",
            "Time from the call to the revoked answer in the store",
            buckets=_LATENCY,
            registry=registry,
        )
        self.crl_number = Gauge("certmill_crl_number", "Number of the latest CRL", ["issuer"], registry=registry)
        self.crl_next_update = Gauge(
            "certmill_crl_next_update_timestamp_seconds",
            "nextUpdate of the latest CRL",
            ["issuer"],
            registry=registry,
        )
        self.crl_entries = Gauge(
            "certmill_crl_entries", "Entries of the latest CRL", ["issuer"], registry=registry
        )
        self.crl_failures = Counter(
            "certmill_crl_publication_failures", "CRL publications that failed", ["issuer"], registry=registry
        )
        self.ocsp_refreshed = Counter(
            "certmill_ocsp_refreshed", "Responses signed by the refresher", registry=registry
        )
        self.ocsp_refresh_failures = Counter(
            "certmill_ocsp_refresh_failures", "Rounds of the refresher that failed", registry=registry
        )
        self.ocsp_repaired = Counter(
            "certmill_ocsp_repaired",
            "Certificates whose published answer was missing or wrong when compared with the database",
            registry=registry,
        )
        self.ocsp_comparison_failures = Counter(
            "certmill_ocsp_comparison_failures",
            "Comparisons of published answers with the database that failed",
            registry=registry,
        )
        self.ocsp_live_responses = Gauge(
            "certmill_ocsp_live_responses", "Responses that are kept fresh", registry=registry
        )
        self.ocsp_overdue_responses = Gauge(
            "certmill_ocsp_overdue_responses",
            "Responses that are due and not yet signed again",
            registry=registry,
        )
        self.ocsp_oldest_this_update = Gauge(
            "certmill_ocsp_oldest_this_update_timestamp_seconds",
            "thisUpdate of the oldest live response",
            registry=registry,
        )
        self.ocsp_nearest_next_update = Gauge(
            "certmill_ocsp_nearest_next_update_timestamp_seconds",
            "The nearest nextUpdate of all live responses",
            registry=registry,
        )
        self.responder_not_after = Gauge(
            "certmill_ocsp_responder_not_after_timestamp_seconds",
            "notAfter of the OCSP responder certificate",
            registry=registry,
        )
