"""What the keys have to sign is counted in the real database, and handed to the budget whatever fails."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import structlog
from sqlalchemy import event
from structlog.testing import LogCapture
from structlog.typing import FilteringBoundLogger

from pkix.names import serial_hex
from server.app import Parts
from server.clock import epoch
from server.ground import Ground
from server.keys.hierarchy import ISSUING, OCSP, ROOT
from server.status import commitments, schedule
from server.status.commitments import MEAN_REFRESH_SHARE, Commitments
from server.storage.sqlite import SqliteEngine
from signer_pool.budget import NOW, Freshness, Plan, SigningBudget
from signer_pool.errors import BudgetExceeded
from signer_pool.pace import Capacity
from tests.support.authority import MovableClock, Prepared, Table, authority, order, prepare, software_config

HOUR_S, DAY_S = 3600, 86400
REFRESH_S = 0.45 * 96 * HOUR_S


class Bench:
    """Commitments over a real authority; the budget's clock is that of the authority."""

    def __init__(self, parts: Parts, clock: MovableClock, table: Table) -> None:
        self.parts, self.clock, self.table = parts, clock, table
        self.log = LogCapture()
        self.budget = SigningBudget(
            lambda: [Capacity(token="t", key=key, signs_per_s=1000) for key in (ROOT, ISSUING, OCSP)],
            clock=lambda: clock().timestamp(),
        )
        year = clock.now.year
        self.commitments = Commitments(
            ground=Ground(database=parts.database, clock=clock, metrics=parts.metrics, logger=logger(self.log)),
            budget=self.budget,
            issuer_label=ISSUING,
            validity_h=96,
            crl_interval_h=24,
            plan={str(year + 2): 10_000, str(year): 1, str(year + 1): 5000, str(year - 1): 1},
        )

    async def issue(self, count: int = 1) -> None:
        for _ in range(count):
            await self.parts.issuance.issue(order())

    async def plans(self) -> dict[str, dict[tuple[str, str], float]]:
        plans, _ = await self.commitments.collect()
        return {plan.name: rates(plan) for plan in plans}

    async def now(self) -> dict[tuple[str, str], float]:
        return (await self.plans())[NOW]

    async def freshness(self) -> Freshness:
        return (await self.commitments.collect())[1]

    def count(self, table: str) -> int:
        ((number,),) = self.table.rows(f"select count(*) from {table}")
        assert isinstance(number, int)
        return number


def logger(log: LogCapture) -> FilteringBoundLogger:
    wrapped: FilteringBoundLogger = structlog.wrap_logger(
        structlog.ReturnLogger(),
        processors=[log],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    )
    return wrapped


def rates(plan: Plan) -> dict[tuple[str, str], float]:
    found = {(one.work, one.key): one.signs_per_s for one in plan.commitments}
    assert len(found) == len(plan.commitments)
    return found


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - what another task does to the database has no event
            await asyncio.sleep(0.01)


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    return prepare(software_config(tmp_path))


@pytest.fixture
async def bench(prepared: Prepared, tmp_path: Path) -> AsyncIterator[Bench]:
    clock = MovableClock()
    async with authority(prepared, clock) as parts:
        yield Bench(parts, clock, Table(tmp_path))


async def test_now_is_what_the_database_holds(bench: Bench) -> None:
    await bench.issue(3)
    responses, certificates = bench.count("ocsp_responses"), bench.count("certificates")
    assert await bench.now() == pytest.approx(
        {
            ("refresh", OCSP): responses / REFRESH_S,
            ("rotation", OCSP): responses / DAY_S,
            ("crl", ISSUING): 1 / DAY_S,
            ("crl", ROOT): 1 / (30 * DAY_S),
            ("issuance", ISSUING): certificates / HOUR_S,
            ("issuance", OCSP): certificates / HOUR_S,
        }
    )
    assert pytest.approx((schedule._EARLIEST + schedule._LATEST) / 2) == MEAN_REFRESH_SHARE


