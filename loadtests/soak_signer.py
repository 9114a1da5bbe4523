"""`make soak`: the signer pool over two tokens under continuous load, while one fault after the other happens.

Every call is written down until it is answered, and every signature is verified here. At the end nothing may be
left over: no call without its answer, no process, file descriptor, task, future or thread; and the memory of the
pool and of its lanes must be what it was after a third of the time. Exits with 1 if anything is wrong.
"""

import argparse
import asyncio
import gc
import json
import os
import random
import resource
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from signer_pool.ckr import TABLE, Action
from signer_pool.pool import Priority, SignerPool
from tests.support.tokens import SECRETS, BreakableToken, Journal, make_token, send_signal

LANES_EACH = 2
HEAL_WITHIN_S = 30.0
LIES_AT_MOST = 3
"""Wrong signatures for each token: the pool keeps a lane that lies away for longer each time, up to minutes."""

PARENT_MAY_GROW = 0.05
LANES_MAY_GROW = 0.10
MAY_GROW_BYTES = 8 * 2**20
LARGE_FAULT_S = 8.0
"""Not later than so long before the end: what follows has to heal."""

Progressed = Callable[[float, int, int], None]
"""Told the seconds, the signatures and the faults so far."""

_PAGE_BYTES = resource.getpagesize()
_RESULT = Path("build/soak/signer.json")

# Values that end a call or a token are not faults that the pool could hide.
_ENDS_A_CALL = {"CKR_DATA_INVALID", "CKR_DATA_LEN_RANGE", "CKR_FUNCTION_REJECTED", "CKR_KEY_EXHAUSTED"}
_CODES = [row.code for row in TABLE.values() if row.action is not Action.NEVER and row.name not in _ENDS_A_CALL]
_FUNCTIONS = ["C_Sign", "C_SignInit", "C_OpenSession", "C_Login", "C_FindObjectsInit", "C_FindObjects"]


class CountingLogger:
    """Counts events, and looks for secrets in what would be logged."""

    def __init__(self) -> None:
        self.events: Counter[str] = Counter()
        self.leaks = 0

    def info(self, event: str, **details: object) -> None:
        """Count."""
        self.events[event] += 1
        self.leaks += any(secret in repr(details) for secret in SECRETS)

    warning = error = info


