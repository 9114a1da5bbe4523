"""What the signer benchmark does to a pool: bulk work that fills the lanes, and urgent calls amid it."""

import asyncio
import random
import time
from bisect import bisect_right
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog
from prometheus_client import CollectorRegistry

from pkix.algorithms import KeyAlgorithm
from signer_pool.lane_config import LaneConfig
from signer_pool.pool import Priority, SignerPool

TARGET_BATCH_S = 0.025
"""The pool's usual target (`signer.target_batch_ms`)."""
MAX_BATCH = 256
_TBS_BYTES = 600
_BATCHES_PER_LANE = 3  # two in the pipe and one that waits: a lane never lacks work


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key that is measured, and how many signatures one bulk call asks for."""

    label: str
    algorithm: KeyAlgorithm
    title: str
    call_size: int


P256 = Key(label="p256", algorithm=KeyAlgorithm.EC_P256, title="P-256", call_size=64)
RSA_2048 = Key(label="rsa2048", algorithm=KeyAlgorithm.RSA_2048, title="RSA-2048", call_size=16)
RSA_3072 = Key(label="rsa3072", algorithm=KeyAlgorithm.RSA_3072, title="RSA-3072", call_size=4)
KEYS = (P256, RSA_2048, RSA_3072)
LANES = (1, 2, 4)
BATCH_SIZES = (1, 4, 16, 64, 256)


@asynccontextmanager
async def open_pool(
    lane: LaneConfig,
    lanes: int,
    logger: structlog.typing.FilteringBoundLogger,
    *,
    batch_size: int = MAX_BATCH,
    target_batch_s: float = TARGET_BATCH_S,
    verify: bool = True,
    registry: CollectorRegistry | None = None,
) -> AsyncIterator[SignerPool]:
    """Open a pool and wait until all of its lanes are ready."""
    async with SignerPool(
        lanes=[lane] * lanes,
        registry=registry or CollectorRegistry(),
        logger=logger,
        batch_size=batch_size,
        target_batch_s=target_batch_s,
        verify=verify,
    ) as pool:
        while pool.health().alive < lanes:  # noqa: ASYNC110 - the pool tells readiness, it does not announce it
            await asyncio.sleep(0.01)
        yield pool


@asynccontextmanager
async def bulk(pool: SignerPool, key: Key, *, in_work: int) -> AsyncIterator[list[float]]:
    """Keep `in_work` signatures of bulk priority in work. Yields the times at which calls were answered."""
    tbs = [bytes(_TBS_BYTES)] * key.call_size
    answered: list[float] = []
    stop = asyncio.Event()

    async def caller() -> None:
        while not stop.is_set():
            await pool.sign_many(key.label, tbs, Priority.BULK)
            answered.append(time.perf_counter())

    async with asyncio.TaskGroup() as callers:
        for _ in range(-(-in_work // key.call_size) + 1):
            callers.create_task(caller())
        try:
            while not answered:  # noqa: ASYNC110 - the first answer is the end of warming up
                await asyncio.sleep(0.01)
            yield answered
        finally:
            stop.set()


async def signs_per_s(pool: SignerPool, key: Key, seconds: float, *, batch: int) -> float:
    """Return how much the pool signs with its lanes full; `batch` is about what a lane is given at a time."""
    warm_up_s = seconds / 3
    async with bulk(pool, key, in_work=_BATCHES_PER_LANE * batch * len(pool.health().lanes)) as answered:
        await asyncio.sleep(warm_up_s)
        start = time.perf_counter()
        await asyncio.sleep(seconds)
        while answered[-1] <= start:  # noqa: ASYNC110 - a slow token, or a loud machine
            await asyncio.sleep(0.01)
        end = time.perf_counter()
    # Answers come in bursts, one for each batch: from the last one of a burst to the last one of another.
    first, last = bisect_right(answered, start) - 1, bisect_right(answered, end) - 1
    return (last - first) * key.call_size / (answered[last] - answered[first])


@dataclass(frozen=True, slots=True, kw_only=True)
class Urgency:
    """How long urgent signatures took beside bulk work, in milliseconds from when they were due."""

    key: str
    lanes: int
    calls: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    batch_ms: float
    """What a batch of bulk work spent in the token, mean."""
    bulk_per_s: float


async def urgency(
    lane: LaneConfig,
    lanes: int,
    key: Key,
    logger: structlog.typing.FilteringBoundLogger,
    *,
    seconds: float,
    batch: int,
) -> Urgency:
    """Fill a fresh pool with bulk work and ask for a revocation's signature every 20 ms or so.

    A call counts from the moment it was due, not from when the busy loop came round to making it.
    """
    registry = CollectorRegistry()
    took_s: list[float] = []

    async def revoke(pool: SignerPool, due: float) -> None:
        await pool.sign(key.label, bytes(_TBS_BYTES), Priority.REVOCATION)
        took_s.append(time.perf_counter() - due)

    async with (
        open_pool(lane, lanes, logger, registry=registry) as pool,
        bulk(pool, key, in_work=_BATCHES_PER_LANE * batch * lanes) as answered,
        asyncio.TaskGroup() as calls,
    ):
        await asyncio.sleep(0.5)
        due = start = time.perf_counter()
        before = len(answered)
        while due < start + seconds:
            await _until(due)
            calls.create_task(revoke(pool, due))
            due += random.uniform(0.012, 0.028)  # never in step with the batches
        bulk_per_s = (len(answered) - before) * key.call_size / (time.perf_counter() - start)
    took_s.sort()
    return Urgency(
        key=key.label,
        lanes=lanes,
        calls=len(took_s),
        p50_ms=1000 * took_s[len(took_s) // 2],
        p99_ms=1000 * took_s[len(took_s) * 99 // 100],
        max_ms=1000 * took_s[-1],
        batch_ms=1000 * _batch_s(registry),
        bulk_per_s=bulk_per_s,
    )


async def _until(due: float) -> None:
    left_s = due - time.perf_counter()
    if left_s > 0:  # else the loop was busy for longer than that, and several calls are made at once
        await asyncio.sleep(left_s)


def _batch_s(registry: CollectorRegistry) -> float:
    """Return the mean time that a batch of bulk work spent in the token."""
    name, bulk_work = "certmill_signer_service_seconds", {"priority": "bulk"}
    total, count = (registry.get_sample_value(f"{name}_{part}", bulk_work) or 0.0 for part in ("sum", "count"))
    return total / max(1.0, count)
