"""What the runner does to batches in the database: claims, leases, outcomes, ends."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, func, or_, select, update
from sqlalchemy.sql import ColumnElement

from pkix.names import SerialNumber
from server.batches.job import ENDED, Counts, Job
from server.batches.records import audit
from server.storage.database import AnyRow, Database
from server.storage.schema import JobState, RowState, job_rows, jobs

LEASE_S = 30
_WORKABLE = (JobState.QUEUED, JobState.RUNNING)
_CANDIDATES = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The end of a row that got no certificate."""

    number: int
    state: RowState
    problem: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Jobs by state, rows that wait for the runner, and since when the oldest of their jobs does."""

    jobs: dict[str, int]
    rows: int
    oldest: int | None


class WorkRecords:
    """The runner's side of the tables; `authority` is who works. Raises `StorageError` throughout."""

    def __init__(self, database: Database, authority: str) -> None:
        self._database = database
        self.authority = authority

    async def claimable(self, now: int) -> list[Job]:
        """Return jobs that nobody else works on, oldest first."""
        query = select(jobs).where(self._free(now)).order_by(jobs.c.id).limit(_CANDIDATES)
        async with self._database.read() as connection:
            return [Job.of(row) for row in await connection.execute(query)]

    async def claim(self, job: Job, now: int) -> Counts | None:
        """Take a job, if it is still free: one conditional update, right on every database. Counts its rows."""
        values = {
            "state": JobState.RUNNING,
            "authority": self.authority,
            "leased_until": now + LEASE_S,
            "started_at": func.coalesce(jobs.c.started_at, now),
        }
        async with self._database.write() as connection:
            taken = await connection.execute(
                update(jobs).where(jobs.c.id == job.id, self._free(now)).values(values)
            )
            if taken.rowcount != 1:
                return None
            return _counts((await connection.execute(_count(job.id))).all())

    def _free(self, now: int) -> ColumnElement[bool]:
        j = jobs.c
        mine_or_nobodys = or_(j.authority.is_(None), j.authority == self.authority, j.leased_until < now)
        return j.state.in_(_WORKABLE) & mine_or_nobodys

    async def still_mine(self, job_ids: Sequence[str]) -> set[str]:
        """Return which of these jobs are to be worked on by us."""
        j = jobs.c
        query = select(j.id).where(j.id.in_(job_ids), j.state == JobState.RUNNING, j.authority == self.authority)
        async with self._database.read() as connection:
            return set((await connection.execute(query)).scalars())

    async def note(self, counts: dict[str, Counts], now: int) -> None:
        """Prolong the leases of jobs and write down how far they are."""
        if not counts:  # the last has ended while somebody looked
            return
        j = jobs.c
        statement = (
            update(jobs)
            .where(j.id == bindparam("the_id"), j.authority == self.authority)
            .values({name: bindparam(f"the_{name}") for name in ("issued", "failed", "checked", "leased_until")})
        )
        rows = [
            {"the_id": job_id, "the_leased_until": now + LEASE_S}
            | {f"the_{name}": value for name, value in one.as_dict().items()}
            for job_id, one in counts.items()
        ]
        async with self._database.write() as connection:
            await connection.execute(statement, rows)

    async def pending(self, job_id: str, *, after: int, limit: int) -> Sequence[AnyRow]:
        """Return rows that are still to be worked on, in order."""
        r = job_rows.c
        query = (
            select(r.number, r.request)
            .where(r.job == job_id, r.state == RowState.PENDING, r.number > after)
            .order_by(r.number)
            .limit(limit)
        )
        async with self._database.read() as connection:
            return (await connection.execute(query)).all()

    async def row_state(self, job_id: str, number: int) -> tuple[RowState, SerialNumber | None]:
        """Return where a row stands: after a fault it may be issued, and then has a serial number."""
        r = job_rows.c
        query = select(r.state, r.serial).where(r.job == job_id, r.number == number)
        async with self._database.read() as connection:
            row = (await connection.execute(query)).one()
        return RowState(row.state), None if row.serial is None else SerialNumber(int(row.serial, 16))

    async def finish_rows(self, job_id: str, outcomes: Sequence[Outcome]) -> None:
        """Write down the ends of rows; one that is not pending any more keeps what it has."""
        r = job_rows.c
        statement = (
            update(job_rows)
            .where(r.job == job_id, r.number == bindparam("the_number"), r.state == RowState.PENDING)
            .values(state=bindparam("the_state"), problem=bindparam("the_problem"))
        )
        rows = [{"the_number": o.number, "the_state": o.state, "the_problem": o.problem} for o in outcomes]
        async with self._database.write() as connection:
            await connection.execute(statement, rows)

    async def finish(self, job: Job, now: int) -> bool:
        """End a job whose rows have all been worked on; False if some are still pending, or it is not ours."""
        j = jobs.c
        async with self._database.write() as connection:
            counts = _counts((await connection.execute(_count(job.id))).all())
            if counts.finished < job.rows:
                return False
            values = {"state": JobState.DONE, "finished_at": now, "detail": None, **counts.as_dict()}
            ended = await connection.execute(
                update(jobs)
                .where(j.id == job.id, j.state == JobState.RUNNING, j.authority == self.authority)
                .values(authority=None, leased_until=None, **values)
            )
            if ended.rowcount == 1:
                await audit(connection, now, job, "finished", detail=dict(counts.as_dict()))
            return ended.rowcount == 1

    async def release(
        self, job: Job, now: int, *, state: JobState | None = None, detail: str | None = None
    ) -> None:
        """Give a job back, as its client left it; or stop it with `detail` as `state`, for which it must run."""
        j = jobs.c
        async with self._database.write() as connection:
            counts = _counts((await connection.execute(_count(job.id))).all())
            mine = update(jobs).where(j.id == job.id, j.authority == self.authority)
            if state is not None:
                ended = {"finished_at": now} if state is JobState.FAILED else {}
                stopped = await connection.execute(
                    mine.where(j.state == JobState.RUNNING).values(state=state, detail=detail, **ended)
                )
                if stopped.rowcount == 1:
                    await audit(connection, now, job, str(state), actor="certmill", detail={"detail": detail})
            await connection.execute(mine.values(authority=None, leased_until=None, **counts.as_dict()))

    async def recount(self) -> int:
        """Give back what a crash left claimed of jobs that were paused or cancelled, with the counts of its rows.

        At start, for our own; returns how many. (What is to be worked on is claimed again, and counted then.)
        """
        j = jobs.c
        query = select(j.id).where(j.authority == self.authority, j.state.in_((JobState.PAUSED, *ENDED)))
        async with self._database.write() as connection:
            left = list((await connection.execute(query)).scalars())
            for job_id in left:
                counts = _counts((await connection.execute(_count(job_id))).all())
                statement = update(jobs).where(j.id == job_id, j.authority == self.authority)
                await connection.execute(statement.values(authority=None, leased_until=None, **counts.as_dict()))
        return len(left)

    async def standing(self) -> Standing:
        """Return what there is to do, for metrics."""
        j = jobs.c
        by_state = select(j.state, func.count()).group_by(j.state)
        left = func.coalesce(func.sum(j.rows - j.issued - j.failed - j.checked), 0)
        waiting = select(left, func.min(j.created_at)).where(j.state.in_(_WORKABLE))
        async with self._database.read() as connection:
            counted = (await connection.execute(by_state)).all()
            rows, oldest = (await connection.execute(waiting)).one()
        return Standing(jobs={state: count for state, count in counted}, rows=rows, oldest=oldest)  # noqa: C416


def _count(job_id: str) -> Any:  # noqa: ANN401 - SQLAlchemy's type of a query
    return select(job_rows.c.state, func.count()).where(job_rows.c.job == job_id).group_by(job_rows.c.state)


def _counts(rows: Sequence[AnyRow]) -> Counts:
    by_state = {state: count for state, count in rows}  # noqa: C416
    return Counts(
        issued=by_state.get(RowState.ISSUED, 0),
        failed=by_state.get(RowState.FAILED, 0),
        checked=by_state.get(RowState.CHECKED, 0),
    )
