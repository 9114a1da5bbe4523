"""Rows of batches are prepared in other processes, as the authority itself would; without them it does."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from pkix.asked import AskedNames
from pkix.csr import request_der
from pkix.errors import (
    KeyRejected,
    LintError,
    MalformedCsr,
    ProfileViolation,
    ProofOfPossessionFailed,
    RequesterError,
)
from pkix.lint import lint_certificate
from server.app import Parts
from server.auth.clients import Client
from server.errors import NotPermitted
from server.issuance.order import BatchRow, Order, PreparedOrder
from server.preparing.frames import Made, Prepare, Refused
from server.preparing.frames import Prepared as Answer
from server.preparing.refusals import raised, told
from server.workers.process import WorkerProcess
from tests.support.authority import MovableClock, Prepared, authority, order, prepare, software_config
from tests.support.ca import make_csr
from tests.support.profiles import TLS_CLIENT


def unproven(pem: bytes) -> bytes:
    """Return the request with another bit in its signature."""
    der = bytearray(x509.load_pem_x509_csr(pem).public_bytes(Encoding.DER))
    der[-1] ^= 1
    return bytes(der)


CHANGES: list[dict[str, Any]] = [
    {"csr": b"not a CSR"},
    {"csr": unproven(make_csr("a.example.gov"))},
    {"csr": make_csr("under_score.gov")},
    {"client": Client(name="narrow", profiles=("*",), names=("ministry.gov",))},
    {"asked": AskedNames(subject=(("CN", "b.example.gov"),))},
    {"profile": TLS_CLIENT, "csr": make_csr("e-licence")},
    {"csr": make_csr("a.example.gov")},
]


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    return prepare(software_config(tmp_path))


@pytest.fixture
async def parts(prepared: Prepared) -> AsyncIterator[Parts]:
    async with authority(prepared, MovableClock()) as opened:
        yield opened


def row(number: int = 1, **changes: Any) -> Order:
    return replace(order(), row=BatchRow(job="j", number=number), **changes)


async def outcome(parts: Parts, wanted: Order) -> object:
    """Return what is comparable of preparing an order: a refusal with all that it says, or the certificate."""
    try:
        prepared = await parts.issuance.prepare(wanted)
    except Exception as error:
        said = {name: value for name, value in vars(error).items() if not name.startswith("_")}
        return type(error), str(error), said
    certificate = prepared.certificate
    return certificate.subject, certificate.names, certificate.not_before, certificate.not_after, prepared.csr_der


async def processes_ready(parts: Parts, and_also: Callable[[], bool] = lambda: True) -> None:
    async with asyncio.timeout(60):
        for _ in iter(lambda: bool(parts.metrics.preparing_workers._value.get()) and and_also(), True):
            await asyncio.sleep(0.01)


async def workshop_ready(parts: Parts) -> None:
    """Wait until a process of the workshop is there; the first order has asked for it."""
    await parts.issuance.prepare(row())
    await processes_ready(parts)


async def test_the_workshop_prepares_and_refuses_as_the_authority_does(parts: Parts) -> None:
    here = [await outcome(parts, row(**changes)) for changes in CHANGES]
    assert parts.metrics.orders_prepared.labels("authority")._value.get() > 0
    await workshop_ready(parts)
    before = parts.metrics.orders_prepared.labels("workshop")._value.get()
    async with asyncio.TaskGroup() as group:  # all in one frame
        tasks = [group.create_task(outcome(parts, row(**changes))) for changes in CHANGES]
    there = [task.result() for task in tasks]
    assert [o[0] for o in there[:5]] == [  # type: ignore[index]
        MalformedCsr, ProofOfPossessionFailed, ProfileViolation, NotPermitted, ProfileViolation,
    ]  # fmt: skip
    assert there == here
    assert parts.metrics.orders_prepared.labels("workshop")._value.get() == before + 2, "two were good"


async def test_what_comes_from_the_workshop_is_linted_and_can_be_issued(parts: Parts) -> None:
    await workshop_ready(parts)
    prepared = await parts.issuance.prepare(row())
    lint_certificate(prepared.certificate, parts.hierarchy.issuing, now=parts.clock())
    assert prepared.certificate.serial >= 1 << 64


async def test_a_workshop_that_dies_costs_no_row(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    assert parts.issuance._workshop is not None
    start = parts.issuance._workshop._pool._start

    async def noted() -> WorkerProcess:
        process = await start()
        started.append(process.pid)
        return process

    monkeypatch.setattr(parts.issuance._workshop._pool, "_start", noted)
    await workshop_ready(parts)
    for turn in (1, 2):
        pid = started[-1]
        os.kill(pid, signal.SIGSTOP)  # it has taken the frame when it dies
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(parts.issuance.prepare(row(n))) for n in range(40)]
            await asyncio.sleep(0.05)
            os.kill(pid, signal.SIGKILL)
        assert all(isinstance(task.result(), PreparedOrder) for task in tasks)
        await processes_ready(parts, lambda before=turn: len(started) > before)  # type: ignore[misc]


async def test_bytes_that_changed_on_the_way_are_not_signed(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    await workshop_ready(parts)
    ask = WorkerProcess.ask
    broken: list[str] = []

    async def flipped(process: WorkerProcess, request: Prepare, kind: type[Answer]) -> Answer:
        answer = await ask(process, request, kind)
        if kind is not Answer:  # the linter asks its processes so too
            return answer
        (made,) = answer.results
        if not broken:
            assert isinstance(made, Made)
            broken.append("tbs")
            return Answer([_changed(made)])
        broken.append("count")
        return Answer([made, made])

    monkeypatch.setattr(WorkerProcess, "ask", flipped)
    before = parts.metrics.orders_prepared.labels("authority")._value.get()
    for number in (1, 2):
        prepared = await parts.issuance.prepare(row(number))
        lint_certificate(prepared.certificate, parts.hierarchy.issuing, now=parts.clock())
    assert broken == ["tbs", "count"]
    assert parts.metrics.orders_prepared.labels("authority")._value.get() == before + 2


def _changed(made: Made) -> Made:
    tbs = bytearray(made.tbs)
    tbs[-1] ^= 1
    return msgspec.structs.replace(made, tbs=bytes(tbs))


def _swapped(answer: Answer) -> Answer:
    """Everything is another's."""
    return Answer(answer.results[::-1])


