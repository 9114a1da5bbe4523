"""The micro-batcher, in virtual time."""

import asyncio

import pytest

from signer_pool.batcher import Batcher
from signer_pool.errors import PoolClosed, PoolFull
from tests.unit.signer_pool.virtual_time import run_virtual


class Flushes:
    """A flush that takes a second and notes when it was called with what."""

    def __init__(self, seconds: float = 1.0) -> None:
        self.calls: list[tuple[float, list[int]]] = []
        self.running = 0
        self.most = 0
        self._seconds = seconds

    async def __call__(self, items: list[int]) -> list[int | Exception]:
        self.calls.append((round(asyncio.get_running_loop().time(), 6), items))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(self._seconds)
        finally:
            self.running -= 1
        return [ValueError(item) if item < 0 else item * 10 for item in items]


def batcher(flush: Flushes, **changed: float) -> Batcher[int, int]:
    settings = {"size": 3, "age_s": 0.1, "in_flight": 2, "queue_limit": 100, **changed}
    return Batcher(flush, **settings)  # type: ignore[arg-type]  # of a dict of two types


def test_lone_item_does_not_wait_for_company() -> None:
    async def main() -> None:
        flush = Flushes()
        async with batcher(flush) as gather:
            assert await gather.submit(1) == 10
        assert flush.calls == [(0.0, [1])]

    run_virtual(main)


def test_items_of_one_iteration_go_together_up_to_the_size() -> None:
    async def main() -> None:
        flush = Flushes()
        async with batcher(flush) as gather:
            futures = [gather.submit(number) for number in range(6)]
            assert gather.depth == 6
            assert [await future for future in futures] == [0, 10, 20, 30, 40, 50]
        assert flush.calls == [(0.0, [0, 1, 2]), (0.0, [3, 4, 5])]

    run_virtual(main)


def test_leaving_does_not_wait_for_the_age() -> None:
    async def main() -> None:
        flush = Flushes()
        async with batcher(flush) as gather:
            gather.submit(1)
            await asyncio.sleep(0.5)
            gather.submit(2)
            await asyncio.sleep(0.04)
            gather.submit(3)
        assert flush.calls == [(0.0, [1]), (0.54, [2, 3])]

    run_virtual(main)


def test_age_sends_while_a_flush_runs() -> None:
    async def main() -> None:
        flush = Flushes()
        async with batcher(flush) as gather:
            gather.submit(1)
            await asyncio.sleep(0.5)
            gather.submit(2)
            await asyncio.sleep(0.04)
            gather.submit(3)
            await asyncio.sleep(0.3)
        assert flush.calls == [(0.0, [1]), (0.6, [2, 3])]

    run_virtual(main)


def test_size_sends_at_once_while_a_flush_runs() -> None:
    async def main() -> None:
        flush = Flushes()
        async with batcher(flush) as gather:
            gather.submit(1)
            await asyncio.sleep(0.5)
            for number in (2, 3, 4, 5):
                gather.submit(number)
            await asyncio.sleep(0.05)
            assert flush.calls == [(0.0, [1]), (0.5, [2, 3, 4])]
            assert gather.depth == 1

    run_virtual(main)


def test_no_more_flushes_than_places() -> None:
    async def main() -> None:
        flush = Flushes()
        async with batcher(flush) as gather:
            for number in range(12):
                gather.submit(number)
                await asyncio.sleep(0.01)
        assert flush.most == 2
        assert [len(items) for _, items in flush.calls] == [1, 3, 3, 3, 2]
        assert flush.calls[2][0] == 1.0

    run_virtual(main)


def test_age_counts_from_the_oldest_when_a_place_becomes_free() -> None:
    async def main() -> None:
        flush = Flushes()
        async with batcher(flush) as gather:
            gather.submit(1)
            await asyncio.sleep(0.02)
            for number in (2, 3, 4):
                gather.submit(number)
            await asyncio.sleep(0.96)
            gather.submit(5)
            await asyncio.sleep(1)
        # At 1.0 the first flush ends; the second runs until 1.02, when nothing is in flight any more.
        assert flush.calls == [(0.0, [1]), (0.02, [2, 3, 4]), (1.02, [5])]

    run_virtual(main)


