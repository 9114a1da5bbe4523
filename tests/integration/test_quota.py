"""The yearly quota of a client: counted in the transactions, never exceeded, refused item by item."""

import asyncio
import dataclasses
import datetime as dt
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import update

from pkix.names import serial_hex
from server.app import Parts
from server.auth.clients import Client
from server.errors import QuotaExhausted, StorageError
from server.issuance.order import IssuedCertificate
from server.storage.schema import clients
from server.usage import gauges as gauges_module
from server.usage.gauges import UsageGauges
from server.usage.report import UsageReports
from tests.support.authority import (
    MovableClock,
    Prepared,
    Table,
    authority,
    order,
    prepare,
    quiet_logger,
    software_config,
)

TAX = Client(name="tax", profiles=("*",), names=("*",))
FREE = Client(name="free", profiles=("*",), names=("*",))


@pytest.fixture
def clock() -> MovableClock:
    clock = MovableClock()
    clock.now = dt.datetime(clock.now.year + 1, 12, 31, 23, 0, tzinfo=dt.UTC)
    return clock


@pytest.fixture
def prepared(home: Path) -> Prepared:
    return prepare(software_config(home))


@pytest.fixture
async def parts(prepared: Prepared, clock: MovableClock) -> AsyncIterator[Parts]:
    async with authority(prepared, clock) as opened:
        await opened.clients.enrol(TAX, b"t" * 32)
        await opened.clients.enrol(FREE, b"f" * 32)
        yield opened


async def allow(parts: Parts, quota: int | None) -> None:
    async with parts.database.write() as connection:
        await connection.execute(update(clients).where(clients.c.name == TAX.name).values(yearly_quota=quota))


async def ask(parts: Parts, count: int, client: Client = TAX) -> list[IssuedCertificate | BaseException]:
    """Ask for so many certificates at once."""

    async def one(number: int) -> IssuedCertificate | BaseException:
        try:
            return await parts.issuance.issue(order(f"{number}.example.gov", client=client))
        except (QuotaExhausted, StorageError) as error:
            return error

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(number)) for number in range(count)]
    return [task.result() for task in tasks]


def counted(home: Path, client: str = "tax") -> dict[object, object]:
    return dict(Table(home).rows("select year, issued from client_usage where client = ?", client))  # type: ignore[arg-type]


def kept(home: Path) -> int:
    query = "select count(*) from certificates where client = 'tax' and state <> 'abandoned'"
    return int(str(Table(home).rows(query)[0][0]))


async def test_calls_at_once_never_exceed_the_quota_and_batch_mates_are_served(parts: Parts, home: Path) -> None:
    await allow(parts, 5)
    async with asyncio.TaskGroup() as group:
        limited = group.create_task(ask(parts, 40))
        free = group.create_task(ask(parts, 40, FREE))
    assert sum(isinstance(answer, IssuedCertificate) for answer in limited.result()) == 5
    assert all(isinstance(answer, IssuedCertificate) for answer in free.result())
    assert kept(home) == 5
    assert list(counted(home).values()) == [5]


async def test_refusal_says_how_much_and_until_when(parts: Parts, clock: MovableClock) -> None:
    await allow(parts, 1)
    first, second = await ask(parts, 2)
    assert isinstance(first, IssuedCertificate)
    assert isinstance(second, QuotaExhausted)
    new_year = dt.datetime(clock.now.year + 1, 1, 1, tzinfo=dt.UTC)
    assert second.members == {"limit": 1, "used": 1, "resets_at": new_year}
    assert f"has used 1 of the 1 certificates that it may get in {clock.now.year}" in second.detail
    clock.now = new_year
    (next_year,) = await ask(parts, 1)
    assert isinstance(next_year, IssuedCertificate)


