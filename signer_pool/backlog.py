"""What waits for a lane: calls, their items, and the order in which items become batches.

Strict order of classes: an item of a lower class is never sent while one of a higher class could be. A
batch holds one key and one class only, so that an urgent item does not wait for company below it.
(Ageing, fairness between clients and the signing budget will replace `_CLASSES_IN_ORDER`: this is the seam.)
"""

import asyncio
import enum
from collections import deque
from collections.abc import Container, Iterable

from signer_pool.errors import PoolFull

MAX_BATCH_BYTES = 2**20


class Priority(enum.IntEnum):
    """Classes of work; the smaller, the more urgent."""

    REVOCATION = 0
    NEW_OCSP = 1
    INTERACTIVE = 2
    CRL = 3
    BULK = 4
    REFRESH = 5


_CLASSES_IN_ORDER = tuple(Priority)


class Call:
    """One caller's request: the future of all its signatures. Settled once, whatever happens to its items."""

    __slots__ = ("_left", "_signatures", "future", "key", "priority", "queued_at")

    def __init__(
        self, future: asyncio.Future[list[bytes]], *, key: str, count: int, priority: Priority, queued_at: float
    ) -> None:
        self.future = future
        self.key = key
        self.priority = priority
        self.queued_at = queued_at
        self._signatures = [b""] * count
        self._left = count

    def deliver(self, index: int, signature: bytes) -> None:
        """Take one verified signature; the last one settles the future."""
        self._signatures[index] = signature
        self._left -= 1
        if not self._left and not self.future.done():
            self.future.set_result(self._signatures)

    def fail(self, error: Exception) -> None:
        """Settle the future with an error, unless it is settled."""
        if not self.future.done():
            self.future.set_exception(error)


class Item:
    """One TBS on its way to a signature. Belongs to the backlog or to one batch, never to both."""

    __slots__ = ("call", "index", "refusals", "tbs")

    def __init__(self, call: Call, index: int, tbs: bytes) -> None:
        self.call = call
        self.index = index
        self.tbs = tbs
        self.refusals = 0


class Backlog:
    """Waiting items, at most `limit` of them. Items whose call is settled fall out when they are met."""

    def __init__(self, *, limit: int, batch_size: int, batch_age_s: float) -> None:
        self._limit = limit
        self._batch_size = batch_size
        self._batch_age_s = batch_age_s
        self._queues: dict[Priority, dict[str, deque[Item]]] = {priority: {} for priority in Priority}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def accept(self, items: list[Item]) -> None:
        """Queue all of `items` (one key, one class) or none; raises `PoolFull`."""
        if self._count + len(items) > self._limit:
            raise PoolFull(f"{self._count} items are waiting, the bound is {self._limit}")
        self._queue_of(items[0].call).extend(items)
        self._count += len(items)

    def give_back(self, items: Iterable[Item]) -> None:
        """Queue items again, in front: they were accepted before, so the bound does not count."""
        for item in reversed(list(items)):
            self._queue_of(item.call).appendleft(item)
            self._count += 1

    def ripe_at(self, keys: Container[str]) -> float | None:
        """Return the loop time at which the next batch of these keys should leave: 0 when it is full.

        None when nothing waits.
        """
        queue = self._next_queue(keys)
        if queue is None:
            return None
        return 0.0 if len(queue) >= self._batch_size else queue[0].call.queued_at + self._batch_age_s

    def take(self, keys: Container[str]) -> list[Item]:
        """Remove and return the next batch of these keys; empty when nothing waits."""
        queue = self._next_queue(keys)
        batch: list[Item] = []
        size_bytes = 0
        while queue and len(batch) < self._batch_size and size_bytes < MAX_BATCH_BYTES:
            item = queue.popleft()
            self._count -= 1
            if not item.call.future.done():
                batch.append(item)
                size_bytes += len(item.tbs)
        return batch

    def fail_all(self, error: Exception) -> None:
        """Empty the backlog and fail every call in it."""
        for queues in self._queues.values():
            for queue in queues.values():
                for item in queue:
                    item.call.fail(error)
            queues.clear()
        self._count = 0

    def _queue_of(self, call: Call) -> deque[Item]:
        queues = self._queues[call.priority]
        queue = queues.get(call.key)
        if queue is None:
            queue = queues[call.key] = deque()
        return queue

    def _next_queue(self, keys: Container[str]) -> deque[Item] | None:
        """Find the queue of the highest class, and in it of the oldest item, with a live item at its head."""
        for priority in _CLASSES_IN_ORDER:
            best: deque[Item] | None = None
            for key, queue in self._queues[priority].items():
                if not queue or key not in keys:
                    continue
                while queue and queue[0].call.future.done():
                    queue.popleft()
                    self._count -= 1
                if queue and (best is None or queue[0].call.queued_at < best[0].call.queued_at):
                    best = queue
            if best is not None:
                return best
        return None
