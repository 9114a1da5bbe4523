"""Batches as one thing: what the API calls, what runs beside it, what a start mends."""

import asyncio
import datetime as dt
from collections.abc import AsyncGenerator

from server.auth.clients import ClientRegistry
from server.batches.intake import Asked, Intake, Read
from server.batches.job import Job
from server.batches.job_run import Engine
from server.batches.records import JobRecords
from server.batches.results import Form, Results
from server.batches.runner import BatchRunner
from server.batches.work import WorkRecords
from server.clock import epoch
from server.errors import Overloaded, ServerError
from server.ground import Ground
from server.issuance.profiles import ProfileRegistry
from server.issuance.service import IssuanceService
from server.settings.batches import BatchesSection
from server.storage.schema import JobState

TIDY_EVERY_S = 600.0
LOOK_EVERY_S = 0.5


class Batches:
    """The batches of one issuer. `authority`: whose work it is, among those that share the database."""

    def __init__(
        self,
        *,
        issuance: IssuanceService,
        profiles: ProfileRegistry,
        clients: ClientRegistry,
        settings: BatchesSection,
        issuer_label: str,
        issuer_pem: str,
        authority: str,
        ground: Ground,
    ) -> None:
        self._settings = settings
        self._ground = ground
        self._records = JobRecords(ground.database, issuer_label)
        self._intake = Intake(
            records=self._records, profiles=profiles, settings=settings, authority=authority, ground=ground
        )
        self._work = WorkRecords(ground.database, authority)
        engine = Engine(
            work=self._work,
            issuance=issuance,
            profiles=profiles,
            clients=clients,
            ground=ground,
        )
        self.runner = BatchRunner(engine, rows_in_flight=settings.rows_in_flight)
        self._results = Results(self._records, issuer_pem=issuer_pem)
        self._listeners = 0
        self._closing = asyncio.Event()

    async def recover(self) -> None:
        """Remove what a crash left of batches that were arriving, and count what was stopped.

        The runner goes on with the others by itself.
        """
        await self._work.recount()
        removed = await self._intake.remove_left_overs()
        if removed:
            self._ground.logger.warning("removed batches that had not arrived whole", batches=removed)

    async def receive(self, asked: Asked, read: Read) -> tuple[Job, bool]:
        """Take a batch in; see `Intake.receive`."""
        job, replayed = await self._intake.receive(asked, read)
        self.runner.wake()
        return self._live(job), replayed

    async def one(self, job_id: str, *, client: str) -> Job:
        """Return a batch of the client, with its latest counts; raises `NotFound`."""
        return self._live(await self._records.one(job_id, client=client))

    async def page(self, *, client: str, before: str | None, limit: int) -> list[Job]:
        """Return batches of the client, newest first."""
        return [self._live(job) for job in await self._records.page(client=client, before=before, limit=limit)]

    async def change(self, job_id: str, to: JobState, *, client: str, request_id: str) -> Job:
        """Pause, resume (`QUEUED`) or cancel; raises `NotFound`, `Conflict`."""
        now = epoch(self._ground.clock())
        job = await self._records.change(job_id, to, now, client=client, request_id=request_id)
        run = self.runner.running(job_id)
        if run is not None and to is not JobState.QUEUED:
            run.stop()
        self.runner.wake()
        return self._live(job)

    async def results(self, job_id: str, form: Form, *, client: str) -> AsyncGenerator[bytes, None]:
        """Return the results so far, in pieces; raises `NotFound`."""
        job = await self._records.one(job_id, client=client)
        return self._results.stream(job_id, form, rows=job.rows)

    async def follow(self, job_id: str, *, client: str) -> AsyncGenerator[Job | None, None]:
        """Yield the batch whenever it has changed, and at its end; None when a while has passed without.

        Ends with the batch, and when we close. Raises `NotFound`, `Overloaded`.
        """
        if self._listeners >= self._settings.max_listeners:
            raise Overloaded(
                "too many connections follow batches: ask for the batch now and then", retry_after_s=5
            )
        self._listeners += 1
        self._ground.metrics.batches.listeners.set(self._listeners)
        try:
            told: Job | None = None
            while not self._closing.is_set():
                settled = self.runner.running(job_id) is None
                job = await self.one(job_id, client=client)
                yield None if job == told else job
                told = job
                if job.ended and settled:
                    return
                await self._pause()
        finally:
            self._listeners -= 1
            self._ground.metrics.batches.listeners.set(self._listeners)

    def close(self) -> None:
        """Let everybody who follows go."""
        self._closing.set()

    async def tidy(self) -> None:
        """Remove what is too old, and what was never received whole, until cancelled."""
        while True:
            try:
                await self._intake.remove_left_overs()
                now = epoch(self._ground.clock())
                keep_s = int(dt.timedelta(days=self._settings.keep_days).total_seconds())
                while old := await self._records.ended_before(now - keep_s):
                    for job in old:
                        await self._records.note_removal(job, now)
                        await self._records.remove(job.id)
            except ServerError as error:
                self._ground.logger.error("old batches are not removed, will try again", error=str(error))
            await asyncio.sleep(TIDY_EVERY_S)

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(LOOK_EVERY_S):
                await self._closing.wait()
        except TimeoutError:
            return

    def _live(self, job: Job) -> Job:
        """Return the job with what the runner, if it works on it here, has not written down yet."""
        run = self.runner.running(job.id)
        return job if run is None else job.with_counts(run.counts)