@dataclass(kw_only=True)
class Soak:
    """One run. `violations`: sentences, empty if all is well; `figures`: what there is to tell."""

    seconds: float
    seed: int
    at_once: int
    violations: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    faults: Counter[str] = field(default_factory=Counter)

    async def run(self, directory: Path, progress: Progressed) -> None:
        """Sign for `seconds` in `directory`; `progress` is told how it goes."""
        before = _Belongings.now()
        await self._sign_and_break(directory, progress)
        self._judge_leftovers(before)

    async def _sign_and_break(self, directory: Path, progress: Progressed) -> None:
        original = make_token(directory / "original")
        tokens = [BreakableToken(directory / name, original, lanes=LANES_EACH) for name in "ab"]
        logger, registry = CountingLogger(), CollectorRegistry()
        lanes = tokens[0].configs + tokens[1].configs
        async with SignerPool(lanes=lanes, registry=registry, logger=logger) as pool:
            for number, token in enumerate(tokens):
                token.join(pool, first_lane=number * LANES_EACH)
                await token.comes_up()
            journal = Journal(pool, original.public_keys)
            await self._under_load(pool, tokens, journal, progress)
        self._judge_calls(journal, _given_out(registry))
        if logger.leaks:
            self.violations.append(f"{logger.leaks} lines of the log show a PIN")
        self.figures["lane starts"] = logger.events["lane is ready"]

    async def _under_load(
        self,
        pool: SignerPool,
        tokens: list[BreakableToken],
        journal: Journal,
        progress: Progressed,
    ) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        end = began + self.seconds
        memory = _Memory()
        one_lives = asyncio.Lock()
        async with asyncio.TaskGroup() as group:
            for number in range(self.at_once):
                group.create_task(self._caller(journal, number, end))
            for token in tokens:
                group.create_task(_Chaos(self, token, one_lives).run(end))
            while (now := loop.time()) < end:
                progress(now - began, journal.signed, self.faults.total())
                memory.look((now - began) / self.seconds, [pid for token in tokens for pid in token.pids])
                await asyncio.sleep(min(0.25, end - now))
        progress(self.seconds, journal.signed, self.faults.total())
        self.figures["seconds"] = loop.time() - began
        self.violations += memory.judge(self.figures)
        try:
            for token in tokens:
                await token.comes_up()
        except AssertionError:
            self.violations.append(f"not healed at the end: {'; '.join(pool.health().reasons())}")

    async def _caller(self, journal: Journal, number: int, end: float) -> None:
        """Call again and again; one in eight callers hangs up before it can have its answer, sometimes."""
        dice = random.Random(f"{self.seed} caller {number}")
        loop = asyncio.get_running_loop()
        while loop.time() < end:
            call = journal.call(
                "ec" if dice.random() < 0.8 else "rsa",
                count=dice.choice((1, 1, 1, 2, 5, 20)),
                priority=dice.choice(list(Priority)),
                client=f"client {number % 5}",
            )
            if number % 8 or dice.random() < 0.5:
                await call
                continue
            try:
                async with asyncio.timeout(dice.random() * 0.02):
                    await call
            except TimeoutError:
                self.faults["caller hangs up"] += 1

    def _judge_calls(self, journal: Journal, given_out: float) -> None:
        self.figures |= {
            "calls": journal.calls,
            "signatures": journal.signed,
            "signatures per s": journal.signed / self.figures["seconds"],
        }
        kinds = Counter(f"{type(error).__name__}: {error}" for error in journal.errors)
        self.violations += [f"{count} calls ended with {kind}" for kind, count in kinds.items()]
        self.violations += journal.wrong
        if journal.in_flight:
            self.violations.append(f"{len(journal.in_flight)} calls were never answered")
        if not kinds and journal.signed != journal.asked:
            self.violations.append(f"{journal.asked} signatures were asked for and {journal.signed} given")
        # Of calls that were cancelled, or failed as a whole, some signatures were made.
        unheard = journal.asked - journal.signed + journal.withdrawn
        if not journal.signed <= given_out <= journal.signed + unheard:
            self.violations.append(f"{journal.signed} signatures arrived, the pool counts {given_out:.0f}")

    def _judge_leftovers(self, before: "_Belongings") -> None:
        after = _Belongings.now()
        self.violations += [
            f"{len(left)} {what} left over: {sorted(map(str, left))[:5]}"
            for what, left in (
                ("processes", after.children - before.children),
                ("descriptors", after.descriptors - before.descriptors),
                ("threads", after.threads - before.threads),
                ("tasks", after.tasks - before.tasks),
            )
            if left
        ]
        if after.futures > before.futures:
            self.violations.append(f"{after.futures - before.futures} futures that nobody settled")