async def test_later_years_stand_at_their_end_and_in_their_busiest_hour(bench: Bench) -> None:
    year = bench.clock.now.year
    plans = await bench.plans()
    assert list(plans) == [NOW, str(year + 1), str(year + 2)]
    last = plans[str(year + 2)]
    assert last["refresh", OCSP] == pytest.approx(10_000 / REFRESH_S)
    assert last["rotation", OCSP] == pytest.approx(10_000 / DAY_S)
    assert last["issuance", ISSUING] == pytest.approx(10 * 10_000 / (250 * 8 * HOUR_S))
    assert last["issuance", OCSP] == last["issuance", ISSUING]
    bench.clock.advance(days=366)
    assert list(await bench.plans()) == [NOW, str(year + 2)], "the year has come"


async def test_answers_for_a_second_hash_count_in_every_plan(bench: Bench) -> None:
    issued = await bench.parts.issuance.issue(order())
    ones = bench.count("ocsp_responses")
    await bench.parts.publisher.ensure_published(issued.serial, "sha256")
    ratio = (ones + 1) / ones
    plans = await bench.plans()
    assert plans[NOW]["refresh", OCSP] == pytest.approx((ones + 1) / REFRESH_S)
    for plan in plans.values():
        assert plan["issuance", OCSP] == pytest.approx(plan["issuance", ISSUING] * ratio)
    assert plans[str(bench.clock.now.year + 1)]["refresh", OCSP] == pytest.approx(5000 * ratio / REFRESH_S)


async def test_issuance_is_the_rate_of_the_last_hour_or_day_whichever_is_larger(bench: Bench) -> None:
    first = bench.count("certificates")
    bench.clock.advance(hours=2)
    assert (await bench.now())["issuance", ISSUING] == pytest.approx(first / DAY_S)
    await bench.issue(2)
    assert (await bench.now())["issuance", ISSUING] == pytest.approx(2 / HOUR_S)
    bench.clock.advance(hours=23)
    assert (await bench.now())["issuance", ISSUING] == pytest.approx(2 / DAY_S)
    bench.clock.advance(hours=2)
    assert (await bench.now())["issuance", ISSUING] == 0


async def test_bulk_work_does_not_count_as_a_commitment_against_itself(bench: Bench) -> None:
    bench.clock.advance(days=2)
    assert (await bench.now())["issuance", ISSUING] == 0
    bench.budget.delay_bulk(ISSUING, 3)
    await bench.issue(3)
    assert (await bench.now())["issuance", ISSUING] == 0
    bench.clock.advance(hours=2)
    await bench.issue(1)
    assert (await bench.now())["issuance", ISSUING] == pytest.approx(1 / HOUR_S)
    bench.clock.advance(hours=23)
    assert (await bench.now())["issuance", ISSUING] == pytest.approx(1 / DAY_S), "bulk of the day before is past"


async def test_live_responses_are_counted_every_ten_minutes_and_end_with_their_certificate(bench: Bench) -> None:
    before = await bench.now()
    await bench.issue(2)
    assert (await bench.now())["refresh", OCSP] == before["refresh", OCSP]
    bench.clock.advance(minutes=10)
    assert (await bench.now())["refresh", OCSP] == pytest.approx(before["refresh", OCSP] + 2 / REFRESH_S)
    bench.clock.advance(days=-1)
    bench.table.rows("delete from ocsp_responses where serial = (select min(serial) from ocsp_responses)")
    assert (await bench.now())["refresh", OCSP] == pytest.approx(before["refresh", OCSP] + 1 / REFRESH_S)
    bench.table.rows("update ocsp_responses set not_after = ?", epoch(bench.clock()) - 1)
    bench.clock.advance(days=1)
    assert (await bench.now())["refresh", OCSP] == 0
    assert (await bench.now())["issuance", OCSP] == (await bench.now())["issuance", ISSUING]


async def test_the_ratio_of_responses_is_that_of_this_issuer(bench: Bench) -> None:
    issued = [await bench.parts.issuance.issue(order()) for _ in range(2)]
    await bench.parts.publisher.ensure_published(issued[0].serial, "sha256")
    bench.table.rows("update ocsp_responses set issuer = 'other' where serial = ?", serial_hex(issued[1].serial))
    ones = bench.count("ocsp_responses where issuer = 'issuing' and hash_name = 'sha1'")
    now = await bench.now()
    assert now["issuance", OCSP] / now["issuance", ISSUING] == pytest.approx((ones + 1) / ones)


async def test_nothing_is_overdue_before_its_time(bench: Bench) -> None:
    await bench.issue()
    assert await bench.freshness() == Freshness(0, None)


