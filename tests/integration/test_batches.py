"""Batches: exactly one certificate for each good row, its reason for each bad one, whatever happens on the way."""

import asyncio
import dataclasses
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from server.app import Parts
from server.batches.intake import Asked
from server.batches.work import WorkRecords
from server.clock import epoch
from server.errors import (
    BatchTooLarge,
    BrokenBatch,
    Conflict,
    IdempotencyConflict,
    NotFound,
    Overloaded,
    StorageError,
    TooManyBatches,
)
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
    csr_text,
    ended,
    enrol,
    good_rows,
    ndjson,
    receive,
    results,
    runner,
    send,
    until,
)
from tests.support.profiles import TLS_CLIENT

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


async def test_each_good_row_gets_one_certificate_and_each_bad_one_its_reason(parts: Parts, table: Table) -> None:
    rows = [
        *good_rows(620),
        {"reference": "bad csr", "csr": "MIIB"},
        {"reference": "no csr"},
        {"reference": "bad name", "csr": csr_text("_")},
        {"reference": "other profile", "csr": csr_text("system"), "profile": "tls-client", "validity_days": 30},
    ]
    job = await send(parts, rows)
    assert (job.state, job.rows, job.failed) == (JobState.QUEUED, 624, 1)
    async with runner(parts):
        job = await ended(parts, job)
    assert (job.state, job.issued, job.failed, job.checked) == (JobState.DONE, 621, 3, 0)
    found = await results(parts, job)
    assert [row["number"] for row in found] == list(range(1, 625))
    assert [row["reference"] for row in found] == [row.get("reference") for row in rows]
    assert len({row["serial"] for row in found if row["state"] == "issued"}) == 621
    assert Counter(table.states()) == {"issued": 621}
    reasons = {row["reference"]: row["problem"] for row in found if row["problem"]}
    assert {name: problem["type"] for name, problem in reasons.items()} == {
        "bad csr": "/docs#malformed-csr",
        "no csr": "/docs#invalid-request",
        "bad name": "/docs#profile-violation",
    }
    assert all(problem["remedy"] and problem["field"] == "csr" for problem in reasons.values())
    profiles = table.rows("select profile, not_after - not_before from certificates order by not_after limit 1")
    assert profiles == [(TLS_CLIENT.identity, 30 * 86400 - 1)]
    actions = [
        str(a) for (a,) in table.rows("select action from audit_log where action like 'batch.%' order by id")
    ]
    assert actions == ["batch.received", "batch.finished"]


async def test_a_dry_run_checks_every_row_and_leaves_no_trace(parts: Parts, table: Table) -> None:
    rows = [*good_rows(30), {"csr": csr_text("_")}]
    before = table.rows("select count(*) from certificates")
    async with runner(parts):
        job = await ended(parts, await send(parts, rows, dry_run=True, idempotency_key="dry"))
        assert (job.state, job.checked, job.failed, job.issued) == (JobState.DONE, 30, 1, 0)
        assert table.rows("select count(*) from certificates") == before
        assert {row["state"] for row in await results(parts, job)} == {"checked", "failed"}
        real = await ended(parts, await send(parts, rows, idempotency_key="real"))
    assert (real.issued, real.failed) == (30, 1)


@pytest.mark.parametrize(
    ("body", "error", "words"),
    [
        (ndjson(good_rows(600)) + b"{", BrokenBatch, "row 601 is not a JSON object"),
        (b"", BrokenBatch, "no row"),
        (ndjson(good_rows(510)) + b'{"csrr": 1}\n', BrokenBatch, "row 511: there is no member 'csrr'"),
        (b'{"csr":"x"}\n' * 1201, BatchTooLarge, "more than 1200 rows"),
        (b'{"csr":"' + b"x" * 60_000 + b'"}\n', BatchTooLarge, "more than 2000000 bytes"),
    ],
)
async def test_a_batch_that_cannot_be_read_leaves_nothing(
    parts: Parts, table: Table, body: bytes, error: type[Exception], words: str
) -> None:
    if "bytes" in words:
        body *= 40
    with pytest.raises(error, match=words):
        await send(parts, body)
    assert nothing_left(table)


async def test_what_a_crash_left_of_an_arriving_batch_is_removed_at_the_next_start(
    parts: Parts, table: Table
) -> None:
    class Crash(BaseException):
        pass

    bodies = iter([ndjson(good_rows(501))])

    async def read() -> bytes:
        body = next(bodies, None)
        if body is None:
            raise Crash
        return body

    with pytest.raises(Crash):
        await parts.batches._intake.receive(_asked(), read)
    assert not nothing_left(table)
    await parts.batches.recover()
    assert nothing_left(table)


