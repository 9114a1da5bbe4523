"""What the REST API says of batches: wire types beside those of `messages.py`."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from server.enrol.messages import Time

BatchState = Literal["queued", "running", "paused", "done", "cancelled", "failed"]


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """A batch and how far it is."""

    id: Annotated[str, Meta(pattern="^[0-9a-f]{32}$", description="Sorts by time of arrival")]
    profile: Annotated[str, Meta(description="Profile and version, frozen when the batch arrived")]
    state: Annotated[BatchState, Meta(description="done, cancelled and failed are ends")]
    dry_run: bool
    rows: int
    issued: int
    failed: Annotated[int, Meta(description="Rows that failed, each with its problem in the results")]
    checked: Annotated[int, Meta(description="Rows that would be issued (dry run)")]
    pending: Annotated[int, Meta(description="Rows without an end; in a cancelled batch they stay so")]
    created_at: Time
    started_at: Time | None = None
    finished_at: Time | None = None
    detail: Annotated[str | None, Meta(description="Why it is paused or failed, if certmill did that")] = None


class BatchList(msgspec.Struct, frozen=True, kw_only=True):
    """One page of batches, newest first."""

    batches: list[Batch]
    next_cursor: Annotated[
        str | None, Meta(description="Pass as `cursor` for the next page; null on the last one")
    ] = None
