"""One job being worked on: feeds its rows to the issuing engine and writes down what becomes of them.

A row that is issued is finished by the engine, in the transaction that issues its certificate. Every other end is
gathered and written in chunks: a row whose end was lost in a crash is worked on again, with the same end. Rows
are the truth, `counts` only says how far it is.
"""

import asyncio
import datetime as dt
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pkix.profile import Profile
from server.auth.clients import Client, ClientRegistry
from server.batches.backoff import NOTHING_DONE, PASSING, Backoff
from server.batches.job import Counts, Job
from server.batches.rows import as_json, asked_names, csr_bytes, decode_row
from server.batches.work import Outcome, WorkRecords
from server.clock import epoch
from server.errors import InvalidRequest, ServerError
from server.ground import Ground
from server.issuance.order import BatchRow, Order
from server.issuance.profiles import ProfileRegistry
from server.issuance.service import IssuanceService
from server.milestones import Step
from server.storage.database import AnyRow
from server.storage.schema import JobState, RowState
from server.web.problem import INTERNAL, kind_of, problem_of

T = TypeVar("T")

CHUNK = 500
CLIENT_SEEN_S = 1.0
"""So long a look at what the client may do holds, as for its calls."""
_AT_ONCE = 8
"""Rows that begin in one turn of the event loop: some 5 ms, for interactive calls stand behind them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What rows are worked off with."""

    work: WorkRecords
    issuance: IssuanceService
    profiles: ProfileRegistry
    clients: ClientRegistry
    ground: Ground


