"""`make bench-signer`: the signer pool against the bare token, in one run on one SoftHSM token.

1. Lanes: the pool with 1, 2 and 4 lanes, three kinds of key, signatures verified and not. The bare token
   (one process, one session, a loop) takes a turn between any two measurements, so that a noisy machine is
   noisy for both; each measurement is divided by the mean of its neighbours, and the median of those counts.
2. Batches: throughput by batch size and lanes, drawn in build/bench/signer.svg.
3. Urgency: how long a revocation's signature takes, one every 20 ms or so, while bulk work fills the lanes.

The load lives in the pool's process, as the authority's does, and costs little: few calls of many signatures.
"""

import argparse
import asyncio
import json
import logging
import statistics
import sys
import tempfile
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import structlog
import uvloop
from rich.progress import Progress

from loadtests.cpu_time import Others
from loadtests.raw_token import RawToken
from loadtests.signer_findings import Findings, Sample, details, drawing, lines
from loadtests.signer_load import (
    BATCH_SIZES,
    KEYS,
    LANES,
    MAX_BATCH,
    P256,
    RSA_2048,
    TARGET_BATCH_S,
    open_pool,
    signs_per_s,
    urgency,
)
from server.config import load_config
from server.home import Home
from server.keys.token import prepare_token
from signer_pool.lane_config import Pkcs11LaneConfig

_BUILD = Path("build/bench")
_UNLIMITED_S = 10.0  # where the batch size is what varies, time does not bound it


@dataclass(frozen=True, slots=True)
class Effort:
    """How often and how long each thing is measured."""

    rounds: int
    raw_s: float
    pool_s: float
    batch_rounds: int
    batch_s: float
    urgent_s: float


FULL = Effort(rounds=5, raw_s=0.4, pool_s=1.0, batch_rounds=3, batch_s=1.0, urgent_s=12.0)
QUICK = Effort(rounds=1, raw_s=0.2, pool_s=0.4, batch_rounds=1, batch_s=0.4, urgent_s=3.0)


