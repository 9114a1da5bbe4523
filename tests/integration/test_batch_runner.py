"""The runner of batches: restarts, leases, turns between clients, defects, and what it measures."""

import asyncio
import dataclasses
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from server.app import Parts
from server.batches.work import WorkRecords
from server.clock import epoch
from server.storage.schema import JobState
from tests.support.authority import (
    MINISTRY,
    MovableClock,
    Prepared,
    Table,
    authority,
    prepare,
    software_config,
)
from tests.support.batches import (
    ended,
    enrol,
    good_rows,
    results,
    runner,
    send,
    until,
)

OTHER = dataclasses.replace(MINISTRY, name="other")


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table(tmp_path)


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    limits = {"MAX_ROWS": "1200", "MAX_BODY_BYTES": "2000000", "MAX_OPEN": "2", "ROWS_IN_FLIGHT": "40"}
    settings = {f"CERTMILL_BATCHES_{name}": value for name, value in limits.items()}
    return prepare(software_config(tmp_path, CERTMILL_BATCHES_MAX_LISTENERS="1", **settings))


@pytest.fixture
async def parts(prepared: Prepared, clock: MovableClock) -> AsyncIterator[Parts]:
    async with authority(prepared, clock) as opened:
        await enrol(opened)
        yield opened


def nothing_left(table: Table) -> bool:
    return table.rows("select (select count(*) from jobs) + (select count(*) from job_rows)") == [(0,)]


async def test_a_restart_goes_on_where_the_last_transaction_stood(
    prepared: Prepared, clock: MovableClock, table: Table
) -> None:
    async with authority(prepared, clock) as parts:
        await enrol(parts)
        job = await send(parts, good_rows(300))
        async with runner(parts):
            await until(parts, job, lambda now: now.issued > 30)
    assert table.rows("select state from jobs") == [("running",)]
    async with authority(prepared, clock) as parts, runner(parts):
        job = await ended(parts, job)
    assert (job.state, job.issued) == (JobState.DONE, 300)
    assert Counter(table.states())["issued"] == 300


async def test_a_job_is_claimed_by_one_authority_until_its_lease_ends(parts: Parts, clock: MovableClock) -> None:
    job = await send(parts, good_rows(2))
    ours, theirs = (WorkRecords(parts.database, name) for name in ("ours", "theirs"))
    now = epoch(clock())
    assert await ours.claim(job, now) is not None
    assert await theirs.claimable(now) == []
    assert await theirs.claim(job, now) is None
    assert await ours.claim(job, now) is not None  # after a restart: at once
    assert await theirs.claim(job, now + 31) is not None
    assert await ours.still_mine([job.id]) == set()
    assert await ours.finish(job, now) is False
    await ours.release(job, now, state=JobState.PAUSED, detail="late")
    assert (await parts.batches.one(job.id, client="ministry")).state is JobState.RUNNING


async def test_clients_share_the_window_and_nobody_waits_for_a_long_list(parts: Parts) -> None:
    await enrol(parts, OTHER)
    long = await send(parts, good_rows(1000))
    async with runner(parts):
        await until(parts, long, lambda now: now.issued > 0)
        short = await send(parts, good_rows(80, "short"), client=OTHER)
        await until(parts, short, lambda now: now.issued > 40)
        in_flight = [run.in_flight for run in parts.batches.runner._runs.values()]
        assert len(in_flight) == 2
        assert sum(in_flight) <= 40
        assert (await ended(parts, short)).issued == 80
        assert not (await parts.batches.one(long.id, client="ministry")).ended
        await parts.batches.change(long.id, JobState.CANCELLED, client="ministry", request_id="r")


async def test_a_defect_puts_its_job_aside_and_no_other(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_row = parts.issuance.prepare

    async def broken(order: Any) -> Any:
        if b"MIIB" in order.csr:
            raise RuntimeError("a defect in one row")
        return await prepare_row(order)

    monkeypatch.setattr(parts.issuance, "prepare", broken)
    engine = parts.batches.runner._engine
    pending = engine.work.pending

    async def no_pending(job_id: str, **bounds: int) -> Any:
        if job_id == poisoned.id:
            raise RuntimeError("a defect in the runner")
        return await pending(job_id, **bounds)

    monkeypatch.setattr(engine.work, "pending", no_pending)
    poisoned = await send(parts, good_rows(1))
    good = await send(parts, [*good_rows(2), {"csr": "-----BEGIN MIIB"}])
    async with runner(parts):
        good = await ended(parts, good)
        poisoned = await until(parts, poisoned, lambda now: now.state is JobState.PAUSED)
    assert (good.issued, good.failed) == (2, 1)
    assert (await results(parts, good))[2]["problem"]["type"] == "/docs#internal"
    assert "a defect" in str(poisoned.detail)


async def test_the_runner_outlives_a_database_that_is_away(parts: Parts, table: Table) -> None:
    job = await send(parts, good_rows(2))
    table.fail("update on jobs")
    async with runner(parts):
        await asyncio.sleep(0.2)
        await asyncio.to_thread(table.mend)
        assert (await ended(parts, job)).issued == 2


async def test_metrics_say_what_waits_and_whether_it_goes_on(parts: Parts) -> None:
    await send(parts, good_rows(4))
    async with runner(parts):
        await ended(parts, await send(parts, good_rows(2)))

    def value(name: str, **labels: str) -> float | None:
        return parts.registry.get_sample_value(name, labels)

    assert value("certmill_batch_rows_total", state="issued") is not None
    assert value("certmill_batch_jobs", state="running") is not None
    assert value("certmill_batch_stalled_seconds") is not None


async def test_batches_that_all_ended_while_the_runner_looked_are_no_fault(parts: Parts) -> None:
    await parts.batches.runner._engine.work.note({}, epoch(parts.clock()))