def test_full_queue_refuses_at_once() -> None:
    async def main() -> None:
        flush = Flushes()
        async with batcher(flush, queue_limit=2) as gather:
            futures = [gather.submit(1), gather.submit(2)]
            with pytest.raises(PoolFull):
                gather.submit(3)
            await asyncio.sleep(0)
            futures.append(gather.submit(4))
            assert [await future for future in futures] == [10, 20, 40]

    run_virtual(main)


def test_returned_exception_fails_its_item_alone() -> None:
    async def main() -> None:
        async with batcher(Flushes()) as gather:
            good, bad = gather.submit(1), gather.submit(-1)
            with pytest.raises(ValueError, match="-1"):
                await bad
            assert await good == 10

    run_virtual(main)


def test_raising_flush_fails_its_own_batch_alone() -> None:
    async def main() -> None:
        async def flush(items: list[int]) -> list[int]:
            if 1 in items:
                raise OSError("disk full")
            return items

        async with Batcher(flush, size=2, age_s=0, in_flight=2, queue_limit=9) as gather:
            futures = [gather.submit(number) for number in range(4)]
            results = await asyncio.gather(*futures, return_exceptions=True)
        assert [type(result) for result in results] == [OSError, OSError, int, int]

    run_virtual(main)


def test_flush_that_loses_results_fails_its_batch() -> None:
    async def main() -> None:
        async def flush(items: list[int]) -> list[int]:
            return items[1:]

        async with Batcher(flush, size=2, age_s=0, in_flight=1, queue_limit=9) as gather:
            with pytest.raises(RuntimeError, match="1 items returned 0 results"):
                await gather.submit(1)

    run_virtual(main)


def test_cancelled_caller_does_not_disturb_the_batch_in_flight() -> None:
    async def main() -> None:
        flush = Flushes()
        async with batcher(flush) as gather:
            first, second = gather.submit(1), gather.submit(2)
            await asyncio.sleep(0.5)
            first.cancel()
            assert await second == 20
        assert flush.calls == [(0.0, [1, 2])]

    run_virtual(main)


def test_cancelled_while_waiting_is_dropped() -> None:
    async def main() -> None:
        flush = Flushes()
        async with batcher(flush) as gather:
            gather.submit(1).cancel()
            await asyncio.sleep(0)
            assert flush.calls == []
            assert await gather.submit(2) == 20

    run_virtual(main)


def test_leaving_drains_and_then_refuses() -> None:
    async def main() -> None:
        flush = Flushes()
        gather = batcher(flush)
        with pytest.raises(PoolClosed):
            gather.submit(0)
        async with gather:
            futures = [gather.submit(number) for number in range(7)]
        assert [future.result() for future in futures] == [number * 10 for number in range(7)]
        with pytest.raises(PoolClosed):
            gather.submit(8)

    run_virtual(main)


def test_cancelled_drain_leaves_no_future_and_no_task() -> None:
    async def main() -> None:
        flush = Flushes(seconds=1000)
        futures: list[asyncio.Future[int]] = []

        async def use() -> None:
            async with batcher(flush, in_flight=1) as gather:
                futures.extend(gather.submit(number) for number in range(4))
                futures[3].cancel()
                futures.append(gather.submit(5))

        task = asyncio.create_task(use())
        await asyncio.sleep(1)
        futures[1].cancel()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.01)
        assert flush.running == 0
        assert all(future.done() for future in futures)
        assert isinstance(futures[4].exception(), PoolClosed)
        assert len(asyncio.all_tasks()) == 1

    run_virtual(main)


def test_senseless_settings() -> None:
    with pytest.raises(ValueError, match="at least"):
        batcher(Flushes(), size=0)
    with pytest.raises(ValueError, match="at least"):
        batcher(Flushes(), age_s=-1)
