"""What waits for a lane: calls, their items, and the order in which items become batches.

Classes are strict: while an urgent item waits, nothing below it leaves. One exception keeps everything moving:
the longest-waiting item, once it is overdue, is passed over by at most `PATIENCE` batches. Inside a class the
clients take turns. A batch holds one key, one algorithm and one class, so an urgent item never waits for
company from below.
"""

import asyncio
import enum
from collections.abc import Callable, Container, Iterable, Mapping

from pkix.algorithms import SignatureAlgorithm
from signer_pool.errors import PoolFull
from signer_pool.fair_queue import FairQueue

MAX_BATCH_BYTES = 2**20
OVERDUE_S = 1.0
PATIENCE = 16


class Priority(enum.IntEnum):
    """Classes of work; the smaller, the more urgent."""

    REVOCATION = 0
    NEW_OCSP = 1
    INTERACTIVE = 2
    CRL = 3
    BULK = 4
    REFRESH = 5


class Call:
    """One caller's request: the future of all its signatures. Settled once, whatever happens to its items."""

    __slots__ = ("_left", "_signatures", "algorithm", "client", "future", "key", "priority", "queued_at")

    def __init__(
        self,
        future: asyncio.Future[list[bytes]],
        *,
        key: str,
        algorithm: SignatureAlgorithm,
        count: int,
        priority: Priority,
        client: str,
        queued_at: float,
    ) -> None:
        self.future = future
        self.key = key
        self.algorithm = algorithm
        self.priority = priority
        self.client = client
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

    __slots__ = ("call", "index", "passed_over", "refusals", "tbs")

    def __init__(self, call: Call, index: int, tbs: bytes) -> None:
        self.call = call
        self.index = index
        self.tbs = tbs
        self.passed_over = 0  # batches that left while it was overdue and the longest waiting
        self.refusals: dict[str, int] | None = None  # by token; most items are never refused


Kind = tuple[str, str]
"""Key and algorithm: what the items of one batch have in common."""

Queue = FairQueue[Item]

Found = tuple[Kind, Queue, Item]
"""The oldest item of a queue, and where it waits."""


class Backlog:
    """Waiting items, at most `limit` of each class. Items whose call is settled fall out when they are met."""

    def __init__(self, *, limit: int, batch_age_s: float, weights: Mapping[str, int] | None = None) -> None:
        self._limit = limit
        self._batch_age_s = batch_age_s
        self._weights = weights
        self._queues: dict[Priority, dict[Kind, Queue]] = {priority: {} for priority in Priority}

    def __len__(self) -> int:
        return sum(self.depth(priority) for priority in Priority)

    def depth(self, priority: Priority) -> int:
        """Count the waiting items of one class."""
        return sum(map(len, self._queues[priority].values()))

    def accept(self, items: list[Item]) -> None:
        """Queue all of `items` (one call) or none; raises `PoolFull`."""
        call = items[0].call
        waiting = self.depth(call.priority)
        if waiting + len(items) > self._limit:
            raise PoolFull(
                f"{waiting} signatures of the class {call.priority.name.lower()} wait already; "
                f"the bound is {self._limit}"
            )
        queue = self._queue_of(call)
        for item in items:
            queue.append(call.client, item)

    def give_back(self, items: Iterable[Item]) -> None:
        """Queue items again, in front: they were accepted before, so the bound does not count."""
        for item in reversed(list(items)):
            self._queue_of(item.call).give_back(item.call.client, item)

    def ripe_at(self, keys: Container[str], size_of: Callable[[Kind], int]) -> float | None:
        """Return the loop time at which the next batch of these keys should leave: 0 when it is full.

        None when nothing waits.
        """
        found = self._strictly_next(keys)
        if found is None:
            return None
        kind, queue, oldest = found
        return 0.0 if len(queue) >= size_of(kind) else oldest.call.queued_at + self._batch_age_s

    def take(self, keys: Container[str], size_of: Callable[[Kind], int], now: float) -> list[Item]:
        """Remove and return the next batch of these keys; empty when nothing waits."""
        found = self._strictly_next(keys)
        if found is None:
            return []
        longest = self._longest_waiting(keys)
        is_overdue = now - longest[2].call.queued_at >= OVERDUE_S
        if is_overdue and longest[2].passed_over >= PATIENCE:
            found = longest
            found[1].give_turn(found[2].call.client)
        kind, queue, _ = found
        size = size_of(kind)
        batch: list[Item] = []
        size_bytes = 0
        while queue and len(batch) < size and size_bytes < MAX_BATCH_BYTES:
            item = queue.pop()
            if not item.call.future.done():
                batch.append(item)
                size_bytes += len(item.tbs)
        if is_overdue and longest[2] not in batch:
            longest[2].passed_over += 1
        return batch

    def fail_all(self, error: Exception) -> None:
        """Empty the backlog and fail every call in it."""
        for queues in self._queues.values():
            for queue in queues.values():
                for item in queue:
                    item.call.fail(error)
            queues.clear()

    def _queue_of(self, call: Call) -> Queue:
        queues, kind = self._queues[call.priority], (call.key, call.algorithm.name)
        queue = queues.get(kind)
        if queue is None:
            queue = queues[kind] = FairQueue(self._weights)
        return queue

    def _strictly_next(self, keys: Container[str]) -> Found | None:
        """Find the queue of the highest class, and in it of the oldest item."""
        for priority in Priority:
            queues = self._queues[priority]
            if queues and (found := self._oldest(queues, keys)) is not None:
                return found
        return None

    def _longest_waiting(self, keys: Container[str]) -> Found:
        """Find the oldest item of all classes; something waits."""
        waiting = (self._oldest(self._queues[priority], keys) for priority in Priority)
        return min((found for found in waiting if found is not None), key=_queued_at)

    @staticmethod
    def _oldest(queues: dict[Kind, Queue], keys: Container[str]) -> Found | None:
        """Find the oldest live item among these keys."""
        best: Found | None = None
        for kind, queue in queues.items():
            if kind[0] not in keys:
                continue
            queue.drop_heads(_is_settled)
            oldest = min(queue.heads(), key=lambda item: item.call.queued_at, default=None)
            if oldest is not None and (best is None or oldest.call.queued_at < _queued_at(best)):
                best = (kind, queue, oldest)
        return best


def _queued_at(found: Found) -> float:
    return found[2].call.queued_at


def _is_settled(item: Item) -> bool:
    return item.call.future.done()
