"""What waits for a lane: calls, their items, and the order in which items become batches.

Classes are strict: while an urgent item waits, nothing below it leaves. One exception keeps everything moving:
the longest-waiting item, once it is overdue, is passed over by at most `PATIENCE` batches. A batch holds one key,
one algorithm and one class, so an urgent item never waits for company from below. Inside a class the kinds (key
and algorithm) take turns, and inside a kind the clients. An item over which a lane was lost goes alone then.
"""

import asyncio
import enum
from collections.abc import Callable, Container, Iterable, Iterator, Mapping

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

    __slots__ = (
        "_left",
        "_signatures",
        "algorithm",
        "client",
        "future",
        "key",
        "priority",
        "queued_at",
        "waiting",
    )

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
        self.waiting = 0  # items in the backlog; the backlog keeps it
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

    __slots__ = ("call", "index", "losses", "passed_over", "refusals", "tbs")

    def __init__(self, call: Call, index: int, tbs: bytes) -> None:
        self.call = call
        self.index = index
        self.tbs = tbs
        self.passed_over = 0  # batches that left while it was overdue and the longest waiting
        self.losses = 0  # lanes that were lost over it
        self.refusals: dict[str, int] | None = None  # by token; most items are never refused


Kind = tuple[str, str]
"""Key and algorithm: what the items of one batch have in common."""

Queue = FairQueue[Item]

Found = tuple[Kind, Queue, Item]
"""The oldest item of a queue, and where it waits."""


