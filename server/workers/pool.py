"""A pool of processes and what waits for them.

Invariants: at most `queue_limit` requests wait; an accepted one is always settled, with its answer or with the
pool's refusal; no process works longer than `deadline_s` at one request. When no process is there and none could
be started, everything is refused at once.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

from prometheus_client import Counter, Gauge
from structlog.typing import FilteringBoundLogger

from server.workers.process import LOST

_ATTEMPTS = 2  # a request that two processes die of is not given to a third
PAUSES_S: tuple[float, ...] = (0.1, 1.0, 5.0, 15.0)


class Process(Protocol):
    """A process as the pool needs it; starting it raises one of `LOST`."""

    @property
    def pid(self) -> int:
        """The process id."""
        ...

    async def ended(self) -> None:
        """Return when it has ended."""
        ...

    async def end(self) -> None:
        """End and reap it."""
        ...


P = TypeVar("P", bound=Process)
Q = TypeVar("Q")
A = TypeVar("A")


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """How many processes, and how patient with them. `lazy`: they start when they are said to be wanted."""

    processes: int
    deadline_s: float
    start_deadline_s: float
    queue_limit: int
    lazy: bool = False
    pauses_s: tuple[float, ...] = PAUSES_S


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolMetrics:
    """Processes that are ready, restarts by reason, requests that wait."""

    ready: Gauge
    restarts: Counter
    waiting: Gauge


@dataclass(slots=True, eq=False)
class _Waiting(Generic[Q, A]):
    request: Q
    answer: asyncio.Future[A]
    attempts: int = 0


class WorkerPool(Generic[P, Q, A]):
    """Keeps processes of one kind. An async context manager: leaving it drains the queue, then ends them.

    They start in the background; what comes before they are ready waits. `what` names them in logs and refusals,
    `refusal` makes the error of a request that got no answer.
    """

    def __init__(
        self,
        what: str,
        settings: PoolSettings,
        *,
        start: Callable[[], Awaitable[P]],
        ask: Callable[[P, Q], Awaitable[A]],
        refusal: Callable[[str], Exception],
        metrics: PoolMetrics,
        logger: FilteringBoundLogger,
    ) -> None:
        self._what = what
        self._settings = settings
        self._start = start
        self._ask = ask
        self._refusal = refusal
        self._metrics = metrics
        self._logger = logger
        self._group = asyncio.TaskGroup()
        self._urgent: deque[_Waiting[Q, A]] = deque()
        self._bulk: deque[_Waiting[Q, A]] = deque()
        self._something = asyncio.Condition()
        self._keepers: list[asyncio.Task[None]] = []
        self._unsettled = 0
        self._settled = asyncio.Event()
        self._ready = 0
        self._failed = 0  # keepers whose last start failed
        self._closing = False
        self._wanted = asyncio.Event()
        if not settings.lazy:
            self._wanted.set()
        metrics.waiting.set_function(lambda: len(self._urgent) + len(self._bulk))

    @property
    def ready(self) -> int:
        """How many processes are ready."""
        return self._ready

    def wanted(self) -> None:
        """Start the processes of a lazy pool, if they were not yet."""
        self._wanted.set()

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        for _ in range(self._settings.processes):
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
            if isinstance(error, asyncio.CancelledError):  # perhaps by the group itself
                await self._group.__aexit__(kind, error, trace)
            else:  # not to be wrapped into a group
                await self._group.__aexit__(None, None, None)
            self._refuse_all("certmill stops")

    async def request(self, request: Q, *, bulk: bool = False) -> A:
        """Return the answer; raises the pool's refusal. Bulk waits for the others."""
        if self._closing:
            raise self._refusal("certmill stops")
        if self._failed == self._settings.processes:
            raise self._refusal(f"{self._what} is down")
        if len(self._urgent) + len(self._bulk) >= self._settings.queue_limit:
            raise self._refusal(f"too much is waiting for {self._what}")
        waiting: _Waiting[Q, A] = _Waiting(request, asyncio.get_running_loop().create_future())
        (self._bulk if bulk else self._urgent).append(waiting)
        self._unsettled += 1
        try:
            async with self._something:
                self._something.notify()
            return await waiting.answer
        finally:
            self._unsettled -= 1
            self._settled.set()

    async def _keep(self) -> None:
        """Keep one process until we are cancelled."""
        failures, pauses_s = 0, self._settings.pauses_s
        await self._wanted.wait()
        while True:
            try:
                async with asyncio.timeout(self._settings.start_deadline_s):
                    process = await self._start()
            except LOST as error:
                self._failed += failures == 0
                failures += 1
                self._logger.error(f"{self._what} cannot be started", error=str(error) or type(error).__name__)
                self._metrics.restarts.labels("not_started").inc()
                if self._failed == self._settings.processes:
                    self._refuse_all(f"{self._what} cannot be started")
                await asyncio.sleep(pauses_s[min(failures, len(pauses_s)) - 1])
                continue
            self._failed -= failures > 0
            failures = 0
            await self._use(process)

    async def _use(self, process: P) -> None:
        """Give requests to the process until it is lost."""
        self._ready += 1
        self._metrics.ready.set(self._ready)
        reason: str | None = None
        async with asyncio.TaskGroup() as watching:
            watch = watching.create_task(self._wake_when_ended(process))
            try:
                while reason is None:
                    waiting = await self._next(watch)
                    reason = "died" if waiting is None else await self._ask_one(process, waiting)
            finally:
                self._ready -= 1
                self._metrics.ready.set(self._ready)
                watch.cancel()
                await process.end()
        self._metrics.restarts.labels(reason).inc()
        self._logger.error(f"a process of {self._what} is replaced", reason=reason, pid=process.pid)

    async def _wake_when_ended(self, process: P) -> None:
        await process.ended()
        async with self._something:
            self._something.notify_all()

    async def _next(self, watch: asyncio.Task[None]) -> _Waiting[Q, A] | None:
        """Take the next request, once there is one; None when the process has ended."""
        async with self._something:
            while not watch.done():
                for queue in (self._urgent, self._bulk):
                    while queue:
                        waiting = queue.popleft()
                        if not waiting.answer.done():  # else its caller was cancelled
                            return waiting
                await self._something.wait()
        return None

    async def _ask_one(self, process: P, waiting: _Waiting[Q, A]) -> str | None:
        """Ask the process; returns why it is of no use any more, if it is."""
        lost: str | None = None
        try:
            async with asyncio.timeout(self._settings.deadline_s):
                answer = await self._ask(process, waiting.request)
        except LOST as error:
            lost = "deadline" if isinstance(error, TimeoutError) else "died"
            self._again(waiting)
        except asyncio.CancelledError:
            self._refuse(waiting, "certmill stops")
            raise
        else:
            if not waiting.answer.done():
                waiting.answer.set_result(answer)
        return lost

    def _again(self, waiting: _Waiting[Q, A]) -> None:
        waiting.attempts += 1
        if waiting.attempts < _ATTEMPTS and not waiting.answer.done():
            self._urgent.appendleft(waiting)
        else:
            self._refuse(waiting, f"{self._what} has failed on this request")

    def _refuse_all(self, why: str) -> None:
        for queue in (self._urgent, self._bulk):
            while queue:
                self._refuse(queue.popleft(), why)

    def _refuse(self, waiting: _Waiting[Q, A], why: str) -> None:
        if not waiting.answer.done():
            waiting.answer.set_exception(self._refusal(why))