@pytest.mark.parametrize(
    ("life_h", "limit_h"),
    [(8, 4), (15.5, 7.75), (16, 8), (96, 88), (104, 96), (168, 96)],
)
async def test_the_hard_limit_is_that_of_the_baseline_requirements(
    bench: Bench, life_h: float, limit_h: float
) -> None:
    now = epoch(bench.clock())
    bench.table.rows(
        "update ocsp_responses set this_update = ?, next_update = ?, refresh_at = ?",
        now,
        now + int(life_h * HOUR_S),
        now,
    )
    assert await bench.freshness() == Freshness(bench.count("ocsp_responses"), limit_h * HOUR_S)
    bench.clock.advance(hours=200)
    assert (await bench.freshness()).slack_s == (limit_h - 200) * HOUR_S


async def test_the_nearest_limit_counts_and_only_of_this_issuers_live_certificates(bench: Bench) -> None:
    issued = [await bench.parts.issuance.issue(order()) for _ in range(3)]
    now = epoch(bench.clock())
    overdue = "update ocsp_responses set refresh_at = ?, this_update = ?, next_update = ? where serial = ?"
    for one, age_h in zip(issued, (50, 60, 70), strict=True):
        start = now - age_h * HOUR_S
        bench.table.rows(overdue, now - age_h, start, start + 96 * HOUR_S, serial_hex(one.serial))
    assert await bench.freshness() == Freshness(3, (88 - 70) * HOUR_S)
    oldest = "where serial = ?", serial_hex(issued[2].serial)
    bench.table.rows(f"update ocsp_responses set not_after = 1 {oldest[0]}", oldest[1])
    assert await bench.freshness() == Freshness(2, (88 - 60) * HOUR_S)
    bench.table.rows(f"update ocsp_responses set not_after = {now}, issuer = 'other' {oldest[0]}", oldest[1])
    assert await bench.freshness() == Freshness(2, (88 - 60) * HOUR_S)


async def test_the_loop_commits_and_outlives_a_database_that_fails(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commitments, "INTERVAL_S", 0.01)
    bench.table.rows("alter table ocsp_responses rename to away")
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(bench.commitments.run())
        await until(lambda: len(bench.log.entries) >= 2)
        assert not bench.budget.plans
        assert {entry["event"] for entry in bench.log.entries} == {
            "signing commitments not counted, will try again"
        }
        bench.table.rows("alter table away rename to ocsp_responses")
        await until(lambda: bench.budget.plans)
        task.cancel()
    assert bench.budget.plans[0].name == NOW


async def test_overdue_responses_hold_bulk_work_back(bench: Bench) -> None:
    now = epoch(bench.clock())
    bench.table.rows(
        "update ocsp_responses set refresh_at = ?, this_update = ?, next_update = ?",
        now,
        now - 88 * HOUR_S,
        now + 8 * HOUR_S,
    )
    bench.budget.commit(*await bench.commitments.collect())
    with pytest.raises(BudgetExceeded) as caught:
        bench.budget.delay_bulk(ISSUING, 1)
    assert caught.value.reason == "freshness"
    await bench.parts.refresher.refresh_once()
    bench.budget.commit(*await bench.commitments.collect())
    assert bench.budget.delay_bulk(ISSUING, 1) == 0


async def test_a_round_reads_by_index_and_scans_no_table_of_certificates(bench: Bench) -> None:
    await bench.issue(3)
    await bench.commitments.collect()
    statements: list[tuple[str, tuple[object, ...]]] = []

    def note(
        _connection: object, _cursor: object, statement: str, parameters: tuple[object, ...], *_: object
    ) -> None:
        if statement != "BEGIN":
            statements.append((statement, parameters))

    driver = bench.parts.database._engine
    assert isinstance(driver, SqliteEngine)
    engine = driver._readers.sync_engine
    event.listen(engine, "before_cursor_execute", note)
    await bench.commitments.collect()
    event.remove(engine, "before_cursor_execute", note)
    assert len(statements) <= 10
    plans = [str(bench.table.rows("explain query plan " + text, *values)) for text, values in statements]
    assert all("SEARCH" in plan and "SCAN" not in plan for plan in plans), plans
    assert any("ix_ocsp_responses_issuer" in plan for plan in plans)
    assert sum("ocsp_responses" in plan for plan in plans) == 1, "live responses are not counted again so soon"
