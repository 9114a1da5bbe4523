"""How a batch arrives: read in pieces, written in chunks, never held as a whole.

The job is RECEIVING until its last row is durable; only then does it exist for its client and the runner. What
breaks on the way is removed; what a crash leaves of it is removed at the next start.
"""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from server.batches.csv_reader import CsvReader
from server.batches.job import Job, new_job_id
from server.batches.json_readers import ArrayReader, NdjsonReader
from server.batches.records import JobRecords, new_row
from server.batches.rows import RowChecker, StoredRow
from server.clock import epoch
from server.errors import (
    BatchTooLarge,
    BrokenBatch,
    Conflict,
    IdempotencyConflict,
    ServerError,
    TooManyBatches,
)
from server.ground import Ground
from server.issuance.profiles import ProfileRegistry
from server.milestones import Step
from server.settings.batches import BatchesSection
from server.storage.schema import JobState

CHUNK = 500
LOST_AFTER_S = 600
"""Beyond the deadline of its body: other clocks differ, and so may other settings."""
_ROWS_AT_A_TIME = 50
"""Rows that are checked before others have their turn on the event loop: some 2 ms."""

_ARRIVED = [state for state in JobState if state is not JobState.RECEIVING]

Read = Callable[[], Awaitable[bytes]]
"""Returns the next piece of the body, empty at its end."""


class RowReader(Protocol):
    """Bytes in, in pieces of any size; rows out."""

    rows: int

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        """Yield the rows that have become whole; raises `BrokenBatch`."""

    def close(self) -> Iterator[dict[str, Any]]:
        """Yield what is left; raises `BrokenBatch`."""


