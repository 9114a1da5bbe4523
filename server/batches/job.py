"""A batch as its client and the runner see it."""

import secrets
import time
from dataclasses import dataclass, fields, replace

from server.storage.database import AnyRow
from server.storage.schema import JobState

OPEN = (JobState.RECEIVING, JobState.QUEUED, JobState.RUNNING, JobState.PAUSED)
ENDED = (JobState.DONE, JobState.CANCELLED, JobState.FAILED)


@dataclass(slots=True, kw_only=True)
class Counts:
    """How many rows have come to which end."""

    issued: int = 0
    failed: int = 0
    checked: int = 0

    @property
    def finished(self) -> int:
        """Rows that are pending no more."""
        return self.issued + self.failed + self.checked

    def as_dict(self) -> dict[str, int]:
        """Return the columns of `jobs` that hold them."""
        return {"issued": self.issued, "failed": self.failed, "checked": self.checked}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A row of `jobs`; `profile` is a version, times are seconds since 1970."""

    id: str
    client: str
    state: JobState
    profile: str
    dry_run: bool
    idempotency_key: str | None
    request_sha256: bytes | None
    request_id: str
    rows: int
    issued: int
    failed: int
    checked: int
    created_at: int
    started_at: int | None
    finished_at: int | None
    detail: str | None
    authority: str | None

    @classmethod
    def of(cls, row: AnyRow) -> "Job":
        """Read a row of the database."""
        values = {field.name: getattr(row, field.name) for field in fields(cls)}
        return cls(**{**values, "state": JobState(row.state)})

    @property
    def ended(self) -> bool:
        """Say whether nothing will change any more."""
        return self.state in ENDED

    def with_counts(self, counts: Counts) -> "Job":
        """Return the job with later counts."""
        return replace(self, issued=counts.issued, failed=counts.failed, checked=counts.checked)

    @property
    def counts(self) -> Counts:
        """How far it was when that was last written down."""
        return Counts(issued=self.issued, failed=self.failed, checked=self.checked)


def new_job_id() -> str:
    """Draw an id: 32 hex digits that sort by time, the last 80 bits random."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"