class Bench:
    """Measures one thing after the other; `advance` is told after each."""

    def __init__(
        self,
        lane: Pkcs11LaneConfig,
        effort: Effort,
        logger: structlog.typing.FilteringBoundLogger,
        advance: Callable[[str], None],
    ) -> None:
        self._lane = lane
        self._effort = effort
        self._logger = logger
        self._advance = advance
        self._findings = Findings()

    @staticmethod
    def steps(effort: Effort) -> int:
        """Count the calls of `advance`."""
        by_lanes = effort.rounds * (len(KEYS) * 2 * len(LANES) + 1)
        return by_lanes + 2 * len(LANES) * len(BATCH_SIZES) * effort.batch_rounds + 4

    async def run(self) -> Findings:
        """Measure everything."""
        async with open_pool(self._lane, 1, self._logger) as pool:
            for key in KEYS:
                await pool.generate_key(key.label, key.algorithm)
        others = Others()
        async with RawToken(self._lane) as raw, RawToken(self._lane) as second:
            await self._by_lanes(raw, second)
        await self._by_batch_size()
        await self._beside_bulk()
        self._findings.others_cores = others.cores()
        return self._findings

    async def _by_lanes(self, raw: RawToken, second: RawToken) -> None:
        effort, found = self._effort, self._findings
        async with AsyncExitStack() as stack:
            pools = {
                (lanes, verified): await stack.enter_async_context(
                    open_pool(self._lane, lanes, self._logger, verify=verified)
                )
                for verified in (True, False)
                for lanes in LANES
            }
            for _ in range(effort.rounds):
                for key in KEYS:
                    before = await raw.signs_per_s(key.label, key.algorithm, effort.raw_s)
                    for (lanes, verified), pool in pools.items():
                        rate = await signs_per_s(pool, key, effort.pool_s, batch=self._usual_batch(before))
                        after = await raw.signs_per_s(key.label, key.algorithm, effort.raw_s)
                        found.samples.append(
                            Sample(
                                key=key.label,
                                lanes=lanes,
                                verified=verified,
                                pool_per_s=rate,
                                raw_per_s=(before + after) / 2,
                            )
                        )
                        before = after
                        self._advance(f"lanes {key.title}")
                found.two_raw.append(await self._two_raw(raw, second))
                self._advance("two bare tokens")

    async def _two_raw(self, raw: RawToken, second: RawToken) -> float:
        label, algorithm, seconds = RSA_2048.label, RSA_2048.algorithm, self._effort.pool_s
        one = await raw.signs_per_s(label, algorithm, seconds)
        async with asyncio.TaskGroup() as both:
            tasks = [both.create_task(each.signs_per_s(label, algorithm, seconds)) for each in (raw, second)]
        return sum(task.result() for task in tasks) / one

    async def _by_batch_size(self) -> None:
        effort = self._effort
        rates: dict[tuple[str, int, int], list[float]] = {}
        for lanes in LANES:
            async with AsyncExitStack() as stack:
                pools = {
                    size: await stack.enter_async_context(
                        open_pool(self._lane, lanes, self._logger, batch_size=size, target_batch_s=_UNLIMITED_S)
                    )
                    for size in BATCH_SIZES
                }
                for _ in range(effort.batch_rounds):
                    for key in (P256, RSA_2048):
                        for size, pool in pools.items():
                            rate = await signs_per_s(pool, key, effort.batch_s, batch=size)
                            rates.setdefault((key.label, lanes, size), []).append(rate)
                            self._advance(f"batches {key.title}")
        for (label, lanes, size), measured in rates.items():
            by_lanes = self._findings.batches.setdefault(label, {})
            by_lanes.setdefault(lanes, {})[size] = statistics.median(measured)

    async def _beside_bulk(self) -> None:
        seconds = self._effort.urgent_s
        for key in (P256, RSA_2048):
            batch = self._usual_batch(self._findings.raw_per_s(key))
            for lanes in (1, 2):
                one = await urgency(self._lane, lanes, key, self._logger, seconds=seconds, batch=batch)
                self._findings.urgencies.append(one)
                self._advance(f"urgent {key.title}")

    @staticmethod
    def _usual_batch(raw_per_s: float) -> int:
        return min(MAX_BATCH, round(TARGET_BATCH_S * raw_per_s))


def _token(home: str, logger: structlog.typing.FilteringBoundLogger) -> Pkcs11LaneConfig:
    config = load_config({"CERTMILL_HOME": home})
    Home(config.home).create()
    lane = prepare_token(config, Home(config.home), logger, {})[0]
    if not isinstance(lane, Pkcs11LaneConfig):
        raise SystemExit("this benchmark needs SoftHSM: install softhsm2")
    return lane


def main() -> None:
    """Run the benchmark and print its ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="half a minute, for a first look")
    parser.add_argument("--json", action="store_true", help="print the details as JSON instead of lines")
    arguments = parser.parse_args()
    effort = QUICK if arguments.quick else FULL
    logger = structlog.wrap_logger(
        structlog.PrintLogger(sys.stderr), wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR)
    )
    progress = Progress(disable=arguments.json)
    with tempfile.TemporaryDirectory(prefix="certmill-bench-") as home, progress:
        task = progress.add_task("signer pool", total=Bench.steps(effort))

        def advance(what: str) -> None:
            progress.update(task, advance=1, description=f"{what:16}")

        found = uvloop.run(Bench(_token(home, logger), effort, logger, advance).run())
    figures = details(found)
    _BUILD.mkdir(parents=True, exist_ok=True)
    (_BUILD / "signer.json").write_text(json.dumps(figures, indent=2), "utf-8")
    (_BUILD / "signer.svg").write_text(drawing(found), "utf-8")
    said = [json.dumps(figures)] if arguments.json else lines(found)
    sys.stdout.write("\n".join(said) + "\n")


if __name__ == "__main__":
    main()