READERS: dict[str, Callable[[], RowReader]] = {
    "application/x-ndjson": NdjsonReader,
    "application/json": ArrayReader,
    "text/csv": CsvReader,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a call says beside its body; `profile` by name."""

    client: str
    profile: str
    media_type: str
    request_id: str
    dry_run: bool = False
    validity_days: int | None = None
    idempotency_key: str | None = None

    @property
    def head(self) -> bytes:
        """What belongs to the identity of a request beside its body."""
        said = [self.profile, self.media_type, self.dry_run, self.validity_days]
        return json.dumps(said).encode() + b"\x00"


class Intake:
    """Takes batches in."""

    def __init__(
        self,
        *,
        records: JobRecords,
        profiles: ProfileRegistry,
        settings: BatchesSection,
        authority: str,
        ground: Ground,
    ) -> None:
        self._records = records
        self._profiles = profiles
        self._settings = settings
        self._authority = authority
        self._clock = ground.clock
        self._logger = ground.logger
        self._reached = ground.reached
        self._receiving: set[str] = set()

    async def receive(self, asked: Asked, read: Read) -> tuple[Job, bool]:
        """Read a batch to its end; returns its job, and whether it had been received before with this key.

        Raises `BrokenBatch`, `BatchTooLarge`, `TooManyBatches`, `InvalidRequest`, `IdempotencyConflict`,
        `Conflict`, `StorageError`, and what `read` raises; nothing of the batch is kept then.
        """
        profile = self._profiles.named(asked.profile)
        job_id = new_job_id()
        values = new_row(
            id=job_id,
            client=asked.client,
            profile=profile.identity,
            dry_run=asked.dry_run,
            idempotency_key=asked.idempotency_key,
            request_id=asked.request_id,
            created_at=epoch(self._clock()),
            authority=self._authority,
        )
        if asked.idempotency_key is None:
            await self._require_room(asked.client)
        self._receiving.add(job_id)
        try:
            before = await self._records.open(values)
            if before is not None:
                return await self._again(asked, before, read), True
            if asked.idempotency_key is not None:  # a repeated call is no further batch
                await self._require_room(asked.client, but=1)
            return await self._receive(asked, job_id, read), False
        except Exception:  # a cancelled call's is removed by `remove_left_overs`
            await self._forget(job_id)
            raise
        finally:
            self._receiving.discard(job_id)

    async def remove_left_overs(self) -> int:
        """Remove what was never received whole, and is not being received now; returns how many jobs.

        Of another authority that is what has no time left to arrive: it may be gone for good.
        """
        before = epoch(self._clock()) - int(self._settings.body_deadline_s) - LOST_AFTER_S
        found = await self._records.half_received(self._authority, before=before)
        left = [job_id for job_id in found if job_id not in self._receiving]
        for job_id in left:
            await self._records.remove(job_id, but_for=_ARRIVED)
        return len(left)

    async def _receive(self, asked: Asked, job_id: str, read: Read) -> Job:
        reader = READERS[asked.media_type]()
        checker = RowChecker(
            named=self._profiles.named,
            request_id=asked.request_id,
            validity_days=asked.validity_days,
            text=asked.media_type == "text/csv",
        )
        digest = hashlib.sha256(asked.head)
        failed = 0
        chunk: list[StoredRow] = []
        async for number, row in self._rows(reader, read, digest.update):
            chunk.append(checker.check(number, row))
            failed += chunk[-1].problem is not None
            if len(chunk) == CHUNK:
                await self._records.add_rows(job_id, chunk)
                chunk = []
        if chunk:
            await self._records.add_rows(job_id, chunk)
        self._reached(Step.BATCH_ROWS_DURABLE)
        if not reader.rows:
            raise BrokenBatch("the batch has no row", field="body", remedy="send at least one row")
        job = await self._records.received(
            job_id, epoch(self._clock()), rows=reader.rows, failed=failed, sha256=digest.digest()
        )
        self._reached(Step.BATCH_RECEIVED)
        return job

    async def _rows(
        self, reader: RowReader, read: Read, seen: Callable[[bytes], None]
    ) -> AsyncIterator[tuple[int, dict[str, Any]]]:
        size = 0
        ended = False
        while not ended:
            data = await read()
            ended = not data
            seen(data)
            size += len(data)
            if size > self._settings.max_body_bytes:
                raise BatchTooLarge(
                    f"the batch has more than {self._settings.max_body_bytes} bytes",
                    field="body",
                    remedy="split it into several batches",
                )
            for row in reader.close() if ended else reader.feed(data):
                if reader.rows > self._settings.max_rows:
                    raise BatchTooLarge(
                        f"the batch has more than {self._settings.max_rows} rows",
                        field="body",
                        remedy="split it into several batches",
                    )
                yield reader.rows, row
                if reader.rows % _ROWS_AT_A_TIME == 0:
                    await asyncio.sleep(0)

    async def _again(self, asked: Asked, job: Job, read: Read) -> Job:
        """Return the job of a repeated call whose body is the same."""
        if job.state is JobState.RECEIVING:
            raise Conflict(
                "a batch with this idempotency key is being received",
                field="Idempotency-Key",
                remedy="wait for the other call to end, then repeat this one",
            )
        digest = hashlib.sha256(asked.head)
        size = 0
        while data := await read():
            size += len(data)
            if size > self._settings.max_body_bytes:
                break
            digest.update(data)
        if digest.digest() != job.request_sha256:
            raise IdempotencyConflict(
                "this idempotency key was used before with another batch",
                field="Idempotency-Key",
                remedy="use a new key for a new batch; repeat a batch with its key unchanged",
            )
        return job

    async def _require_room(self, client: str, *, but: int = 0) -> None:
        jobs, rows = await self._records.waiting(client)
        if jobs - but >= self._settings.max_open:
            raise TooManyBatches(
                f"{jobs - but} batches of yours have not ended, and {self._settings.max_open} are the limit",
                remedy="wait until one has ended (GET /v1/batches), or cancel one",
            )
        if rows >= self._settings.max_rows_waiting:
            raise TooManyBatches(
                f"{rows} rows of your batches wait, and {self._settings.max_rows_waiting} are the limit",
                remedy="wait until some are done (GET /v1/batches), or cancel a batch",
            )

    async def _forget(self, job_id: str) -> None:
        """Remove what has arrived; if that fails now, the next round of `remove_left_overs` does it."""
        try:
            await self._records.remove(job_id, but_for=_ARRIVED)
        except ServerError as error:
            self._logger.warning("a broken batch is removed later", job=job_id, error=str(error))
