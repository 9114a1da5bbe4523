"""Bulk work and the signing budget, through the pool."""

import asyncio
import time

import pytest

from signer_pool.budget import NOW, Commitment, Freshness, Plan
from signer_pool.errors import (
    BudgetExceeded,
    PoolClosed,
    PoolFull,
    PoolUnavailable,
)
from signer_pool.pool import Priority, SignerPool
from tests.unit.signer_pool.played import PlayedPool, Stage, now
from tests.unit.signer_pool.virtual_time import run_virtual


def commit(pool: SignerPool, busy_per_s: float) -> None:
    """Have all but a little of the one signature a second that a played lane signs committed."""
    pool.budget.commit([Plan(NOW, [Commitment("refresh", "ec", busy_per_s)])], Freshness(0, None))


def test_bulk_waits_for_its_share_of_the_budget_and_no_longer_than_its_deadline() -> None:
    async def main() -> None:
        stage = Stage()
        clock = asyncio.get_running_loop().time
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(time, "monotonic", clock)
            async with PlayedPool(stage, batch_size=1, bulk_reserve=0.0) as pool:
                await pool.sign("ec", b"measured", Priority.INTERACTIVE)
                commit(pool, 0.5)
                began = now()
                await pool.sign("ec", b"from the bucket", Priority.BULK)
                assert now() - began == 1.0
                began = now()
                await pool.sign("ec", b"delayed", Priority.BULK)
                assert now() - began == 2.0  # one second in which half a signature was left over, twice
                await pool.sign("ec", b"urgent work is not asked", Priority.REVOCATION)
                began = now()
                calls = [pool.sign("ec", b"tbs", Priority.BULK, deadline_s=1.5) for _ in range(3)]
                ends = await asyncio.gather(*calls, return_exceptions=True)
                assert any(isinstance(end, PoolUnavailable) for end in ends)
                assert now() - began == 1.5
                commit(pool, 1.0)
                with pytest.raises(BudgetExceeded, match="nothing is left"):
                    await pool.sign("ec", b"refused", Priority.BULK)

    run_virtual(main)


def test_bulk_that_waits_for_its_share_when_the_pool_is_closed_is_told_so() -> None:
    async def main() -> None:
        stage = Stage()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(time, "monotonic", asyncio.get_running_loop().time)
            async with PlayedPool(stage, batch_size=1, bulk_reserve=0.0) as pool:
                await pool.sign("ec", b"measured", Priority.INTERACTIVE)
                commit(pool, 0.5)
                calls = [asyncio.ensure_future(pool.sign("ec", b"tbs", Priority.BULK)) for _ in range(2)]
                await asyncio.sleep(0.5)
            ends = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(end) for end in ends] == [PoolClosed, PoolClosed]
            assert now() <= 4.0

    run_virtual(main)


def test_bulk_that_finds_the_queue_full_after_its_wait_gets_back_what_it_paid() -> None:
    async def main() -> None:
        stage = Stage()
        async with PlayedPool(stage, batch_size=1, queue_limit=1) as pool:
            await pool.sign("ec", b"measured", Priority.INTERACTIVE)
            commit(pool, 0.5)
            stage.lanes[0].service_s = 100.0
            paid: list[tuple[str, int]] = []

            def delay(key: str, count: int) -> float:
                paid.append((key, count))
                return 1.0

            given_back: list[tuple[str, int]] = []
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(pool.budget, "delay_bulk", delay)
                patch.setattr(pool.budget, "give_back", lambda *what: given_back.append(what))
                calls = [pool.sign("ec", b"tbs", Priority.BULK, deadline_s=500) for _ in range(3)]
                ends = await asyncio.gather(*calls, return_exceptions=True)
                with pytest.raises(PoolUnavailable):
                    await pool.sign("ec", b"tbs", Priority.BULK, deadline_s=5)
            assert [type(end) for end in ends] == [bytes, PoolFull, PoolFull]
            assert paid == [("ec", 1)] * 4
            assert given_back == [("ec", 1)] * 2

    run_virtual(main)