def _asked(**values: Any) -> Asked:
    base = {"client": "ministry", "profile": "tls-server", "media_type": "application/x-ndjson", "request_id": "r"}
    return Asked(**{**base, **values})


async def test_a_batch_whose_arrival_only_seemed_to_fail_is_kept(
    parts: Parts, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    received = parts.batches._records.received

    async def doubtful(*arguments: Any, **more: Any) -> NoReturn:
        await received(*arguments, **more)
        raise StorageError("the connection was lost after the commit")

    monkeypatch.setattr(parts.batches._records, "received", doubtful)
    with pytest.raises(StorageError):
        await send(parts, good_rows(2), idempotency_key="k")
    assert table.rows("select state, rows from jobs") == [("queued", 2)]


async def test_a_key_names_one_batch(parts: Parts, table: Table) -> None:
    rows = good_rows(3)
    first, replayed = await receive(parts, rows, idempotency_key="k")
    assert not replayed
    again, replayed = await receive(parts, rows, idempotency_key="k")
    assert replayed
    assert again.id == first.id
    for other in ({"body": good_rows(2)}, {"validity_days": 5}, {"dry_run": True}, {"profile": "tls-client"}):
        with pytest.raises(IdempotencyConflict):
            await send(parts, **{"body": rows, "idempotency_key": "k", **other})  # type: ignore[arg-type]
    with pytest.raises(IdempotencyConflict):
        await send(parts, ndjson(rows) + b" " * 2_000_001, idempotency_key="k")
    _, replayed = await receive(parts, rows, idempotency_key="k", client=OTHER)
    assert not replayed
    assert table.rows("select count(*) from jobs") == [(2,)]


async def test_a_repeated_call_while_the_first_still_sends_is_told_so(parts: Parts) -> None:
    sending, go_on = asyncio.Event(), asyncio.Event()
    data = iter([ndjson(good_rows(2)), b""])

    async def slow() -> bytes:
        sending.set()
        await go_on.wait()
        return next(data)

    first = asyncio.create_task(parts.batches.receive(_asked(idempotency_key="k"), slow))
    await sending.wait()
    with pytest.raises(Conflict, match="being received"):
        await send(parts, good_rows(2), idempotency_key="k")
    await parts.batches.recover()  # it is no left-over
    go_on.set()
    assert (await first)[0].rows == 2


async def test_limits_name_themselves(parts: Parts, table: Table) -> None:
    rows = good_rows(1)
    await send(parts, rows, idempotency_key="a")
    await send(parts, rows)
    for key in (None, "b"):
        with pytest.raises(TooManyBatches, match="2 batches of yours have not ended, and 2 are the limit"):
            await send(parts, good_rows(1), idempotency_key=key)
    assert (await receive(parts, rows, idempotency_key="a"))[1]  # no further batch
    await send(parts, good_rows(1), client=OTHER)
    table.rows("update jobs set rows = 500001 where client = 'other'")
    with pytest.raises(TooManyBatches, match="500001 rows of your batches wait"):
        await send(parts, good_rows(1), client=OTHER)


async def test_a_disabled_client_s_batch_pauses_and_says_why(parts: Parts, table: Table) -> None:
    job = await send(parts, good_rows(3))
    table.rows("update clients set disabled = 1 where name = 'ministry'")
    async with runner(parts):
        job = await until(parts, job, lambda now: now.state is JobState.PAUSED)
        assert "disabled" in str(job.detail)
        table.rows("update clients set disabled = 0 where name = 'ministry'")
        await until(parts, job, lambda _: parts.batches.runner.running(job.id) is None)
        resumed = await parts.batches.change(job.id, JobState.QUEUED, client="ministry", request_id="r")
        assert resumed.detail is None
        assert (await ended(parts, job)).issued == 3


async def test_a_profile_that_is_no_longer_permitted_fails_the_rows(parts: Parts, table: Table) -> None:
    job = await send(parts, good_rows(3))
    table.rows("""update clients set profiles = '["tls-client"]' where name = 'ministry'""")
    async with runner(parts):
        job = await ended(parts, job)
    assert job.failed == 3
    assert (await results(parts, job))[0]["problem"]["type"] == "/docs#not-permitted"


async def test_a_version_that_another_authority_has_activated_is_read_when_it_is_needed(
    parts: Parts, table: Table
) -> None:
    job = await send(parts, [*good_rows(2), {"csr": csr_text("a.gov"), "profile": "tls-client"}])
    ((toml, version),) = table.rows("select toml, version from profile_versions where name = 'tls-server'")
    later = str(toml).replace(f"version = {version}", "version = 99")
    table.rows("insert into profile_versions values ('tls-server', 99, x'00', ?, 0)", later)
    table.rows("update jobs set profile = 'tls-server@99'")
    async with runner(parts):
        job = await ended(parts, job)
    assert (job.issued, job.failed) == (3, 0)
    assert table.rows("select count(*) from certificates where profile = 'tls-server@99'") == [(2,)]


async def test_cancelled_is_for_ever_and_keeps_what_is_issued(parts: Parts, table: Table) -> None:
    job = await send(parts, good_rows(1200))
    async with runner(parts):
        await until(parts, job, lambda now: now.issued > 50)
        await parts.batches.change(job.id, JobState.CANCELLED, client="ministry", request_id="r")
        job = await ended(parts, job)
        assert job.state is JobState.CANCELLED
        assert 50 < job.issued < 1200
        for to in (JobState.QUEUED, JobState.PAUSED):
            with pytest.raises(Conflict, match="cancelled"):
                await parts.batches.change(job.id, to, client="ministry", request_id="r")
    assert table.states() == ["issued"] * job.issued
    assert Counter(row["state"] for row in await results(parts, job)) == {
        "issued": job.issued,
        "pending": 1200 - job.issued,
    }


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


async def test_batches_of_others_do_not_exist(parts: Parts) -> None:
    job = await send(parts, good_rows(1))
    for call in (
        parts.batches.one(job.id, client="other"),
        parts.batches.change(job.id, JobState.PAUSED, client="other", request_id="r"),
        parts.batches.results(job.id, "csv", client="other"),
        anext(parts.batches.follow(job.id, client="other")),
    ):
        with pytest.raises(NotFound):
            await call
    assert await parts.batches.page(client="other", before=None, limit=10) == []
    assert [one.id for one in await parts.batches.page(client="ministry", before=None, limit=10)] == [job.id]


async def test_followers_are_bounded_and_see_the_end(parts: Parts) -> None:
    job = await send(parts, good_rows(5))
    async with runner(parts):
        steps = parts.batches.follow(job.id, client="ministry")
        assert await anext(steps) is not None
        with pytest.raises(Overloaded):
            await anext(parts.batches.follow(job.id, client="ministry"))
        last = [step async for step in steps][-1]
        assert last is not None
        assert (last.state, last.issued) == (JobState.DONE, 5)
    other = await send(parts, good_rows(1))  # nobody works on it
    steps = parts.batches.follow(other.id, client="ministry")
    await anext(steps)
    assert await anext(steps) is None
    parts.batches.close()
    assert [step async for step in steps] == []


async def test_old_batches_go_and_their_certificates_stay(parts: Parts, clock: MovableClock, table: Table) -> None:
    async with runner(parts):
        old = await ended(parts, await send(parts, good_rows(3)))
    clock.advance(days=29)
    young = await send(parts, good_rows(1))
    await parts.batches.change(young.id, JobState.CANCELLED, client="ministry", request_id="r")
    clock.advance(days=2)
    tidy = asyncio.create_task(parts.batches.tidy())
    async with asyncio.timeout(10):
        while table.rows("select id from jobs") != [(young.id,)]:  # noqa: ASYNC110 - from outside
            await asyncio.sleep(0.01)
    tidy.cancel()
    assert table.rows("select distinct job from job_rows") == [(young.id,)]
    assert table.states() == ["issued"] * 3
    assert table.rows("select object from audit_log where action = 'batch.removed'") == [(old.id,)]


async def test_metrics_say_what_waits_and_whether_it_goes_on(parts: Parts) -> None:
    await send(parts, good_rows(4))
    async with runner(parts):
        await ended(parts, await send(parts, good_rows(2)))

    def value(name: str, **labels: str) -> float | None:
        return parts.registry.get_sample_value(name, labels)

    assert value("certmill_batch_rows_total", state="issued") is not None
    assert value("certmill_batch_jobs", state="running") is not None
    assert value("certmill_batch_stalled_seconds") is not None
