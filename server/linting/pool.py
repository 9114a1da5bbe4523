"""Linter processes and what waits for them.

Invariants: at most `queue_limit` certificates wait; an accepted one is always settled, with findings or with
`LintUnavailable`; no process works longer than `deadline_s` at one certificate. When no process is there and none
could be started, everything is refused at once: nothing is signed that should have been linted.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from structlog.typing import FilteringBoundLogger

from server.config import LintSection
from server.errors import LintUnavailable
from server.linting.findings import Finding
from server.linting.process import LOST, LinterProcess
from server.metrics import AuthorityMetrics

_ATTEMPTS = 2  # a certificate that two processes die of is not given to a third
PAUSES_S: tuple[float, ...] = (0.1, 1.0, 5.0, 15.0)


@dataclass(slots=True, eq=False)
class _Waiting:
    certificate_der: bytes
    linter: str
    findings: asyncio.Future[list[Finding]]
    attempts: int = 0


class LintPool:
    """Keeps the linter's processes. An async context manager: leaving it drains the queue, then ends them.

    They start in the background; what comes before they are ready waits.
    """

    def __init__(
        self,
        settings: LintSection,
        *,
        metrics: AuthorityMetrics,
        logger: FilteringBoundLogger,
        start: Callable[[], Awaitable[LinterProcess]] = LinterProcess.start,
        pauses_s: tuple[float, ...] = PAUSES_S,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._logger = logger
        self._start = start
        self._pauses_s = pauses_s
        self._group = asyncio.TaskGroup()
        self._urgent: deque[_Waiting] = deque()
        self._bulk: deque[_Waiting] = deque()
        self._something = asyncio.Condition()
        self._keepers: list[asyncio.Task[None]] = []
        self._unsettled = 0
        self._settled = asyncio.Event()
        self._ready = 0
        self._failed = 0  # keepers whose last start failed
        self._closing = False
        metrics.lint_queue_depth.set_function(lambda: len(self._urgent) + len(self._bulk))

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        for _ in range(self._settings.workers):
            self._keepers.append(self._group.create_task(self._keep()))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        try:
            while self._unsettled and error is None:  # each of them has a deadline
                self._settled.clear()
                await self._settled.wait()
        finally:
            for keeper in self._keepers:
                keeper.cancel()
            await self._group.__aexit__(kind, error, trace)
            self._refuse_all("certmill stops")

    async def lint(self, certificate_der: bytes, linter: str, *, bulk: bool = False) -> list[Finding]:
        """Return what pkilint finds of WARNING or worse; raises `LintUnavailable`. Bulk waits for the others."""
        if self._closing:
            raise LintUnavailable("certmill stops")
        if self._failed == self._settings.workers:
            raise LintUnavailable("the linter is down")
        if len(self._urgent) + len(self._bulk) >= self._settings.queue_limit:
            raise LintUnavailable("too many certificates are waiting to be linted")
        waiting = _Waiting(certificate_der, linter, asyncio.get_running_loop().create_future())
        (self._bulk if bulk else self._urgent).append(waiting)
        self._unsettled += 1
        try:
            async with self._something:
                self._something.notify()
            return await waiting.findings
        finally:
            self._unsettled -= 1
            self._settled.set()

    async def _keep(self) -> None:
        """Keep one process until we are cancelled."""
        failures = 0
        while True:
            try:
                async with asyncio.timeout(self._settings.start_deadline_s):
                    process = await self._start()
            except LOST as error:
                self._failed += failures == 0
                failures += 1
                self._logger.error("the linter cannot be started", error=str(error) or type(error).__name__)
                self._metrics.lint_worker_restarts.labels("not_started").inc()
                if self._failed == self._settings.workers:
                    self._refuse_all("the linter cannot be started")
                await asyncio.sleep(self._pauses_s[min(failures, len(self._pauses_s)) - 1])
                continue
            self._failed -= failures > 0
            failures = 0
            await self._use(process)

    async def _use(self, process: LinterProcess) -> None:
        """Give certificates to the process until it is lost."""
        self._ready += 1
        self._metrics.lint_workers.set(self._ready)
        reason: str | None = None
        async with asyncio.TaskGroup() as watching:
            watch = watching.create_task(self._wake_when_ended(process))
            try:
                while reason is None:
                    waiting = await self._next(watch)
                    reason = "died" if waiting is None else await self._lint_one(process, waiting)
            finally:
                self._ready -= 1
                self._metrics.lint_workers.set(self._ready)
                watch.cancel()
                await process.end()
        self._metrics.lint_worker_restarts.labels(reason).inc()
        self._logger.error("the linter's process is replaced", reason=reason, pid=process.pid)

    async def _wake_when_ended(self, process: LinterProcess) -> None:
        await process.ended()
        async with self._something:
            self._something.notify_all()

    async def _next(self, watch: asyncio.Task[None]) -> _Waiting | None:
        """Take the next certificate, once there is one; None when the process has ended."""
        async with self._something:
            while not watch.done():
                for queue in (self._urgent, self._bulk):
                    while queue:
                        waiting = queue.popleft()
                        if not waiting.findings.done():  # else its caller was cancelled
                            return waiting
                await self._something.wait()
        return None

    async def _lint_one(self, process: LinterProcess, waiting: _Waiting) -> str | None:
        """Lint one certificate; returns why the process is of no use any more, if it is."""
        lost: str | None = None
        try:
            with self._metrics.lint_seconds.labels(waiting.linter).time():
                async with asyncio.timeout(self._settings.deadline_s):
                    findings = await process.lint(waiting.certificate_der, waiting.linter)
        except LOST as error:
            lost = "deadline" if isinstance(error, TimeoutError) else "died"
            self._again(waiting)
        except asyncio.CancelledError:
            _refuse(waiting, "certmill stops")
            raise
        else:
            if not waiting.findings.done():
                waiting.findings.set_result(findings)
        return lost

    def _again(self, waiting: _Waiting) -> None:
        waiting.attempts += 1
        if waiting.attempts < _ATTEMPTS and not waiting.findings.done():
            self._urgent.appendleft(waiting)
        else:
            _refuse(waiting, "the linter has failed on this certificate")

    def _refuse_all(self, why: str) -> None:
        for queue in (self._urgent, self._bulk):
            while queue:
                _refuse(queue.popleft(), why)


def _refuse(waiting: _Waiting, why: str) -> None:
    if not waiting.findings.done():
        waiting.findings.set_exception(LintUnavailable(why))