class _Chaos:
    """Breaks one token at random, again and again, and sees that it heals each time."""

    def __init__(self, soak: Soak, token: BreakableToken, one_lives: asyncio.Lock) -> None:
        self._soak = soak
        self._token = token
        self._faults = token.faults
        self._one_lives = one_lives
        self._dice = random.Random(f"{soak.seed} {token.name}")
        self._lies = 0

    async def run(self, end: float) -> None:
        """Break the token until the end; it is whole when this returns."""
        loop = asyncio.get_running_loop()
        small = (*[self._return_value] * 4, self._session_lost, self._crash, self._kill, self._slow)
        # Those that take the whole token away for some time, or need time to heal.
        large = (self._wrong_signature, self._hang, self._stop, self._kill_all, self._removed, self._deleted)
        while (left := end - loop.time()) > 0:
            await asyncio.sleep(min(left, self._dice.uniform(0.2, 1.0)))
            if self._dice.random() < 0.3 and left > LARGE_FAULT_S:
                async with self._one_lives:
                    await self._break(self._dice.choice(large))
            else:
                await self._break(self._dice.choice(small))

    async def _break(self, fault: Callable[[], Awaitable[None]]) -> None:
        name = fault.__name__.strip("_").replace("_", " ")
        self._soak.faults[name] += 1
        await fault()
        try:
            async with asyncio.timeout(HEAL_WITHIN_S):
                while not self._token.is_up:  # noqa: ASYNC110 - a process's state has no event to wait for
                    await asyncio.sleep(0.02)
        except TimeoutError:
            reasons = "; ".join(self._token.pool.health().reasons())
            self._soak.violations.append(f"{name}: not healed after {HEAL_WITHIN_S:g} s: {reasons}")
        self._faults.clear()

    async def _hit(self, function: str, **fault: Any) -> None:  # noqa: ANN401 - as Faults.arm() has it
        """Arm a fault and wait until it has hit; there may be no call left that it could."""
        hits = self._faults.hits(function)
        self._faults.arm(function, **fault)
        with suppress(TimeoutError):
            async with asyncio.timeout(2.0):
                while self._faults.hits(function) == hits:  # noqa: ASYNC110 - it happens in another process
                    await asyncio.sleep(0.01)

    async def _return_value(self) -> None:
        function, code = self._dice.choice(_FUNCTIONS), self._dice.choice(_CODES)
        if function not in {"C_Sign", "C_SignInit"}:
            self._faults.arm("C_Sign", invalidate=True)
            await self._hit(function, rv=code)
        else:
            await self._hit(function, rv=code, nth=self._dice.randint(1, 5))

    async def _session_lost(self) -> None:
        await self._hit("C_Sign", invalidate=True, rv=self._dice.choice((0x82, 0xB3, 0x101)))

    async def _crash(self) -> None:
        await self._hit("C_Sign", crash=True, nth=self._dice.randint(1, 5))

    async def _kill(self) -> None:
        self._signal(signal.SIGKILL)

    async def _slow(self) -> None:
        self._faults.sign_latency_us(self._dice.choice((500, 5000, 20_000)))
        await asyncio.sleep(self._dice.uniform(0.2, 1.0))
        self._faults.sign_latency_us(0)

    async def _wrong_signature(self) -> None:
        if self._lies < LIES_AT_MOST:
            self._lies += 1
            await self._hit("C_Sign", flip=True, nth=self._dice.randint(1, 5))

    async def _hang(self) -> None:
        await self._hit("C_Sign", hang=True)

    async def _stop(self) -> None:
        self._signal(signal.SIGSTOP)
        await asyncio.sleep(0.1)

    async def _kill_all(self) -> None:
        self._token.kill_lanes()

    async def _removed(self) -> None:
        for function in ("C_Sign", "C_OpenSession"):
            self._faults.arm(function, rv=0x32, times=0)
        await asyncio.sleep(self._dice.uniform(0.2, 2.0))
        self._faults.clear()

    async def _deleted(self) -> None:
        self._token.delete()
        await asyncio.sleep(self._dice.uniform(0.2, 2.0))
        self._token.restore()

    def _signal(self, number: int) -> None:
        if self._token.pids:
            send_signal(self._dice.choice(self._token.pids), number)


@dataclass(frozen=True, kw_only=True)
class _Belongings:
    """What a process has that it can leave behind."""

    children: set[int]
    descriptors: set[str]
    threads: set[int | None]
    tasks: set[asyncio.Task[object]]
    futures: int

    @classmethod
    def now(cls) -> "_Belongings":
        gc.collect()
        lists = Path("/proc/self/task").glob("*/children")
        return cls(
            children={int(pid) for each in lists for pid in each.read_text().split()},
            descriptors={path.name for path in Path("/proc/self/fd").iterdir() if path.exists()},
            threads={thread.ident for thread in threading.enumerate()},
            tasks=set(asyncio.all_tasks()),
            futures=sum(isinstance(each, asyncio.Future) and not each.done() for each in gc.get_objects()),
        )


