"""Whatever fails while a certificate is issued, nothing is lost, doubled or released unrecorded."""

import asyncio
import dataclasses
import datetime as dt
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NoReturn

import pytest
from cryptography import x509
from sqlalchemy.ext.asyncio import AsyncConnection

from ocsp.errors import StoreError
from ocsp.store import ResponseKey, Status, StoredResponse
from pkix.errors import LintError
from server.app import Parts
from server.auth.clients import Client
from server.errors import IdempotencyConflict, NotPermitted, Overloaded, StorageError
from signer_pool.errors import PoolFull, PoolUnavailable
from tests.support.authority import (
    MINISTRY,
    MovableClock,
    Prepared,
    Table,
    authority,
    order,
    prepare,
    software_config,
    stored_status,
)
from tests.support.ca import make_csr


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table(tmp_path)


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    return prepare(software_config(tmp_path, CERTMILL_ISSUANCE_BATCH_AGE_MS="5"))


@pytest.fixture
async def parts(prepared: Prepared, clock: MovableClock) -> AsyncIterator[Parts]:
    async with authority(prepared, clock) as opened:
        yield opened


def signatures(parts: Parts) -> float:
    """Count what the pool has signed."""
    return sum(
        sample.value
        for metric in parts.registry.collect()
        for sample in metric.samples
        if sample.name == "certmill_signer_signatures_total"
    )


async def test_without_its_audit_entry_nothing_is_signed(parts: Parts, table: Table) -> None:
    table.fail("insert on audit_log")
    before = signatures(parts)
    with pytest.raises(StorageError):
        await parts.issuance.issue(order(key="k"))
    assert signatures(parts) == before
    assert table.states() == []
    table.mend()
    assert not (await parts.issuance.issue(order(key="k"))).replayed


async def test_a_certificate_that_cannot_be_recorded_is_never_released(parts: Parts, table: Table) -> None:
    csr = make_csr()
    table.fail("update of der on certificates")
    with pytest.raises(StorageError):
        await parts.issuance.issue(order(key="k", csr=csr))
    assert table.states() == ["abandoned"]
    table.mend()
    issued = await parts.issuance.issue(order(key="k", csr=csr))
    assert not issued.replayed
    assert table.states() == ["abandoned", "issued"]


async def test_intents_that_could_not_be_closed_are_closed_by_the_retry(parts: Parts, table: Table) -> None:
    csr = make_csr()
    table.fail("update on certificates")
    with pytest.raises(StorageError):
        await parts.issuance.issue(order(key="k", csr=csr))
    assert table.states() == ["intent"]
    table.mend()
    await parts.issuance.issue(order(key="k", csr=csr))
    assert table.states() == ["abandoned", "issued"]


async def test_intents_whose_commit_only_seemed_to_fail_are_closed_and_not_counted(
    parts: Parts, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    await parts.issuance.issue(order())  # so that the next has a known shape: nothing else is written
    writing, faults = parts.database._engine.writing, iter([1])

    @asynccontextmanager
    async def doubtful() -> AsyncIterator[AsyncConnection]:
        async with writing() as connection:
            yield connection
        if next(faults, None) is not None:
            raise sqlite3.OperationalError("the connection was lost after the commit")

    monkeypatch.setattr(parts.database._engine, "writing", doubtful)
    with pytest.raises(StorageError):
        await parts.issuance.issue(order())
    assert table.states() == ["issued", "abandoned"]
    assert table.rows("select issued from client_usage where client = 'ministry'") == [(1,)]


async def test_intents_that_a_crash_left_are_closed_at_the_next_start(
    prepared: Prepared, clock: MovableClock, table: Table
) -> None:
    async with authority(prepared, clock) as first:
        table.fail("update on certificates")
        with pytest.raises(StorageError):
            await first.issuance.issue(order(key="k"))
        table.mend()
    assert table.states() == ["intent"]
    async with authority(prepared, clock) as second:
        assert table.states() == ["abandoned"]
        assert not (await second.issuance.issue(order(key="k"))).replayed
        assert table.rows("select count(*) from audit_log where action = 'certificate.abandoned'") == [(1,)]


async def test_a_dead_hsm_abandons_the_batch_and_says_so(parts: Parts, table: Table) -> None:
    async def dead(*_arguments: object, **_options: object) -> NoReturn:
        raise PoolUnavailable("no lane")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts.pool, "sign_many", dead)
        with pytest.raises(PoolUnavailable):
            await parts.issuance.issue(order())
    assert table.states() == ["abandoned"]


async def test_a_store_that_fails_delays_the_answer_but_loses_nothing(parts: Parts, table: Table) -> None:
    async def full(_responses: Sequence[tuple[ResponseKey, StoredResponse]]) -> NoReturn:
        raise StoreError("full")

    csr = make_csr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts.reconciler.store, "publish", full)
        with pytest.raises(StoreError):
            await parts.issuance.issue(order(key="k", csr=csr))
        assert table.states() == ["issued"]
    issued = await parts.issuance.issue(order(key="k", csr=csr))
    assert issued.replayed
    assert await stored_status(parts, issued.serial) is Status.GOOD


