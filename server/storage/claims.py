"""Work that several authorities take from one table: who has it, and until when."""

from sqlalchemy import BigInteger, ColumnElement, cast, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from server.storage.database import AnyRow
from server.storage.schema import JobState, jobs
from server.storage.upserts import SHARED_DIALECT

CLAIMABLE = (JobState.QUEUED, JobState.RUNNING)


async def database_time(connection: AsyncConnection, now: int) -> int:
    """Return the time that all authorities of this database share; on SQLite `now`, our own."""
    if connection.dialect.name != SHARED_DIALECT:
        return now
    query = select(cast(func.floor(func.extract("epoch", func.clock_timestamp())), BigInteger))
    return int((await connection.execute(query)).scalar_one())


async def claim_job(
    connection: AsyncConnection,
    *,
    authority: str,
    now: int,
    lease_s: int,
    where: ColumnElement[bool] | None = None,
) -> AnyRow | None:
    """Take the oldest job that nobody works on, in a `write()` transaction: its row, None if there is none.

    Nobody else gets it for `lease_s`, unless `release_job` gives it back; `renew_lease` in time keeps it. Two
    authorities that claim at once get two jobs: the second skips the row that the first has locked.
    """
    j = jobs.c
    now = await database_time(connection, now)
    free = or_(j.leased_until.is_(None), j.leased_until <= now, j.authority == authority)
    query = select(jobs).where(j.state.in_(CLAIMABLE), free).order_by(j.created_at, j.id).limit(1)
    if where is not None:
        query = query.where(where)
    row = (await connection.execute(query.with_for_update(skip_locked=True))).one_or_none()
    if row is not None:
        lease = {"authority": authority, "leased_until": now + lease_s}
        await connection.execute(update(jobs).where(j.id == row.id).values(lease))
    return row


async def renew_lease(connection: AsyncConnection, job: str, *, authority: str, now: int, lease_s: int) -> bool:
    """Keep a job for `lease_s` from now; False if another authority has taken it meanwhile."""
    j = jobs.c
    until = await database_time(connection, now) + lease_s
    kept = update(jobs).where(j.id == job, j.authority == authority).values(leased_until=until)
    return (await connection.execute(kept)).rowcount == 1


async def release_job(connection: AsyncConnection, job: str, *, authority: str) -> None:
    """Give a job back, for whoever claims it next."""
    j = jobs.c
    free = {"authority": None, "leased_until": None}
    await connection.execute(update(jobs).where(j.id == job, j.authority == authority).values(free))
