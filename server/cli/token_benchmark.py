"""How fast each token signs with each key, by number of lanes and size of batches: lanes alone, without the pool.

Only the probe is signed. The signatures of one batch of each measurement are verified, outside the measured time.
"""

import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from server.cli.token_inspection import door, judge_reply, signed
from server.cli.token_report import BenchmarkProblem, KeyBenchmark, Rate
from server.cli.token_source import Problem, ProblemKind, TokenSource
from signer_pool.calibration import PROBE
from signer_pool.dispatcher import BATCHES_PER_LANE
from signer_pool.errors import LaneStartError, SignerPoolError
from signer_pool.key_ring import KeyRing
from signer_pool.lane import Lane, Signed

_SLOWER = 10.0  # how much slower than the median a batch may be before its lane counts as lost


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure. `lanes`: the most for each token, None as many as it is configured with."""

    keys: Sequence[str]
    lanes: int | None
    batches: Sequence[int]
    seconds: float
    deadline_s: float

    def lane_counts(self, source: TokenSource) -> list[int]:
        """Return 1, 2, 4, … and the most."""
        most = self.lanes or source.lanes
        return [*(2**n for n in range(most.bit_length()) if 2**n < most), most]

    def steps(self, source: TokenSource) -> int:
        """Count the measurements of one token."""
        return len(self.keys) * (1 + len(self.lane_counts(source)) * len(self.batches))


class _Failed(SignerPoolError):
    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.text)
        self.problem = problem


@dataclass(slots=True, kw_only=True)
class TokenBenchmark:
    """Measures one token; `results` and `problems` grow while it runs."""

    source: TokenSource
    plan: Plan
    on_step: Callable[[], None]
    results: dict[str, KeyBenchmark] = field(default_factory=dict)
    problems: list[BenchmarkProblem] = field(default_factory=list)

    async def run(self) -> None:
        """Open one lane after the other and measure with those that are open; raises nothing of the token's."""
        source, token = self.source, door(self.source)
        if isinstance(source.lane, Problem):
            self._note(None, source.lane)
            return
        lanes: list[Lane] = []
        async with AsyncExitStack() as stack:
            for count in self.plan.lane_counts(source):
                while len(lanes) < count:
                    try:
                        lane = await token.open(source.lane)
                    except LaneStartError as error:
                        problem = Problem.of(error)
                        text = f"lane {len(lanes) + 1} cannot be opened: {problem.text}" if lanes else problem.text
                        self._note(None, Problem(kind=problem.kind, text=text))
                        return
                    stack.push_async_callback(lane.close)
                    lanes.append(lane)
                if not await self._measure_keys(lanes):
                    return

    async def _measure_keys(self, lanes: Sequence[Lane]) -> bool:
        """Measure each key with these lanes; False when the token is not worth more time."""
        ring = KeyRing()
        for lane in lanes:
            ring.adopt(lane)
        for key in self.plan.keys:
            if key not in ring.labels():
                if len(lanes) == 1:
                    has = ", ".join(sorted(ring.labels())) or "none that can sign"
                    text = f"missing: no usable key of this name; it has: {has}"
                    self._note(key, Problem(kind=ProblemKind.KEY, text=text))
                continue
            try:
                if len(lanes) == 1:
                    self.results[key] = await self._latency(lanes[0], ring, key)
                    self.on_step()
                for batch in self.plan.batches:
                    self.results[key].rates.append(await self._rate(lanes, ring, key, batch))
                    self.on_step()
            except _Failed as error:
                self._note(key, error.problem)
                return False
        return True

    async def _latency(self, lane: Lane, ring: KeyRing, key: str) -> KeyBenchmark:
        algorithm, deadline_s = ring.algorithm(key).name, self.plan.deadline_s
        reply = await signed(lane, key, algorithm, [PROBE], deadline_s=deadline_s)
        _require(reply, ring, key, 1, deadline_s)
        samples_ms: list[float] = []
        end = time.perf_counter() + self.plan.seconds
        while not samples_ms or time.perf_counter() < end:
            started = time.perf_counter()
            reply = await signed(lane, key, algorithm, [PROBE], deadline_s=deadline_s)
            samples_ms.append((time.perf_counter() - started) * 1000)
            _all_signed(reply, ring, key, deadline_s)
        cuts = statistics.quantiles(samples_ms * 2, n=100, method="inclusive")  # of one sample there are none
        return KeyBenchmark(
            token=self.source.name, key=key, algorithm=algorithm, p50_ms=cuts[49], p99_ms=cuts[98], rates=[]
        )

    async def _rate(self, lanes: Sequence[Lane], ring: KeyRing, key: str, batch: int) -> Rate:
        slow_s = self.results[key].p50_ms / 1000 * batch * len(lanes) * _SLOWER
        deadline_s = max(self.plan.deadline_s, slow_s)
        reply = await signed(lanes[-1], key, ring.algorithm(key).name, [PROBE] * batch, deadline_s=deadline_s)
        _require(reply, ring, key, batch, deadline_s)
        streams = [
            _Stream(lane=lane, ring=ring, key=key, batch=batch, seconds=self.plan.seconds, deadline_s=deadline_s)
            for lane in lanes
        ]
        try:
            async with asyncio.TaskGroup() as tasks:
                for stream in streams:
                    for _ in range(BATCHES_PER_LANE):
                        tasks.create_task(stream.run())
        except* _Failed as group:
            raise group.exceptions[0] from None
        return Rate(lanes=len(lanes), batch=batch, signs_per_s=sum(stream.signs_per_s for stream in streams))

    def _note(self, key: str | None, problem: Problem) -> None:
        self.problems.append(
            BenchmarkProblem(token=self.source.name, key=key, problem=problem.kind, text=problem.text)
        )


class _Stream:
    """Keeps one lane busy; its tasks share the count."""

    def __init__(
        self, *, lane: Lane, ring: KeyRing, key: str, batch: int, seconds: float, deadline_s: float
    ) -> None:
        self._lane = lane
        self._ring = ring
        self._key = key
        self._tbs = [PROBE] * batch
        self._deadline_s = deadline_s
        self._signs = 0
        self._started = self._ended = time.perf_counter()
        self._seconds = seconds

    @property
    def signs_per_s(self) -> float:
        """Return the rate from the first batch to the end of the last, in which the lane never idled."""
        return self._signs / (self._ended - self._started)

    async def run(self) -> None:
        """Send batches, one after the other, until the time is over; one at least."""
        algorithm = self._ring.algorithm(self._key).name
        while not self._signs or time.perf_counter() < self._started + self._seconds:
            reply = await signed(self._lane, self._key, algorithm, self._tbs, deadline_s=self._deadline_s)
            self._signs += _all_signed(reply, self._ring, self._key, self._deadline_s)
            self._ended = time.perf_counter()


def _all_signed(reply: Signed | None, ring: KeyRing, key: str, deadline_s: float) -> int:
    """Return how many signatures there are, unverified; raises `_Failed` when one is missing."""
    if reply is None or reply.refusals:
        _require(reply, ring, key, 0, deadline_s)
    assert reply is not None  # noqa: S101 - for mypy
    return len(reply.signatures)


def _require(reply: Signed | None, ring: KeyRing, key: str, count: int, deadline_s: float) -> None:
    problem = judge_reply(reply, ring, key, [PROBE] * count, deadline_s=deadline_s)
    if problem is not None:
        raise _Failed(problem)
