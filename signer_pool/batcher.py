"""Micro-batches by size and age: many callers submit single items, one flush does them together.

Invariants: at most `queue_limit` items wait, at most `in_flight` flushes run; an accepted item's future is
always settled. With nothing in flight a batch leaves at the end of the loop's current iteration, so a lone
item never waits for company; while a flush runs, items gather until `size` or `age_s`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Generic, Self, TypeVar

from signer_pool.errors import PoolClosed, PoolFull
from signer_pool.fair_queue import FairQueue

T = TypeVar("T")
R = TypeVar("R")


class Batcher(Generic[T, R]):
    """Gather items into batches for `flush`, which returns one result for each item, in order.

    An exception *returned* in place of a result fails that item alone; one that `flush` *raises* fails its
    own batch. A caller that is cancelled drops its item while it waits; once a flush has it, the flush
    goes on undisturbed. Leaving the context flushes what waits and returns when all is settled.
    Cost: some 3 µs for each item.
    """

    def __init__(
        self,
        flush: Callable[[list[T]], Awaitable[Sequence[R | Exception]]],
        *,
        size: int,
        age_s: float,
        in_flight: int,
        queue_limit: int,
        weights: Mapping[str, int] | None = None,
    ) -> None:
        if min(size, in_flight, queue_limit) < 1 or age_s < 0:
            raise ValueError("size, in_flight and queue_limit must be at least 1, age_s at least 0")
        self._flush = flush
        self._size = size
        self._age_s = age_s
        self._places = in_flight
        self._queue_limit = queue_limit
        self._queue: FairQueue[tuple[T, asyncio.Future[R], float]] = FairQueue(weights)
        self._flushes: set[asyncio.Task[None]] = set()
        self._timer: asyncio.Handle | None = None
        self._pump_is_due = False
        self._closing = True

    @property
    def depth(self) -> int:
        """Count the items that wait; those in flight are not among them."""
        return len(self._queue)

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._closing = False
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        try:
            self._pump()
            while self._flushes:
                await asyncio.wait(self._flushes)
        finally:
            self._abandon()

    def submit(self, item: T, *, client: str = "") -> asyncio.Future[R]:
        """Queue `item` and return the future of its result. Clients take turns, by their weights.

        Raises `PoolFull` at once when the queue has reached its bound, `PoolClosed` outside the context.
        """
        if self._closing:
            raise PoolClosed("the batcher is closed")
        queue = self._queue
        if len(queue) >= self._queue_limit:
            raise PoolFull(f"{self._queue_limit} items are waiting")
        future: asyncio.Future[R] = self._loop.create_future()
        now = self._loop.time()
        queue.append(client, (item, future, now))
        if self._pump_is_due:
            return future
        if not self._flushes or len(queue) >= self._size:
            if len(self._flushes) < self._places:
                self._pump_is_due = True
                self._loop.call_soon(self._pump)
        elif self._timer is None:
            self._timer = self._loop.call_at(now + self._age_s, self._pump)
        return future

    def _pump(self) -> None:
        """Start every flush that is ripe and has a place."""
        self._pump_is_due = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        queue = self._queue
        while queue and len(self._flushes) < self._places:
            if self._flushes and len(queue) < self._size and not self._closing:
                ripe_at = min(entry[2] for entry in queue.heads()) + self._age_s
                if self._loop.time() < ripe_at:
                    self._timer = self._loop.call_at(ripe_at, self._pump)
                    return
            batch = self._take()
            if batch:
                task = self._loop.create_task(self._run(batch))
                self._flushes.add(task)
                task.add_done_callback(self._on_flushed)

    def _take(self) -> list[tuple[T, asyncio.Future[R], float]]:
        queue = self._queue
        batch: list[tuple[T, asyncio.Future[R], float]] = []
        while queue and len(batch) < self._size:
            entry = queue.pop()
            if not entry[1].done():  # else its caller was cancelled while it waited
                batch.append(entry)
        return batch

    async def _run(self, batch: list[tuple[T, asyncio.Future[R], float]]) -> None:
        try:
            results = await self._flush([entry[0] for entry in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"flush of {len(batch)} items returned {len(results)} results")  # noqa: TRY301
        except Exception as error:  # the callers are told, whatever it was
            results = [error] * len(batch)
        except asyncio.CancelledError:
            for _, future, _ in batch:
                if not future.done():
                    future.set_exception(PoolClosed("closed while the item was being flushed"))
            raise
        for (_, future, _), result in zip(batch, results, strict=True):
            if future.done():
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)

    def _on_flushed(self, task: asyncio.Task[None]) -> None:
        self._flushes.discard(task)
        self._pump()

    def _abandon(self) -> None:
        """Settle everything when the drain itself was cancelled; after a whole drain there is nothing."""
        for task in self._flushes:
            task.cancel()
        for _, future, _ in self._queue:
            if not future.done():
                future.set_exception(PoolClosed("closed before the item was flushed"))
        self._queue.clear()
