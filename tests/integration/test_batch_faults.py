"""Batches while something fails: each row keeps its one end, and nobody is told of what is not so."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ocsp.errors import StoreError
from ocsp.store import Status
from pkix.names import SerialNumber
from server.app import Parts
from server.batches import job_run
from server.clock import epoch
from server.errors import StorageError
from server.storage.schema import JobState
from tests.support.authority import (
    MovableClock,
    Prepared,
    Table,
    authority,
    prepare,
    software_config,
    stored_status,
)
from tests.support.batches import ended, enrol, good_rows, results, runner, send, until


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table(tmp_path)


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    return prepare(software_config(tmp_path, CERTMILL_BATCHES_ROWS_IN_FLIGHT="40"))


@pytest.fixture
async def parts(prepared: Prepared) -> AsyncIterator[Parts]:
    async with authority(prepared, MovableClock()) as opened:
        await enrol(opened)
        yield opened


async def test_a_passing_fault_fails_no_row_and_pause_ends_the_waiting(parts: Parts, table: Table) -> None:
    table.fail("insert on certificates")
    job = await send(parts, good_rows(60))
    async with runner(parts):
        await until(parts, job, lambda _: _retries(parts) > 40)
        paused = await parts.batches.change(job.id, JobState.PAUSED, client="ministry", request_id="r")
        assert paused.state is JobState.PAUSED
        async with asyncio.timeout(1):  # within a second
            await until(parts, job, lambda _: parts.batches.runner.running(job.id) is None)
        await asyncio.to_thread(table.mend)
        await asyncio.sleep(0)
        assert (await parts.batches.one(job.id, client="ministry")).issued == 0
        for _ in range(2):  # can be repeated
            await parts.batches.change(job.id, JobState.QUEUED, client="ministry", request_id="r")
        job = await ended(parts, job)
    assert (job.issued, job.failed) == (60, 0)
    assert Counter(table.states())["issued"] == 60


def _retries(parts: Parts) -> float:
    return sum(
        sample.value
        for family in parts.metrics.batches.retries.collect()
        for sample in family.samples
        if sample.name.endswith("_total")
    )


async def test_a_fault_after_the_last_transaction_gives_no_second_certificate(
    parts: Parts, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish, faults = parts.publisher.publish, iter(range(2))

    async def faulty(responses: Any) -> Any:
        await publish(responses)
        if next(faults, None) is not None:
            raise StoreError("the answer may be there")

    monkeypatch.setattr(parts.publisher, "publish", faulty)
    async with runner(parts):
        job = await ended(parts, await send(parts, good_rows(50)))
    assert next(faults, None) is None
    assert (job.issued, job.failed) == (50, 0)
    assert table.states() == ["issued"] * 50


async def test_a_row_whose_commit_only_seemed_to_fail_is_not_told_before_its_ocsp_answer(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_issued, faults = parts.issuance._records.record_issued, iter([1])

    async def doubtful(*arguments: Any) -> None:
        await record_issued(*arguments)
        if next(faults, None) is not None:
            raise StorageError("the connection was lost after the commit")

    monkeypatch.setattr(parts.issuance._records, "record_issued", doubtful)
    async with runner(parts):
        job = await ended(parts, await send(parts, good_rows(30)))
    assert next(faults, None) is None
    assert (job.issued, job.failed) == (30, 0)
    for row in await results(parts, job):
        assert await stored_status(parts, SerialNumber(int(row["serial"], 16))) is Status.GOOD


async def test_ends_of_rows_wait_for_the_database(parts: Parts, table: Table) -> None:
    job = await send(parts, [{"csr": "MIIB"}] * 5)
    table.fail("update on job_rows")
    async with runner(parts):
        await until(parts, job, lambda now: now.failed == 5)
        await asyncio.to_thread(table.mend)
        job = await ended(parts, job)
    assert (job.state, job.failed) == (JobState.DONE, 5)
    assert {row["state"] for row in await results(parts, job)} == {"failed"}


async def test_what_a_client_may_do_is_looked_up_again_for_rows_that_had_to_wait(
    parts: Parts, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_run, "CLIENT_SEEN_S", 0.0)
    table.fail("insert on certificates")
    job = await send(parts, good_rows(20))
    async with runner(parts):
        await until(parts, job, lambda _: _retries(parts) > 20)
        await asyncio.to_thread(table.rows, "update clients set disabled = 1 where name = 'ministry'")
        job = await until(parts, job, lambda now: now.state is JobState.PAUSED)
        await until(parts, job, lambda _: parts.batches.runner.running(job.id) is None)
        await asyncio.to_thread(table.rows, "update clients set disabled = 0 where name = 'ministry'")
        await parts.batches.change(job.id, JobState.QUEUED, client="ministry", request_id="r")
        before = _retries(parts)
        await until(parts, job, lambda _: _retries(parts) > before + 20)
        narrow = """update clients set profiles = '["tls-client"]' where name = 'ministry'"""
        await asyncio.to_thread(table.rows, narrow)
        job = await ended(parts, job)
    assert job.failed == 20


async def test_the_runner_outlives_a_database_that_is_away(parts: Parts, table: Table) -> None:
    job = await send(parts, good_rows(2))
    table.fail("update on jobs")
    async with runner(parts):
        await asyncio.sleep(0.2)
        await asyncio.to_thread(table.mend)
        assert (await ended(parts, job)).issued == 2


async def test_a_crash_after_a_cancellation_leaves_counts_that_are_those_of_the_rows(
    prepared: Prepared, table: Table
) -> None:
    async with authority(prepared, MovableClock()) as parts:
        await enrol(parts)
        job = await send(parts, good_rows(3))
        async with runner(parts):
            job = await ended(parts, job)
        me = parts.batches._work.authority
    # As kill -9 leaves it between the client's call and the end of the rows in flight.
    table.rows("update jobs set state = 'cancelled', issued = 1, authority = ?, leased_until = 9999999999", me)
    table.rows("update job_rows set state = 'pending', serial = null where number = 3")
    async with authority(prepared, MovableClock()) as parts:
        job = await parts.batches.one(job.id, client="ministry")
        assert (job.state, job.issued, job.authority) == (JobState.CANCELLED, 2, None)


async def test_what_a_lost_authority_was_receiving_is_removed_by_another(parts: Parts, table: Table) -> None:
    job = await send(parts, good_rows(1), idempotency_key="k")
    table.rows("update jobs set state = 'receiving', authority = 'lost'")
    await parts.batches.recover()
    assert table.rows("select id from jobs") == [(job.id,)]
    table.rows("update jobs set created_at = created_at - 3600")
    await parts.batches.recover()
    assert table.rows("select count(*) from jobs") == [(0,)]


async def test_batches_that_all_ended_while_the_runner_looked_are_no_fault(parts: Parts) -> None:
    await parts.batches.runner._engine.work.note({}, epoch(parts.clock()))