async def test_lowered_quota_holds_at_once_and_none_is_no_limit(parts: Parts, home: Path) -> None:
    await allow(parts, 0)
    assert isinstance((await ask(parts, 1))[0], QuotaExhausted)
    assert list(counted(home).values()) == [0]
    await allow(parts, None)
    assert isinstance((await ask(parts, 1))[0], IssuedCertificate)


async def test_replay_counts_once_and_abandoned_intents_not_at_all(
    parts: Parts, home: Path, clock: MovableClock
) -> None:
    await allow(parts, 2)
    wanted = order(client=TAX, key="once")
    first = await parts.issuance.issue(wanted)
    assert (await parts.issuance.issue(wanted)).serial == first.serial
    assert list(counted(home).values()) == [1]
    table = Table(home)
    table.fail("update of der on certificates")
    with pytest.raises(StorageError):
        await parts.issuance.issue(order(client=TAX, key="twice"))
    table.mend()
    assert list(counted(home).values()) == [1]
    await parts.issuance.issue(order(client=TAX, key="twice-again"))
    assert kept(home) == 2


async def test_intent_that_a_crash_left_is_given_back_to_its_own_year(
    parts: Parts, home: Path, clock: MovableClock
) -> None:
    await allow(parts, 10)
    await ask(parts, 3)
    (year,) = counted(home)
    Table(home).rows("update certificates set state = 'intent' where client = 'tax' and id % 3 = 0")
    clock.advance(hours=2)
    await parts.issuance.recover()
    assert counted(home) == {year: 2}
    assert kept(home) == 2


async def test_metrics_tell_quota_and_use(parts: Parts, clock: MovableClock) -> None:
    gauges = UsageGauges(parts.database, clock, parts.metrics, quiet_logger())
    await allow(parts, 5)
    await ask(parts, 2)

    def told(name: str) -> float | None:
        return parts.registry.get_sample_value(f"certmill_client_{name}_certificates", {"client": "tax"})

    await gauges.refresh()
    assert (told("quota"), told("used")) == (5, 2)
    await allow(parts, None)
    clock.advance(days=1)  # a new year
    await gauges.refresh()
    assert (told("quota"), told("used")) == (None, 0)


async def test_gauges_outlive_a_database_that_is_gone_for_a_while(
    parts: Parts, clock: MovableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = 0

    class Gauges(UsageGauges):
        async def refresh(self) -> None:
            nonlocal rounds
            rounds += 1
            if rounds == 1:
                raise StorageError("gone")
            raise asyncio.CancelledError

    monkeypatch.setattr(gauges_module, "INTERVAL_S", 0)
    with pytest.raises(asyncio.CancelledError):
        await Gauges(parts.database, clock, parts.metrics, quiet_logger()).run()
    assert rounds == 2


async def test_usage_counts_renewals_apart_from_new_ones_and_leaves_out_what_was_renewed(
    parts: Parts, clock: MovableClock
) -> None:
    await allow(parts, 100)
    clock.now = clock.now.replace(year=clock.now.year + 1, month=6, day=30, hour=12)
    first, *_ = await ask(parts, 4)
    assert isinstance(first, IssuedCertificate)
    old = serial_hex(first.serial)
    await parts.issuance.issue(dataclasses.replace(order("0.example.gov", client=TAX), renews=old))
    clock.advance(days=179)  # 26 December: all are due for renewal since they have 200 days, and end in 20 days
    report = await UsageReports(parts.database, clock).of("tax")
    assert (report.used, report.remaining, report.live) == (5, 95, 5)
    assert report.by_month[f"{clock.now.year}-06"] == 5
    assert report.by_profile == {"tls-server": 5}
    assert (report.expiring.days_30, report.expiring.days_90) == (4, 4)  # not the one that was renewed
    assert report.forecast.scheduled_renewals == 4
    assert report.forecast.year_end == 9
    nobody = await UsageReports(parts.database, clock).of("nobody")
    assert (nobody.used, nobody.live, nobody.forecast.year_end) == (0, 0, 0)