async def test_a_store_that_fails_is_caught_up_by_the_refresher(parts: Parts) -> None:
    async def full(_responses: Sequence[tuple[ResponseKey, StoredResponse]]) -> NoReturn:
        raise StoreError("full")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts.reconciler.store, "publish", full)
        with pytest.raises(StoreError):
            await parts.issuance.issue(order())
    assert await parts.refresher.refresh_once() >= 1
    assert await parts.reconciler.reconcile() == 0


async def test_a_caller_who_gives_up_does_not_stop_the_certificate(parts: Parts, table: Table) -> None:
    csr = make_csr()
    impatient = asyncio.create_task(parts.issuance.issue(order(key="k", csr=csr)))
    await asyncio.sleep(0)
    impatient.cancel()
    with pytest.raises(asyncio.CancelledError):
        await impatient
    issued = await parts.issuance.issue(order(key="k", csr=csr))
    assert table.states() == ["issued"]
    assert await stored_status(parts, issued.serial) is Status.GOOD


async def test_one_key_one_certificate_for_simultaneous_calls(parts: Parts, table: Table) -> None:
    csr = make_csr()
    calls = [order(key="k", csr=csr) for _ in range(20)]
    issued = await asyncio.gather(*map(parts.issuance.issue, calls))
    assert len({i.serial for i in issued}) == 1
    assert [i.replayed for i in issued].count(False) == 1
    assert table.states() == ["issued"]
    with pytest.raises(IdempotencyConflict):
        await parts.issuance.issue(order("b.example.gov", key="k"))


async def test_a_conflicting_call_in_flight_is_refused(parts: Parts) -> None:
    first = asyncio.create_task(parts.issuance.issue(order(key="k")))
    await asyncio.sleep(0)
    with pytest.raises(IdempotencyConflict):
        await parts.issuance.issue(order("b.example.gov", key="k"))
    await first


async def test_keys_of_different_clients_are_different_keys(parts: Parts) -> None:
    other = dataclasses.replace(MINISTRY, name="other")
    first = await parts.issuance.issue(order(key="k"))
    second = await parts.issuance.issue(order(key="k", client=other))
    assert first.serial != second.serial


async def test_a_burst_is_issued_in_few_batches(parts: Parts, table: Table) -> None:
    issued = await asyncio.gather(*(parts.issuance.issue(order(f"h{n}.example.gov")) for n in range(100)))
    assert len({i.serial for i in issued}) == 100
    assert table.states() == ["issued"] * 100
    batches = parts.registry.get_sample_value("certmill_issuance_batch_size_count")
    assert batches is not None
    assert batches < 30


async def test_a_full_queue_is_an_immediate_answer(parts: Parts) -> None:
    def full(_item: object, **_more: object) -> NoReturn:
        raise PoolFull("full")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts.issuance._interactive, "submit", full)
        with pytest.raises(Overloaded):
            await parts.issuance.issue(order())


async def test_an_order_without_time_stops_before_the_key_is_asked(parts: Parts, table: Table) -> None:
    before = signatures(parts)
    with pytest.raises(LintError):
        await parts.issuance.issue(dataclasses.replace(order(), lifetime=dt.timedelta(days=-1)))
    assert signatures(parts) == before
    assert table.states() == []


@pytest.mark.parametrize(
    ("client", "name", "permitted"),
    [
        (Client(name="c", profiles=("tls-server",), names=("ministry.gov",)), "www.ministry.gov", True),
        (Client(name="c", profiles=("tls-server",), names=("ministry.gov",)), "ministry.gov", True),
        (Client(name="c", profiles=("tls-server",), names=("ministry.gov",)), "notministry.gov", False),
        (Client(name="c", profiles=("tls-server",), names=("ministry.gov",)), "192.0.2.1", False),
        (Client(name="c", profiles=("tls-client",), names=("*",)), "ministry.gov", False),
    ],
)
async def test_a_client_gets_only_what_it_may_ask_for(
    parts: Parts, client: Client, name: str, permitted: bool
) -> None:
    if permitted:
        await parts.issuance.issue(order(name, client=client))
        return
    with pytest.raises(NotPermitted):
        await parts.issuance.issue(order(name, client=client))


async def test_two_contents_never_share_a_serial(parts: Parts, table: Table) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("server.preparing.preparer.new_serial", lambda: 1 << 100)
        first = await parts.issuance.issue(order("a.example.gov"))
        with pytest.raises(StorageError):
            await parts.issuance.issue(order("b.example.gov"))
    assert x509.load_der_x509_certificate(first.certificate_der).serial_number == 1 << 100
    assert table.states() == ["issued"]
