"""The loops beside the API: they outlive faults, say so, and go on; and the socket on which workers ask for answers."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest
from aiohttp.test_utils import TestClient, TestServer
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from ocsp import presigner
from ocsp.store import Status
from pkix.names import serial_hex
from pkix.ocsp_request import UNAUTHORIZED
from pkix.ocsp_response import PreparedResponse, Responder, assemble_response
from server.app import Parts
from server.clock import epoch
from server.metrics import AuthorityMetrics
from server.revocation import crl_publisher
from server.status import reconciler, refresher
from server.web.listeners import application
from server.web.middleware import observe
from server.web.ocsp_signing import OcspSigningApi
from signer_pool.errors import PoolUnavailable
from tests.support.authority import (
    MovableClock,
    Prepared,
    Table,
    authority,
    order,
    prepare,
    quiet_logger,
    software_config,
    stored_status,
)
from tests.support.ca import make_ca
from tests.support.ocsp_client import ocsp_request_der


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table(tmp_path)


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    return prepare(software_config(tmp_path, CERTMILL_CRL_DEBOUNCE_S="0"))


@pytest.fixture
async def parts(prepared: Prepared, clock: MovableClock, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Parts]:
    for module, names in (
        (refresher, ["INTERVAL_S"]),
        (reconciler, ["INTERVAL_S", "FAILED_INTERVAL_S"]),
        (crl_publisher, ["LOOK_S", "RETRY_S"]),
    ):
        for name in names:
            monkeypatch.setattr(module, name, 0.01)
    async with authority(prepared, clock) as opened:
        yield opened


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - what another task does to the database has no event
            await asyncio.sleep(0.01)


async def dead(*_arguments: object, **_options: object) -> NoReturn:
    raise PoolUnavailable("no lane")


@asynccontextmanager
async def running(loop: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run one of the loops; fail with its own error if it ends before the block does."""
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(loop)
        yield
        assert not task.done()
        task.cancel()


def value(metrics: AuthorityMetrics, name: str) -> float:
    return float(getattr(metrics, name)._value.get())


async def test_refresher_outlives_a_database_that_refuses(parts: Parts, clock: MovableClock, table: Table) -> None:
    issued = await parts.issuance.issue(order())
    query = ("select this_update from ocsp_responses where serial = ?", serial_hex(issued.serial))
    before = table.rows(*query)
    assert len(before) == 1
    clock.advance(days=4)
    table.fail("update on ocsp_responses")
    async with running(parts.refresher.run()):
        await until(lambda: value(parts.metrics, "ocsp_refresh_failures") >= 2)
        table.mend()
        await until(lambda: table.rows(*query) != before)


async def test_comparison_outlives_a_database_that_refuses(parts: Parts, table: Table, tmp_path: Path) -> None:
    issued = await parts.issuance.issue(order())
    presigner = parts.publisher.presigner
    await parts.reconciler.store.remove_many([presigner.key(issued.serial, "sha1")])
    table.fail("update on ocsp_responses")
    async with running(parts.reconciler.run()):
        await until(lambda: value(parts.metrics, "ocsp_comparison_failures") >= 1)
        table.mend()
        await parts.reconciler.store.remove_many([presigner.key(issued.serial, "sha1")])
        await until(lambda: value(parts.metrics, "ocsp_repaired") >= 1)
    assert await stored_status(parts, issued.serial) is Status.GOOD


def garbled(prepared: PreparedResponse, responder: Responder, signature: bytes) -> bytes:
    return assemble_response(prepared, responder, signature[:-1] + bytes((signature[-1] ^ 1,)))


async def test_loops_outlive_answers_that_do_not_verify(parts: Parts, clock: MovableClock) -> None:
    issued = await parts.issuance.issue(order())
    clock.advance(days=4)
    store, key = parts.reconciler.store, parts.publisher.presigner.key(issued.serial, "sha1")
    before = await store.get(key)
    async with running(parts.refresher.run()), running(parts.reconciler.run()):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(presigner, "assemble_response", garbled)
            for counter in ("ocsp_refresh_failures", "ocsp_comparison_failures"):
                await until(lambda counter=counter: value(parts.metrics, counter) >= 2)  # type: ignore[misc]
            assert await store.get(key) == before, "nothing that does not verify is published"
        async with asyncio.timeout(30):
            while await store.get(key) == before:  # noqa: ASYNC110 - the loop signs it when it likes
                await asyncio.sleep(0.01)