class Backlog:
    """Waiting items, at most `limit` of each class.

    Items whose call is settled are not counted any more once `forget` is told, and fall out when they are met.
    """

    def __init__(self, *, limit: int, batch_age_s: float, weights: Mapping[str, int] | None = None) -> None:
        self._limit = limit
        self._batch_age_s = batch_age_s
        self._weights = weights
        self._queues: dict[Priority, dict[Kind, Queue]] = {priority: {} for priority in Priority}
        self._waiting = dict.fromkeys(Priority, 0)

    def __len__(self) -> int:
        return sum(self._waiting.values())

    def depth(self, priority: Priority) -> int:
        """Count the waiting items of one class."""
        return self._waiting[priority]

    def require_room(self, priority: Priority, count: int) -> None:
        """Raise `PoolFull` if so many more items cannot wait, ValueError if they never could."""
        if count > self._limit:
            raise ValueError(f"{count} signatures in one call, at most {self._limit} can wait: send fewer")
        waiting = self._waiting[priority]
        if waiting + count > self._limit:
            raise PoolFull(
                f"{waiting} signatures of the class {priority.name.lower()} wait already; "
                f"the bound is {self._limit}"
            )

    def accept(self, items: list[Item]) -> None:
        """Queue all of `items` (one call) or none; raises `PoolFull`."""
        call = items[0].call
        self.require_room(call.priority, len(items))
        self._drop_dead(call.priority)
        queue = self._queue_of(call)
        for item in items:
            queue.append(call.client, item)
        self._count(call, len(items))

    def give_back(self, items: Iterable[Item]) -> None:
        """Queue items again, in front: they were accepted before, so the bound does not count."""
        for item in reversed(list(items)):
            if not _is_settled(item):
                self._queue_of(item.call).give_back(item.call.client, item)
                self._count(item.call, 1)

    def forget(self, call: Call) -> None:
        """Count the items of a call no more: it is settled."""
        self._count(call, -call.waiting)

    def ripe_at(
        self, keys: Container[str], size_of: Callable[[Kind], int], least: Priority = Priority.REFRESH
    ) -> float | None:
        """Return the loop time at which the next batch of these keys should leave: 0 when it is full.

        None when nothing waits that is at least so urgent.
        """
        found = self._strictly_next(keys, least)
        if found is None:
            return None
        kind, queue, oldest = found
        return 0.0 if len(queue) >= size_of(kind) else oldest.call.queued_at + self._batch_age_s

    def take(
        self,
        keys: Container[str],
        size_of: Callable[[Kind], int],
        now: float,
        suits: Callable[["Item"], bool] = lambda _: True,
        least: Priority = Priority.REFRESH,
    ) -> list[Item]:
        """Remove and return the next batch of these keys that is at least so urgent.

        Empty when nothing waits, or when the next item does not suit and is left to another lane.
        """
        found = self._strictly_next(keys, least)
        if found is None:
            return []
        longest = self._longest_waiting(keys, least)
        is_overdue = now - longest[2].call.queued_at >= OVERDUE_S
        if is_overdue and longest[2].passed_over >= PATIENCE:
            found = longest
            found[1].give_turn(found[2].call.client)
        batch = self._fill(found[1], size_of(found[0]), suits)
        if not batch:
            return []
        queues = self._queues[batch[0].call.priority]
        queues[found[0]] = queues.pop(found[0])  # the others have their turns now
        if is_overdue and longest[2] not in batch:
            longest[2].passed_over += 1
        return batch

    def _fill(self, queue: Queue, size: int, suits: Callable[[Item], bool]) -> list[Item]:
        """Take a batch; what a lane was lost over goes alone, and what does not suit ends it."""
        batch: list[Item] = []
        size_bytes = 0
        while queue and len(batch) < size and size_bytes < MAX_BATCH_BYTES:
            item = queue.pop()
            if _is_settled(item):
                continue
            if (item.losses and batch) or not suits(item):
                queue.give_back(item.call.client, item)
                break
            self._count(item.call, -1)
            batch.append(item)
            size_bytes += len(item.tbs)
            if item.losses:
                break
        return batch

    def _count(self, call: Call, change: int) -> None:
        call.waiting += change
        self._waiting[call.priority] += change

    def _drop_dead(self, priority: Priority) -> None:
        """Forget settled items, if they are the most: those of a key that no lane has now are met by nobody."""
        queues = self._queues[priority]
        if sum(map(len, queues.values())) > 2 * self._waiting[priority] + self._limit:
            for queue in queues.values():
                queue.drop(_is_settled)

    def fail_all(self, error: Exception) -> None:
        """Empty the backlog and fail every call in it."""
        for queues in self._queues.values():
            for queue in queues.values():
                for item in queue:
                    item.call.waiting = 0
                    item.call.fail(error)
            queues.clear()
        self._waiting = dict.fromkeys(Priority, 0)

    def _queue_of(self, call: Call) -> Queue:
        queues, kind = self._queues[call.priority], (call.key, call.algorithm.name)
        queue = queues.get(kind)
        if queue is None:
            queue = queues[kind] = FairQueue(self._weights)
        return queue

    def _strictly_next(self, keys: Container[str], least: Priority) -> Found | None:
        """Find the queue of the highest class whose turn it is, and its oldest item."""
        for priority in Priority:
            if priority > least:
                break
            found = next(self._waiting_of(self._queues[priority], keys), None)
            if found is not None:
                return found
        return None

    def _longest_waiting(self, keys: Container[str], least: Priority) -> Found:
        """Find the oldest item of all classes that are at least so urgent; something waits."""
        queues = [queues for priority, queues in self._queues.items() if priority <= least]
        return min((found for each in queues for found in self._waiting_of(each, keys)), key=_queued_at)

    @staticmethod
    def _waiting_of(queues: dict[Kind, Queue], keys: Container[str]) -> Iterator[Found]:
        """Go through the queues of one class in the order of their turns: those of these keys with a live item."""
        for kind, queue in queues.items():
            if kind[0] not in keys:
                continue
            queue.drop_heads(_is_settled)
            oldest = min(queue.heads(), key=_item_queued_at, default=None)
            if oldest is not None:
                yield kind, queue, oldest


def _queued_at(found: Found) -> float:
    return found[2].call.queued_at


def _item_queued_at(item: Item) -> float:
    return item.call.queued_at


def _is_settled(item: Item) -> bool:
    return item.call.future.done()
