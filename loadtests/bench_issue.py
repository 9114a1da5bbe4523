"""`make bench-issue`: how fast certificates are issued, each figure ÷ its floor in the same run.

Everything goes through a whole certmill (`certmill serve`, SoftHSM, one lane) over its API with mTLS. Floors:
the bare token, one PKCS #11 session that only signs; and a bare software loop in one process that parses,
verifies, builds and signs certificate and OCSP response and keeps them in SQLite (`bare_loop.py`). Rounds
alternate between a figure and its floor, so that a noisy machine is noisy for both.
"""

import argparse
import asyncio
import json
import statistics
import sys
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from loadtests.issue_site import Site, make_csrs, site
from pkix.algorithms import KeyAlgorithm

_RESULT = Path("build/bench/issue.json")
CONNECTIONS = 64
AT_LEAST = {"issue_rsa2048_vs_raw": 0.9, "issue_bulk_p256_vs_bare": 0.5, "issue_single_vs_bulk": 0.5}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One certmill to measure: its keys, its settings, and how many rows a batch has."""

    name: str
    algorithm: KeyAlgorithm
    rows: int
    settings: dict[str, str] = field(default_factory=dict)


SCENARIOS = (
    Scenario(name="rsa2048", algorithm=KeyAlgorithm.RSA_2048, rows=4000),
    Scenario(name="p256", algorithm=KeyAlgorithm.EC_P256, rows=6000),
)


@dataclass(slots=True, kw_only=True)
class Rates:
    """Per second: raw signatures of the token, and certificates by the bare loop, in bulk and by single calls."""

    raw: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    bulk: list[float] = field(default_factory=list)
    single: list[float] = field(default_factory=list)


async def _measure(scenario: Scenario, rounds: int, seconds: float, advance: Callable[[], None]) -> Rates:
    rates = Rates()

    async def take(into: list[float], figure: Awaitable[float]) -> None:
        into.append(await figure)
        advance()

    async with site(scenario.algorithm, make_csrs(), **scenario.settings) as place:
        await _warm_up(place)
        for _ in range(rounds):
            await take(rates.raw, place.raw(seconds))
            await take(rates.bulk, place.bulk(scenario.rows))
            await take(rates.bare, place.floor(seconds))
            await take(rates.single, place.single(seconds, CONNECTIONS))
    return rates


async def _warm_up(place: Site) -> None:
    """Let processes start, caches fill and the pool learn its token's pace."""
    await place.bulk(500)
    await place.single(0.5, CONNECTIONS)


def ratios(found: dict[str, Rates]) -> dict[str, float]:
    """Divide each figure by its floor, round by round, and take the median."""
    made = {}
    for name, rates in found.items():
        made[f"issue_{name}_vs_raw"] = _median(2 * bulk / raw for bulk, raw in _pairs(rates.bulk, rates.raw))
        made[f"issue_bulk_{name}_vs_bare"] = _median(a / b for a, b in _pairs(rates.bulk, rates.bare))
        suffix = "" if name == "p256" else f"_{name}"
        made[f"issue_single_vs_bulk{suffix}"] = _median(a / b for a, b in _pairs(rates.single, rates.bulk))
    return made


def _pairs(left: list[float], right: list[float]) -> list[tuple[float, float]]:
    return list(zip(left, right, strict=True))


def _median(values: Iterable[float]) -> float:
    return round(statistics.median(values), 3)


def _show(found: dict[str, Rates]) -> None:
    table = Table(
        "token", "raw signs/s", "bare loop/s", "bulk/s", "single calls/s", title="certificates per second"
    )
    for name, rates in found.items():
        figures = (rates.raw, rates.bare, rates.bulk, rates.single)
        table.add_row(name, *(f"{statistics.median(figure):,.0f}" for figure in figures))
    Console().print(table)


async def _run(scenarios: list[Scenario], arguments: argparse.Namespace) -> dict[str, Rates]:
    found = {}
    with Progress(disable=arguments.json, console=Console(stderr=True)) as progress:
        task: TaskID = progress.add_task("rounds", total=4 * arguments.rounds * len(scenarios))
        for scenario in scenarios:
            progress.update(task, description=scenario.name)
            found[scenario.name] = await _measure(
                scenario, arguments.rounds, arguments.seconds, lambda: progress.advance(task)
            )
    return found


def main() -> None:
    """Run the benchmark and print its ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement but the batches")
    parser.add_argument("--only", choices=[s.name for s in SCENARIOS], help="one scenario")
    parser.add_argument("--json", action="store_true", help="print the details as JSON instead of lines")
    arguments = parser.parse_args()
    scenarios = [s for s in SCENARIOS if arguments.only in {None, s.name}]
    found = asyncio.run(_run(scenarios, arguments))
    made = ratios(found)
    details = {
        "per_s": {name: asdict(rates) for name, rates in found.items()},
        "ratio": made,
        "at_least": AT_LEAST,
    }
    _RESULT.parent.mkdir(parents=True, exist_ok=True)
    _RESULT.write_text(json.dumps(details, indent=2), "utf-8")
    if arguments.json:
        sys.stdout.write(json.dumps(details) + "\n")
        return
    _show(found)
    for name, value in made.items():
        asked = f"  (at least {AT_LEAST[name]})" if name in AT_LEAST else ""
        sys.stdout.write(f"ratio {name} {value:.2f}{asked}\n")


if __name__ == "__main__":
    main()