async def test_crl_publisher_outlives_a_directory_that_is_gone(parts: Parts, prepared: Prepared) -> None:
    directory = prepared.config.home / "public" / "crl"
    aside = prepared.config.home / "aside"
    publisher = parts.crl_publishers[1]
    path = directory / "issuing.crl"
    directory.rename(aside)
    async with running(publisher.run()):
        failures = parts.metrics.crl_failures.labels("issuing")._value
        await until(lambda: failures.get() >= 2)
        (aside / "issuing.crl").unlink()
        aside.rename(directory)
        await until(path.exists)


async def test_crl_is_published_when_the_clock_jumps_past_its_interval(
    parts: Parts, clock: MovableClock, table: Table
) -> None:
    count = "select count(*) from crls where issuer = 'issuing'"
    assert table.rows(count) == [(1,)], "published before anybody can call"
    async with running(parts.crl_publishers[1].run()):
        await asyncio.sleep(0.1)
        assert table.rows(count) == [(1,)], "a start alone is no reason to use a CA's key"
        clock.advance(days=2)
        await until(lambda: table.rows(count) == [(2,)])


async def test_revocation_that_a_crash_kept_from_the_crl_is_on_it_before_anybody_can_call(
    parts: Parts, prepared: Prepared, table: Table
) -> None:
    issued = await parts.issuance.issue(order())
    revoked = "update certificates set revoked_at = ?, reason = 'superseded' where serial = ?"
    table.rows(revoked, epoch(parts.clock()), serial_hex(issued.serial))  # and then the lights went out
    publisher, path = parts.crl_publishers[1], prepared.config.home / "public/crl/issuing.crl"
    await publisher.ensure()
    assert len(x509.load_der_x509_crl(path.read_bytes())) == 1


async def test_crl_that_could_not_be_published_at_the_start_is_published_later(
    parts: Parts, prepared: Prepared
) -> None:
    publisher, path = parts.crl_publishers[1], prepared.config.home / "public/crl/issuing.crl"
    path.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts.pool, "sign", dead)
        await publisher.ensure()
    assert not path.exists()
    async with running(publisher.run()):
        await until(path.exists)


@pytest.fixture
async def signing(parts: Parts) -> AsyncIterator[TestClient]:  # type: ignore[type-arg]  # of any application
    middleware = observe("internal", deadline_s=10, metrics=parts.metrics, logger=quiet_logger())
    routes = OcspSigningApi(issuer=parts.hierarchy.issuing, publisher=parts.publisher).routes()
    app = application(routes, middleware, max_body_bytes=10_000)
    async with TestClient(TestServer(app)) as client:
        yield client


async def test_answers_are_signed_on_demand_once(parts: Parts, signing: TestClient) -> None:  # type: ignore[type-arg]
    issued = await parts.issuance.issue(order())
    certificate = x509.load_der_x509_certificate(issued.certificate_der)
    issuer = parts.hierarchy.issuing.certificate
    request = ocsp_request_der(certificate, issuer, "sha256")
    assert await stored_status(parts, issued.serial, "sha256") is None
    bodies = [await (await signing.post("/ocsp/sign", data=request)).read() for _ in range(2)]
    assert bodies[0] == bodies[1]
    assert ocsp.load_der_ocsp_response(bodies[0]).certificate_status is ocsp.OCSPCertStatus.GOOD
    assert await stored_status(parts, issued.serial, "sha256") is Status.GOOD


async def test_nothing_is_signed_for_strangers(parts: Parts, signing: TestClient) -> None:  # type: ignore[type-arg]
    issuer = parts.hierarchy.issuing.certificate
    foreign = make_ca().issuer.certificate
    never = ocsp.OCSPRequestBuilder().add_certificate_by_hash(
        *parts.hierarchy.issuing.hashes("sha256"), 12345, hashes.SHA256()
    )
    for request in (
        ocsp_request_der(foreign, foreign, "sha256"),
        ocsp_request_der(issuer, parts.hierarchy.root.certificate, "sha1"),
        never.build().public_bytes(Encoding.DER),
    ):
        answer = await signing.post("/ocsp/sign", data=request)
        assert (answer.status, await answer.read()) == (200, UNAUTHORIZED)
    assert (await signing.post("/ocsp/sign", data=b"nonsense")).status == 400