class JobRun:
    """Works one job off. `share` says how many of its rows may be in flight now."""

    def __init__(self, *, job: Job, counts: Counts, engine: Engine, share: Callable[[], int]) -> None:
        self.job = job
        self.counts = counts
        self.in_flight = 0
        self._engine = engine
        self._share = share
        self._stopping = asyncio.Event()
        self._changed = asyncio.Event()
        self._backoff = Backoff(self._stopping)
        self._seen: tuple[float, Client | None] = (0.0, None)
        self._looking = asyncio.Lock()
        self._outcomes: list[Outcome] = []
        self._verdict: tuple[JobState | None, str | None] = (None, None)
        self._loop = asyncio.get_running_loop()
        self.last_progress = self._loop.time()

    def stop(self) -> None:
        """Begin no further row; `run` returns when those in flight have ended."""
        self._stopping.set()
        self._changed.set()

    async def run(self) -> None:
        """Work until every row has an end, or until stopped; then give the job back. Raises `StorageError`."""
        work = self._engine.work
        while not self._stopping.is_set():
            await self._pass()
            if self._stopping.is_set():
                break
            if await self._patiently(lambda: work.finish(self.job, self._now())):
                self._engine.ground.reached(Step.BATCH_FINISHED)
                return
            if not await self._patiently(lambda: work.still_mine([self.job.id])):
                break
        state, detail = self._verdict
        await work.release(self.job, self._now(), state=state, detail=detail)

    def _now(self) -> int:
        return epoch(self._engine.ground.clock())

    async def _pass(self) -> None:
        """Begin every row that is pending once, in order, and wait for them."""
        after = 0
        async with asyncio.TaskGroup() as rows:
            while not self._stopping.is_set():
                chunk = await self._pending(after)
                client = await self._client() if chunk else None
                if not chunk or client is None:
                    break
                after = chunk[-1].number
                await self._feed(chunk, client, rows)
                await self._flush()
        await self._flush()

    async def _pending(self, after: int) -> Sequence[AnyRow] | None:
        return await self._patiently(lambda: self._engine.work.pending(self.job.id, after=after, limit=CHUNK))

    async def _client(self) -> Client | None:
        """Look the client up anew: what it may do now decides, not what it might do when the batch arrived.

        None if the job stops.
        """
        async with self._looking:  # one row for all that wait
            seen_at, client = self._seen
            if client is not None and self._loop.time() < seen_at + CLIENT_SEEN_S:
                return client
            client = await self._patiently(lambda: self._engine.clients.active(self.job.client))
            self._seen = (self._loop.time(), client)
        if client is None and not self._stopping.is_set():
            self._verdict = (
                JobState.PAUSED,
                f"client {self.job.client} is disabled; resume the batch when it is enabled again",
            )
            self.stop()
        return client

    async def _patiently(self, ask: Callable[[], Awaitable[T]]) -> T | None:
        """Ask the database until it answers; None if the job stops meanwhile."""
        while True:
            try:
                return await ask()
            except ServerError as error:
                if not await self._backoff.wait(error):
                    return None

    async def _feed(self, chunk: Sequence[AnyRow], client: Client, rows: asyncio.TaskGroup) -> None:
        for begun, row in enumerate(chunk, 1):
            while self.in_flight >= self._share() and not self._stopping.is_set():
                self._changed.clear()
                await self._changed.wait()
            if self._stopping.is_set():
                return
            self.in_flight += 1
            rows.create_task(self._row(row, client))
            if begun % _AT_ONCE == 0:
                await asyncio.sleep(0)

    async def _row(self, row: AnyRow, client: Client) -> None:
        try:
            state = await self._work_off(row, client)
        except Exception as error:
            state = self._failed(row.number, error)
        finally:
            self.in_flight -= 1
            self._changed.set()
        if state is None:
            return  # stopped before it had an end
        self.last_progress = self._loop.time()
        self._engine.ground.metrics.batches.rows.labels(state.value).inc()
        if state is RowState.ISSUED:
            self.counts.issued += 1
        elif state is RowState.CHECKED:
            self.counts.checked += 1
        else:
            self.counts.failed += 1

    async def _work_off(self, row: AnyRow, client: Client) -> RowState | None:
        """Return the end of a row, None if the job stops before it has one; raises what is to be told of it."""
        order: Order | None = None
        while True:
            try:
                order = order or await self._order(row, client)
                if self.job.dry_run:
                    await self._engine.issuance.prepare(order)
                    self._outcomes.append(Outcome(number=row.number, state=RowState.CHECKED))
                    return RowState.CHECKED
                await self._engine.issuance.issue(order)
            except PASSING as error:
                settled = await self._after_fault(row.number, error)
                if settled is not RowState.PENDING:
                    return settled
                present = await self._client()  # it may have waited for hours
                if present is None:
                    return None
                if present != client:
                    client, order = present, None
            else:
                self._backoff.succeeded()
                return RowState.ISSUED

    async def _after_fault(self, number: int, error: Exception) -> RowState | None:
        """Wait, then return where the row stands: a fault after the last transaction leaves it issued.

        Then it may have come before OCSP's answer, without which nothing is told to be issued.
        """
        nothing_done = isinstance(error, NOTHING_DONE)
        while True:
            self._engine.ground.metrics.batches.retries.labels(kind_of(error).slug).inc()
            if not await self._backoff.wait(error):
                return None
            if nothing_done:
                return RowState.PENDING
            try:
                state, serial = await self._engine.work.row_state(self.job.id, number)
                if serial is not None:
                    await self._engine.issuance.ensure_answered(serial)
            except PASSING as again:
                error = again
            else:
                return state

    async def _profile(self, identity: str) -> Profile:
        """Return a profile version, also one that another authority has activated since we read them."""
        profiles = self._engine.profiles
        try:
            return profiles.version(identity)
        except InvalidRequest:
            await profiles.refresh()
            return profiles.version(identity)

    async def _order(self, row: AnyRow, client: Client) -> Order:
        request = decode_row(row.request)
        profile = await self._profile(request.profile or self.job.profile)
        client.require_profile(profile.name)
        days = request.validity_days
        return Order(
            client=client,
            profile=profile,
            csr=csr_bytes(request.csr),
            request_id=self.job.request_id,
            lifetime=None if days is None else dt.timedelta(days=days),
            asked=asked_names(request),
            row=BatchRow(job=self.job.id, number=row.number),
        )

    def _failed(self, number: int, error: Exception) -> RowState:
        if kind_of(error) is INTERNAL:
            self._engine.ground.logger.error(
                "a row failed by a defect", job=self.job.id, row=number, exc_info=error
            )
        problem = as_json(problem_of(error, self.job.request_id))
        self._outcomes.append(Outcome(number=number, state=RowState.FAILED, problem=problem))
        return RowState.FAILED

    async def _flush(self) -> None:
        """Write the gathered ends down; when the database does not take them, again and again until stopped."""
        while self._outcomes:
            outcomes, self._outcomes = self._outcomes, []
            try:
                await self._engine.work.finish_rows(self.job.id, outcomes)
                self._engine.ground.reached(Step.BATCH_FAILURES_DURABLE)
            except ServerError as error:
                self._outcomes = outcomes + self._outcomes
                if not await self._backoff.wait(error):
                    return
