"""The section [batches]: how large, how many, how long they are kept."""

from typing import Annotated

from msgspec import Meta

from server.settings.section import Count, Section


class BatchesSection(Section, frozen=True, kw_only=True):
    """Batches (`POST /v1/batches`)."""

    max_rows: Annotated[int, Meta(ge=1, le=1_000_000)] = 100_000
    max_body_bytes: Annotated[int, Meta(ge=4096, le=4 * 2**30)] = 512 * 2**20
    body_deadline_s: Annotated[float, Meta(gt=0, le=24 * 3600)] = 1800.0
    rows_in_flight: Annotated[int, Meta(ge=1, le=4096)] = 512
    max_open: Annotated[int, Meta(ge=1, le=1000)] = 20
    max_rows_waiting: Count = 500_000
    max_listeners: Annotated[int, Meta(ge=1, le=10_000)] = 100
    keep_days: Annotated[int, Meta(ge=1, le=3660)] = 30
