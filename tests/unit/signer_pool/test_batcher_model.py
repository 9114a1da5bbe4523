"""The micro-batcher against what it promises, whatever comes in whatever order; time is the test's own."""

import asyncio
from collections import defaultdict

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from signer_pool.batcher import Batcher
from signer_pool.errors import PoolClosed, PoolFull
from tests.unit.signer_pool.virtual_time import VirtualTimeLoop

SIZE, AGE_S, IN_FLIGHT, QUEUE_LIMIT = 3, 0.5, 2, 8
EPSILON = 1e-6

Item = tuple[str, int]
"""A client and the number of its item."""


class BatcherModel(RuleBasedStateMachine):
    """Submits, cancels and lets time pass; the flushes take as long and end as the test has said before."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualTimeLoop()
        self.batcher: Batcher[Item, Item] = Batcher(
            self.flush, size=SIZE, age_s=AGE_S, in_flight=IN_FLIGHT, queue_limit=QUEUE_LIMIT, weights={"B": 2}
        )
        self.loop.run_until_complete(self.batcher.__aenter__())
        self.futures: dict[Item, asyncio.Future[Item]] = {}
        self.submitted_at: dict[Item, float] = {}
        self.flushed: dict[Item, int] = defaultdict(int)
        self.order: dict[str, list[int]] = defaultdict(list)
        self.failed: set[Item] = set()
        self.refused: set[Item] = set()
        self.dropped: set[Item] = set()
        self.running = 0
        self.numbers = 0
        self.took_s, self.goes_wrong = 1.0, False

    def settle(self, seconds: float = 0.0) -> None:
        """Let time pass, and everything happen that is due by then."""
        self.loop.run_until_complete(asyncio.sleep(seconds))
        for _ in range(5):
            self.loop.run_until_complete(asyncio.sleep(0))

    async def flush(self, items: list[Item]) -> list[Item | Exception]:
        took_s, goes_wrong = self.took_s, self.goes_wrong
        self.running += 1
        assert 0 < len(items) <= SIZE
        assert self.running <= IN_FLIGHT
        for client, number in items:
            self.flushed[client, number] += 1
            self.order[client].append(number)
        try:
            await asyncio.sleep(took_s)
        finally:
            self.running -= 1
        if goes_wrong:
            self.failed.update(items)
            raise ZeroDivisionError("the whole batch")
        self.refused.update(item for item in items if item[1] % 7 == 0)
        return [ValueError("this one") if item in self.refused else item for item in items]

    @rule(client=st.sampled_from("ABC"), count=st.integers(1, 4))
    def submit(self, client: str, count: int) -> None:
        for _ in range(count):
            self.numbers += 1
            item, before = (client, self.numbers), self.batcher.depth
            try:
                future = self.batcher.submit(item, client=client)
            except PoolFull:
                assert before == QUEUE_LIMIT
                continue
            assert before < QUEUE_LIMIT
            self.futures[item] = future
            self.submitted_at[item] = self.loop.time()
        self.settle()

    @rule(seconds=st.sampled_from([0.1, 0.6, 2.0]))
    def time_passes(self, seconds: float) -> None:
        self.settle(seconds)

    @rule(took_s=st.sampled_from([0.2, 1.0, 3.0]), goes_wrong=st.booleans())
    def flushes_change(self, took_s: float, goes_wrong: bool) -> None:
        self.took_s, self.goes_wrong = took_s, goes_wrong

    @precondition(lambda self: any(not future.done() for future in self.futures.values()))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        pending = [item for item, future in self.futures.items() if not future.done()]
        item = data.draw(st.sampled_from(pending))
        self.futures[item].cancel()
        if not self.flushed[item]:
            self.dropped.add(item)
        self.settle()

    def waiting(self) -> list[Item]:
        return [i for i, future in self.futures.items() if not future.done() and not self.flushed[i]]

    @invariant()
    def nobody_waits_without_a_reason(self) -> None:
        waiting = self.waiting()
        assert self.batcher.depth >= len(waiting)
        if self.running == 0:
            assert not waiting, "with nothing in flight a batch leaves at once"
        if waiting and self.running < IN_FLIGHT:
            assert len(waiting) < SIZE, "a full batch leaves when there is a place"
            oldest = min(self.submitted_at[item] for item in waiting)
            assert self.loop.time() - oldest < AGE_S + EPSILON, "and so does an old one"

    @invariant()
    def nothing_is_flushed_twice_or_out_of_turn(self) -> None:
        assert all(times <= 1 for times in self.flushed.values())
        assert not any(self.flushed[item] for item in self.dropped), "nobody wants it any more"
        for numbers in self.order.values():
            assert numbers == sorted(numbers)

    def teardown(self) -> None:
        waiting = self.waiting()
        self.loop.run_until_complete(self.batcher.__aexit__(None, None, None))
        assert all(self.flushed[item] for item in waiting), "leaving drains"
        for item, future in self.futures.items():
            assert future.done()
            if future.cancelled():
                continue
            error = future.exception()
            if item in self.failed:
                assert isinstance(error, ZeroDivisionError)
            elif item in self.refused:
                assert isinstance(error, ValueError)
            else:
                assert future.result() == item
        try:
            self.batcher.submit(("A", 0))
        except PoolClosed:
            pass
        else:
            raise AssertionError("closed, and takes items")
        self.loop.close()


TestBatcherModel = BatcherModel.TestCase
TestBatcherModel.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
