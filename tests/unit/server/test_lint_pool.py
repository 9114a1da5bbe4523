"""The linter's processes: they lint, die, hang and come back; without them nothing is said to be good."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
from prometheus_client import CollectorRegistry

from pkix.unsigned import assemble
from server.config import LintSection
from server.errors import LintUnavailable
from server.linting.findings import Finding, Severity
from server.linting.frames import Lint, Linted
from server.linting.pool import LintPool
from server.linting.worker import MODULE
from server.metrics import AuthorityMetrics
from server.workers.frames import FrameError, decode_frame, encode_frame
from server.workers.process import WorkerProcess
from tests.support.authority import quiet_logger
from tests.support.ca import make_ca
from tests.unit.pkix.test_certificate import prepare

FOUND = [Finding(severity=Severity.ERROR, code="a.rule", where="certificate")]
POISON = b"poison"


class PlayedProcess:
    """A linter's process that does as the test says; certificates are held until `go` is set."""

    version = "played"
    pid = 0

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.go.set()
        self.seen: list[bytes] = []
        self.gone = asyncio.Event()

    async def ask(self, request: Lint, _answer: object) -> Linted:
        self.seen.append(request.certificate_der)
        await self.go.wait()
        if request.certificate_der == POISON:
            raise EOFError
        return Linted(FOUND)

    async def ended(self) -> None:
        await self.gone.wait()

    async def end(self) -> None:
        self.gone.set()


class Played:
    """What the pool starts, and what became of it."""

    def __init__(self) -> None:
        self.processes: list[PlayedProcess] = []
        self.broken = False
        self.started = asyncio.Event()

    async def start(self) -> WorkerProcess:
        if self.broken:
            raise OSError("no memory")
        self.processes.append(PlayedProcess())
        self.started.set()
        return self.processes[-1]  # type: ignore[return-value]


Opener = Callable[..., AbstractAsyncContextManager[LintPool]]


@pytest.fixture
def metrics() -> AuthorityMetrics:
    return AuthorityMetrics(CollectorRegistry())


@pytest.fixture
def played() -> Played:
    return Played()


@pytest.fixture
def opened(metrics: AuthorityMetrics, played: Played) -> Opener:
    @asynccontextmanager
    async def open_pool(**settings: float) -> AsyncIterator[LintPool]:
        section = LintSection(**settings)  # type: ignore[arg-type]
        pool = LintPool.of(section, metrics=metrics, logger=quiet_logger(), start=played.start, pauses_s=(0.01,))
        async with pool:
            yield pool

    return open_pool


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_pkilint_in_a_process_that_dies_hangs_and_is_replaced(metrics: AuthorityMetrics) -> None:
    """Real processes: one of them is killed while idle, one is stopped and misses its deadline."""
    ca = make_ca()
    der = assemble(prepare(ca).tbs, ca.issuer.algorithm, b"\x30\x06\x02\x01\x01\x02\x01\x01")
    processes: list[WorkerProcess] = []

    async def start() -> WorkerProcess:
        processes.append(await WorkerProcess.start(MODULE))
        return processes[-1]

    settings = LintSection(deadline_s=5.0)
    async with LintPool.of(
        settings, metrics=metrics, logger=quiet_logger(), start=start, pauses_s=(0.01,)
    ) as pool:
        assert await pool.lint(der, "pkix") == []
        assert "certificate_policies_extension_absent" in str(await pool.lint(der, "cabf-tls"))
        assert [f.code for f in await pool.lint(b"0", "pkix")] == ["certmill.unreadable"]
        os.kill(processes[0].pid, signal.SIGKILL)
        assert await pool.lint(der, "pkix") == []
        os.kill(processes[1].pid, signal.SIGSTOP)
        assert await pool.lint(der, "pkix") == []  # by the third, after the deadline
        assert len(processes) >= 3
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process.pid, 0)


async def test_a_certificate_that_kills_its_process_twice_is_refused_and_others_are_linted(
    opened: Opener, played: Played
) -> None:
    async with opened() as pool, asyncio.TaskGroup() as group:
        good = group.create_task(pool.lint(b"good", "pkix"))
        assert await _outcome(pool, POISON) == "the linter has failed on this request"
        assert await good == FOUND
        assert await pool.lint(b"also good", "pkix") == FOUND
    assert len(played.processes) == 3


async def test_a_linter_that_cannot_be_started_refuses_all_at_once_until_it_can(
    opened: Opener, played: Played
) -> None:
    played.broken = True
    async with opened() as pool:
        assert await _outcome(pool, b"waits") == "the linter cannot be started"
        assert await _outcome(pool, b"comes later") == "the linter is down"
        played.broken = False
        async with asyncio.timeout(5):
            await played.started.wait()
            await turns()
        assert await pool.lint(b"good", "pkix") == FOUND


async def test_the_queue_is_bounded_and_bulk_waits_for_the_others(opened: Opener, played: Played) -> None:
    async with opened(queue_limit=2) as pool, asyncio.TaskGroup() as group:
        await turns()
        process = played.processes[0]
        process.go.clear()
        group.create_task(pool.lint(b"first", "pkix"))
        await turns()
        group.create_task(pool.lint(b"bulk", "pkix", bulk=True))
        group.create_task(pool.lint(b"single", "pkix"))
        await turns()
        assert await _outcome(pool, b"too many") == "too much is waiting for the linter"
        process.go.set()
    assert process.seen == [b"first", b"single", b"bulk"]


async def test_a_cancelled_caller_costs_nobody_anything(opened: Opener, played: Played) -> None:
    async with opened() as pool, asyncio.TaskGroup() as group:
        await turns()
        process = played.processes[0]
        process.go.clear()
        first = group.create_task(pool.lint(b"first", "pkix"))
        second = group.create_task(pool.lint(b"second", "pkix"))
        await turns()
        first.cancel()
        second.cancel()
        await turns()
        process.go.set()
        assert await pool.lint(b"third", "pkix") == FOUND
    assert process.seen == [b"first", b"third"]


async def test_leaving_drains_what_waits(opened: Opener, played: Played) -> None:
    async with asyncio.TaskGroup() as group, opened() as pool:
        waiting = [group.create_task(pool.lint(bytes((n,)), "pkix")) for n in range(5)]
        await turns(2)
    assert [task.result() for task in waiting] == [FOUND] * 5
    assert await _outcome(pool, b"late") == "certmill stops"
    assert all(process.gone.is_set() for process in played.processes)


async def test_a_deadline_that_is_missed_replaces_the_process(
    opened: Opener, played: Played, metrics: AuthorityMetrics
) -> None:
    async with opened(deadline_s=0.05) as pool:
        await turns()
        played.processes[0].go.clear()
        assert await pool.lint(b"slow once", "pkix") == FOUND
    assert metrics.lint_worker_restarts.labels("deadline")._value.get() == 1


async def test_an_error_of_whoever_uses_the_pool_is_that_error_and_no_group(opened: Opener) -> None:
    with pytest.raises(ZeroDivisionError):
        async with opened():
            raise ZeroDivisionError


def test_frames_that_are_none_are_refused() -> None:
    with pytest.raises(FrameError):
        decode_frame(b"\xc0", Linted)
    assert decode_frame(encode_frame(Linted(FOUND))[4:], Linted) == Linted(FOUND)
    assert str(FOUND[0]) == "ERROR a.rule at certificate"


async def _outcome(pool: LintPool, certificate: bytes) -> str:
    try:
        await pool.lint(certificate, "pkix")
    except LintUnavailable as error:
        return error.detail
    return "linted"
