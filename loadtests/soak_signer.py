"""`make soak`: the signer pool over two tokens under continuous load, while one fault after the other happens.

Every call is written down until it is answered, and every signature is verified here. At the end nothing may be
left over: no call without its answer, no process, file descriptor, task, future or thread; and the memory of the
pool and of its lanes must be what it was after a third of the time. Exits with 1 if anything is wrong.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from loadtests.chaos import Chaos
from loadtests.leftovers import Belongings, Memory
from signer_pool.pool import Priority, SignerPool
from tests.support.tokens import SECRETS, BreakableToken, Journal, make_token

LANES_EACH = 2
Progressed = Callable[[float, int, int], None]
"""Told the seconds, the signatures and the faults so far."""

_RESULT = Path("build/soak/signer.json")


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
        before = Belongings.now()
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
        memory = Memory()
        one_lives = asyncio.Lock()
        async with asyncio.TaskGroup() as group:
            for number in range(self.at_once):
                group.create_task(self._caller(journal, number, end))
            for token in tokens:
                chaos = Chaos(token, one_lives, seed=self.seed, faults=self.faults, violations=self.violations)
                group.create_task(chaos.run(end))
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

    def _judge_leftovers(self, before: Belongings) -> None:
        after = Belongings.now()
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