def _disguised(answer: Answer) -> Answer:
    """The certificate is another's, and says that it is the right one."""
    first, second = answer.results
    assert isinstance(first, Made)
    assert isinstance(second, Made)
    said = ("profile", "fingerprint", "csr_der")
    return Answer(
        [
            msgspec.structs.replace(second, **{name: getattr(first, name) for name in said}),
            msgspec.structs.replace(first, **{name: getattr(second, name) for name in said}),
        ]
    )


def _renumbered(answer: Answer) -> Answer:
    """The serial number is not the certificate's."""
    return Answer([msgspec.structs.replace(made, serial=b"\x01" * 16) for made in answer.results])


@pytest.mark.parametrize("confuse", [_swapped, _disguised, _renumbered])
@pytest.mark.parametrize("key", ["same key", "keys of their own"])
async def test_a_confused_workshop_gives_nobody_another_s_certificate(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, confuse: Callable[[Answer], Answer], key: str
) -> None:
    await workshop_ready(parts)
    ask = WorkerProcess.ask

    async def confused(process: WorkerProcess, request: Prepare, kind: type[Answer]) -> Answer:
        answer = await ask(process, request, kind)
        return confuse(answer) if kind is Answer else answer  # the linter asks its processes so too

    monkeypatch.setattr(WorkerProcess, "ask", confused)
    before = parts.metrics.orders_prepared.labels("authority")._value.get()
    shared = ec.generate_private_key(ec.SECP256R1()) if key == "same key" else None
    names = ("tax.gov", "customs.gov")
    asked = [
        row(csr=make_csr(f"a.{name}", key=shared), client=Client(name=name, profiles=("*",), names=(name,)))
        for name in names
    ]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(parts.issuance.prepare(one)) for one in asked]
    for one, task in zip(asked, tasks, strict=True):
        prepared = task.result()
        assert prepared.order is one
        assert prepared.certificate.dns_names == (f"a.{one.client.name}",)
        assert prepared.csr_der == request_der(one.csr)
        lint_certificate(prepared.certificate, parts.hierarchy.issuing, now=parts.clock())
    assert parts.metrics.orders_prepared.labels("authority")._value.get() == before + 2


async def test_a_confused_workshop_refuses_nobody_for_another(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    await workshop_ready(parts)
    ask = WorkerProcess.ask

    async def confused(process: WorkerProcess, request: Prepare, kind: type[Answer]) -> Answer:
        answer = await ask(process, request, kind)
        return _swapped(answer) if kind is Answer else answer

    monkeypatch.setattr(WorkerProcess, "ask", confused)
    async with asyncio.TaskGroup() as group:
        good = group.create_task(parts.issuance.prepare(row()))
        bad = group.create_task(outcome(parts, row(csr=b"not a CSR")))
    assert good.result().certificate.dns_names == ("a.example.gov",)
    assert bad.result()[0] is MalformedCsr  # type: ignore[index]


def test_refusals_survive_the_way_and_unknown_ones_do_not() -> None:
    errors: list[RequesterError | NotPermitted | LintError] = [
        KeyRejected("weak", field="csr", remedy="make another"),
        NotPermitted("no", remedy="ask", field="csr", limit="organizations"),
        LintError("RFC 5280 §4.1: broken"),
    ]
    for error in errors:
        back = raised(told(error))
        assert type(back) is type(error)
        assert str(back) == str(error)
        assert vars(back) == vars(error)
    assert raised(Refused(kind="Exception", detail="?")) is None
