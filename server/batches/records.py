"""The rows of batches in the database: how one arrives, is read, changed by its client, and removed.

What the runner does to them stands in `work.py`. Every statement that changes a state says which states it may
come from: two authorities, or a client and the runner, never overwrite each other.
"""

import functools
from collections.abc import Sequence

from sqlalchemy import delete, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from server.audit.log import AuditEntry, append
from server.batches.job import ENDED, OPEN, Job
from server.batches.rows import StoredRow
from server.errors import Conflict, NotFound, StorageError
from server.storage.database import AnyRow, Database
from server.storage.schema import JobState, RowState, certificates, job_rows, jobs

REMOVED_AT_A_TIME = 2000
_COMES_FROM = {
    JobState.PAUSED: (JobState.QUEUED, JobState.RUNNING),
    JobState.QUEUED: (JobState.PAUSED,),
    JobState.CANCELLED: (JobState.QUEUED, JobState.RUNNING, JobState.PAUSED),
}
_ACTIONS = {JobState.PAUSED: "paused", JobState.QUEUED: "resumed", JobState.CANCELLED: "cancelled"}


class JobRecords:
    """Reads and writes jobs and their rows; raises `StorageError` throughout."""

    def __init__(self, database: Database, issuer_label: str) -> None:
        self._database = database
        self._issuer = issuer_label

    async def open(self, job: dict[str, object]) -> Job | None:
        """Create a job, unless its client has one with this idempotency key: that is returned."""
        j = jobs.c
        same_key = select(jobs).where(j.client == job["client"], j.idempotency_key == job["idempotency_key"])
        async with self._database.write() as connection:
            if job["idempotency_key"] is not None:
                row = (await connection.execute(same_key)).one_or_none()
                if row is not None:
                    return Job.of(row)
            await connection.execute(insert(jobs), job)
        return None

    async def add_rows(self, job_id: str, rows: Sequence[StoredRow]) -> None:
        """Add rows of a job that is being received."""
        values = [
            {
                "job": job_id,
                "number": row.number,
                "state": RowState.PENDING if row.problem is None else RowState.FAILED,
                "reference": row.reference,
                "request": row.request,
                "problem": row.problem,
            }
            for row in rows
        ]
        async with self._database.write() as connection:
            await connection.execute(insert(job_rows), values)

    async def received(self, job_id: str, now: int, *, rows: int, failed: int, sha256: bytes) -> Job:
        """Let a job begin: all its rows have arrived. Returns it."""
        values = {"state": JobState.QUEUED, "rows": rows, "failed": failed, "request_sha256": sha256}
        statement = update(jobs).where(jobs.c.id == job_id, jobs.c.state == JobState.RECEIVING)
        async with self._database.write() as connection:
            if (await connection.execute(statement.values(authority=None, **values))).rowcount != 1:
                raise StorageError("a batch went while it was received")
            job = Job.of((await connection.execute(select(jobs).where(jobs.c.id == job_id))).one())
            detail = {"rows": rows, "profile": job.profile, "dry_run": job.dry_run, "sha256": sha256.hex()}
            await audit(connection, now, job, "received", detail=detail)
        return job

    async def one(self, job_id: str, *, client: str) -> Job:
        """Return a job of the client; raises `NotFound`."""
        async with self._database.read() as connection:
            return await _one(connection, job_id, client)

    async def page(self, *, client: str, before: str | None, limit: int) -> list[Job]:
        """Return jobs of the client, newest first."""
        j = jobs.c
        query = select(jobs).where(j.client == client, j.state != JobState.RECEIVING).order_by(j.id.desc())
        if before is not None:
            query = query.where(j.id < before)
        async with self._database.read() as connection:
            return [Job.of(row) for row in await connection.execute(query.limit(limit))]

    async def change(self, job_id: str, to: JobState, now: int, *, client: str, request_id: str) -> Job:
        """Let a client pause, resume or cancel; what is so already stays so. Raises `NotFound`, `Conflict`."""
        async with self._database.write() as connection:
            job = await _one(connection, job_id, client)
            if job.state == to or (to is JobState.QUEUED and job.state is JobState.RUNNING):
                return job
            if job.state not in _COMES_FROM[to]:
                raise Conflict(
                    f"the batch is {job.state}: it cannot be {_ACTIONS[to]}",
                    remedy=f"a batch can be {_ACTIONS[to]} while it is {' or '.join(_COMES_FROM[to])}",
                )
            finished_at = now if to is JobState.CANCELLED else None
            await connection.execute(
                update(jobs).where(jobs.c.id == job_id).values(state=to, detail=None, finished_at=finished_at)
            )
            await audit(connection, now, job, _ACTIONS[to], actor=client, request_id=request_id)
            return await _one(connection, job_id, client)

    async def waiting(self, client: str) -> tuple[int, int]:
        """Return how many jobs of the client have not ended, and how many rows in them."""
        j = jobs.c
        rows = func.coalesce(func.sum(j.rows - j.issued - j.failed - j.checked), 0)
        query = select(func.count(), rows).where(j.client == client, j.state.in_(OPEN))
        async with self._database.read() as connection:
            count, left = (await connection.execute(query)).one()
        return count, left

    async def results(self, job_id: str, *, after: int, limit: int) -> Sequence[AnyRow]:
        """Return rows in order, with their certificates."""
        r, c = job_rows.c, certificates.c
        found = (c.issuer == self._issuer) & (c.serial == r.serial)
        query = (
            select(r.number, r.reference, r.state, r.serial, r.problem, c.der)
            .outerjoin(certificates, found)
            .where(r.job == job_id, r.number > after)
            .order_by(r.number)
            .limit(limit)
        )
        async with self._database.read() as connection:
            return (await connection.execute(query)).all()

    async def remove(self, job_id: str, *, but_for: Sequence[JobState] = OPEN) -> None:
        """Remove a job and its rows, in pieces that hold nobody up. The certificates stay.

        Nothing happens to a job that is in one of the states `but_for`: what seemed to fail may have been done.
        """
        r = job_rows.c
        some = select(r.number).where(r.job == job_id).order_by(r.number).limit(REMOVED_AT_A_TIME)
        state = select(jobs.c.state).where(jobs.c.id == job_id)
        while True:
            async with self._database.write() as connection:
                if (await connection.execute(state)).scalar_one_or_none() in but_for:
                    return
                done = await connection.execute(delete(job_rows).where(r.job == job_id, r.number.in_(some)))
                if done.rowcount < REMOVED_AT_A_TIME:
                    await connection.execute(delete(jobs).where(jobs.c.id == job_id))
                    return

    async def half_received(self, authority: str, *, before: int) -> list[str]:
        """Return the jobs that this authority began to receive, or another one before so long ago."""
        j = jobs.c
        query = select(j.id).where(
            j.state == JobState.RECEIVING, or_(j.authority == authority, j.created_at < before)
        )
        async with self._database.read() as connection:
            return list((await connection.execute(query)).scalars())

    async def ended_before(self, moment: int) -> list[Job]:
        """Return some of the jobs that ended before `moment`."""
        j = jobs.c
        query = select(jobs).where(j.state.in_(ENDED), j.finished_at < moment).order_by(j.id).limit(100)
        async with self._database.read() as connection:
            return [Job.of(row) for row in await connection.execute(query)]

    async def note_removal(self, job: Job, now: int) -> None:
        """Write down that an old job is removed."""
        async with self._database.write() as connection:
            await audit(connection, now, job, "removed", detail={"rows": job.rows, "client": job.client})


async def audit(
    connection: AsyncConnection,
    now: int,
    job: Job,
    action: str,
    *,
    actor: str | None = None,
    request_id: str | None = None,
    detail: dict[str, object] | None = None,
) -> None:
    """Write an entry on a batch, in the caller's transaction; its actor is the batch's client unless told."""
    if actor is None:
        actor = "certmill" if action in {"removed", "finished"} else job.client
    entry = AuditEntry(
        actor=actor,
        action=f"batch.{action}",
        object=job.id,
        request_id=request_id or job.request_id,
        detail=detail or {},
    )
    await append(connection, now, [entry])


async def _one(connection: AsyncConnection, job_id: str, client: str) -> Job:
    query = select(jobs).where(jobs.c.id == job_id, jobs.c.client == client, jobs.c.state != JobState.RECEIVING)
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        raise NotFound(
            f"no batch {job_id[:40]} of yours",
            field="id",
            remedy="check the id; batches that have ended are kept for some days, and a client sees only its own",
        )
    return Job.of(row)


new_row = functools.partial(dict[str, object], state=JobState.RECEIVING, rows=0, issued=0, failed=0, checked=0)