class _Memory:
    """Resident memory of the parent and of its lanes, in each third of the run."""

    def __init__(self) -> None:
        self._parent: list[list[int]] = [[], [], []]
        self._lanes: list[list[int]] = [[], [], []]

    def look(self, share: float, lanes: list[int]) -> None:
        """Measure, when this share of the run is over."""
        third = min(2, int(3 * share))
        self._parent[third].append(_resident_bytes(os.getpid()))
        self._lanes[third] += filter(None, map(_resident_bytes, lanes))

    def judge(self, figures: dict[str, float]) -> Iterator[str]:
        """Compare the last third with the second: what the largest tenth has at least."""
        for name, seen, may_grow in (
            ("parent", self._parent, PARENT_MAY_GROW),
            ("lane", self._lanes, LANES_MAY_GROW),
        ):
            middle, last = (statistics.quantiles(seen[third], n=10)[-1] for third in (1, 2))
            figures[f"{name} MiB, second third"] = middle / 2**20
            figures[f"{name} MiB, last third"] = last / 2**20
            if last > middle * (1 + may_grow) + MAY_GROW_BYTES:
                yield f"the memory of a {name} grew from {middle / 2**20:.1f} to {last / 2**20:.1f} MiB"


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except OSError:
        return 0  # it has just ended


def _given_out(registry: CollectorRegistry) -> float:
    return sum(
        registry.get_sample_value("certmill_signer_signatures_total", {"key": key, "result": "ok"}) or 0.0
        for key in ("ec", "rsa")
    )


@contextmanager
def _bar(seconds: float, *, hidden: bool) -> Iterator[Progressed]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[signed]} signatures, {task.fields[faults]} faults"),
    )
    with Progress(*columns, disable=hidden) as bar:
        task = bar.add_task("signing", total=seconds, signed=0, faults=0)
        yield lambda done, signed, faults: bar.update(task, completed=done, signed=signed, faults=faults)


def _tell(soak: Soak, console: Console) -> None:
    table = Table(title=f"signer pool, two tokens of {LANES_EACH} lanes, seed {soak.seed}")
    table.add_column("what")
    table.add_column("how much", justify="right")
    for name, value in soak.figures.items():
        table.add_row(name, f"{value:,.1f}" if value % 1 else f"{value:,.0f}")
    table.add_section()
    for name, count in sorted(soak.faults.items()):
        table.add_row(name, str(count))
    console.print(table)
    for violation in soak.violations:
        console.print(f"WRONG: {violation}", style="bold red", highlight=False, markup=False)
    console.print("FAILED" if soak.violations else "nothing lost, nothing left over", style="bold")


def main() -> None:
    """Soak and tell; exits with 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, help="in place of --minutes")
    parser.add_argument(
        "--seed", type=int, default=time.time_ns() % 1_000_000, help="of the faults (default: new)"
    )
    parser.add_argument("--at-once", type=int, default=96, help="concurrent callers")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the bar and the table")
    arguments = parser.parse_args()
    seconds = arguments.seconds or 60 * arguments.minutes
    soak = Soak(seconds=seconds, seed=arguments.seed, at_once=arguments.at_once)
    console = Console()
    if not arguments.json:
        console.print(f"{seconds:g} s, {soak.at_once} callers, --seed {soak.seed}", highlight=False)
    with (
        tempfile.TemporaryDirectory(prefix="certmill-soak-") as home,
        _bar(seconds, hidden=arguments.json) as told,
    ):
        asyncio.run(soak.run(Path(home), told))
    details = {
        "seed": soak.seed,
        "violations": soak.violations,
        "figures": soak.figures,
        "faults": dict(soak.faults),
    }
    _RESULT.parent.mkdir(parents=True, exist_ok=True)
    _RESULT.write_text(json.dumps(details, indent=2) + "\n", "utf-8")
    if arguments.json:
        sys.stdout.write(json.dumps(details) + "\n")
    else:
        _tell(soak, console)
    sys.exit(1 if soak.violations else 0)


if __name__ == "__main__":
    main()
