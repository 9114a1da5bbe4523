"""Works batches off: one runner for each authority, any number of authorities on one database.

Once a second, or when it is woken, it looks which jobs it may claim, prolongs its leases, and lets go of what a
client has paused or cancelled. All rows in flight share one window: each client that has work gets the same part
of it, each of its jobs the same part of that; behind it, the batcher lets clients take turns.
"""

import asyncio
from collections import Counter
from functools import partial

from server.batches.job import Job
from server.batches.job_run import Engine, JobRun
from server.clock import epoch
from server.errors import ServerError
from server.milestones import Step
from server.storage.schema import JobState

TICK_S = 1.0
JOBS_OF_A_CLIENT = 4
JOBS_AT_ONCE = 64
_MEASURED_EVERY_S = 5.0
_STATES = [state for state in JobState if state is not JobState.RECEIVING]


class BatchRunner:
    """Claims and works jobs off until cancelled; a crash or a stop at any time loses nothing."""

    def __init__(self, engine: Engine, *, rows_in_flight: int) -> None:
        self._engine = engine
        self._window = rows_in_flight
        self._runs: dict[str, JobRun] = {}
        self._woken = asyncio.Event()
        self._measured_at = float("-inf")
        self._metrics = engine.ground.metrics.batches
        self._logger = engine.ground.logger

    def wake(self) -> None:
        """Look at once: a job has arrived, or its client has changed it."""
        self._woken.set()

    def running(self, job_id: str) -> JobRun | None:
        """Return the run of a job, if it is worked on here."""
        return self._runs.get(job_id)

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._woken.clear()
                try:
                    await self._look(tasks)
                except ServerError as error:
                    self._logger.error("batches cannot be looked at, will try again", error=str(error))
                try:
                    async with asyncio.timeout(TICK_S):
                        await self._woken.wait()
                except TimeoutError:
                    continue

    async def _look(self, tasks: asyncio.TaskGroup) -> None:
        engine = self._engine
        now = epoch(engine.ground.clock())
        if self._runs:
            mine = await engine.work.still_mine(list(self._runs))
            for job_id, run in self._runs.items():
                if job_id not in mine:
                    run.stop()
            await engine.work.note({job_id: run.counts for job_id, run in self._runs.items()}, now)
        for job in self._choose(await engine.work.claimable(now)):
            counts = await engine.work.claim(job, now)
            if counts is not None:
                engine.ground.reached(Step.BATCH_CLAIMED)
                run = JobRun(job=job, counts=counts, engine=engine, share=partial(self._share, job.client))
                self._runs[job.id] = run
                tasks.create_task(self._guarded(run))
        await self._measure(now)

    def _choose(self, claimable: list[Job]) -> list[Job]:
        """Return the jobs to begin now: the oldest of each client, as many as there is room for."""
        busy = Counter(run.job.client for run in self._runs.values())
        chosen: list[Job] = []
        for job in claimable:
            if len(self._runs) + len(chosen) >= JOBS_AT_ONCE:
                break
            if job.id not in self._runs and busy[job.client] < JOBS_OF_A_CLIENT:
                busy[job.client] += 1
                chosen.append(job)
        return chosen

    def _share(self, client: str) -> int:
        """Return how many rows in flight each job of the client may have."""
        jobs = Counter(run.job.client for run in self._runs.values())
        return max(1, self._window // max(1, len(jobs)) // max(1, jobs[client]))

    async def _guarded(self, run: JobRun) -> None:
        """Run a job; what goes wrong with it ends neither the others nor the authority."""
        job = run.job
        try:
            await run.run()
        except ServerError as error:  # its lease is ours: it is claimed again at once
            self._logger.error("a batch could not be given back", job=job.id, error=str(error))
        except Exception as error:
            self._logger.error("a batch is stopped by a defect", job=job.id, exc_info=error)
            await self._put_aside(job)
        finally:
            del self._runs[job.id]
            self.wake()

    async def _put_aside(self, job: Job) -> None:
        detail = "a defect in certmill stopped this batch; nothing of it is lost: tell the CA's operators"
        try:
            await self._engine.work.release(
                job, epoch(self._engine.ground.clock()), state=JobState.PAUSED, detail=detail
            )
        except ServerError as error:
            self._logger.error("a batch could not be put aside", job=job.id, error=str(error))

    async def _measure(self, now: int) -> None:
        metrics, loop = self._metrics, asyncio.get_running_loop()
        metrics.rows_in_flight.set(sum(run.in_flight for run in self._runs.values()))
        stalled = max((loop.time() - run.last_progress for run in self._runs.values()), default=0.0)
        metrics.stalled_seconds.set(stalled)
        if loop.time() < self._measured_at + _MEASURED_EVERY_S:
            return
        self._measured_at = loop.time()
        standing = await self._engine.work.standing()
        for state in _STATES:
            metrics.jobs.labels(state.value).set(standing.jobs.get(state, 0))
        metrics.rows_waiting.set(standing.rows)
        metrics.oldest_waiting_seconds.set(0 if standing.oldest is None else max(0, now - standing.oldest))
