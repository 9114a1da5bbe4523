"""A queue that is fair between clients: weighted round-robin, first in first out for each client.

Invariant: `_turns` holds exactly the clients that have something waiting, in the order of their turns; the
first of them may take `_credit` more items before the next one has its turn.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Items by client. `weights` says how many items a client takes in each of its turns, 1 if it is not in it.

    Queueing and taking cost O(1), whatever the number of clients; `heads` and `drop_heads` go through them.
    """

    __slots__ = ("_count", "_credit", "_turns", "_weights")

    def __init__(self, weights: Mapping[str, int] | None = None) -> None:
        self._weights = weights or {}
        self._turns: OrderedDict[str, deque[T]] = OrderedDict()
        self._credit = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(self, client: str, item: T) -> None:
        """Queue an item behind the others of its client."""
        self._queue_of(client).append(item)
        self._count += 1

    def give_back(self, client: str, item: T) -> None:
        """Put an item that was taken before in front of the others of its client."""
        self._queue_of(client).appendleft(item)
        self._count += 1

    def pop(self) -> T:
        """Take the next item; raises IndexError when nothing waits."""
        if not self._count:
            raise IndexError("pop from an empty queue")
        client, queue = next(iter(self._turns.items()))
        item = queue.popleft()
        self._count -= 1
        self._credit -= 1
        if not queue:
            del self._turns[client]
            self._begin_turn()
        elif self._credit <= 0:
            self._turns.move_to_end(client)
            self._begin_turn()
        return item

    def give_turn(self, client: str) -> None:
        """Let a client that has something waiting take its turn now; the others keep their order."""
        self._turns.move_to_end(client, last=False)
        self._begin_turn()

    def heads(self) -> Iterator[T]:
        """Return the oldest item of each client."""
        return (queue[0] for queue in self._turns.values())

    def drop_heads(self, is_dead: Callable[[T], bool]) -> None:
        """Forget items that are dead, as far as they are the oldest of their client."""
        for client, queue in list(self._turns.items()):
            while queue and is_dead(queue[0]):
                queue.popleft()
                self._count -= 1
            if not queue:
                first = next(iter(self._turns)) == client
                del self._turns[client]
                if first:
                    self._begin_turn()

    def drop(self, is_dead: Callable[[T], bool]) -> None:
        """Forget every item that is dead."""
        for client, queue in list(self._turns.items()):
            alive = [item for item in queue if not is_dead(item)]
            self._count -= len(queue) - len(alive)
            queue.clear()
            queue.extend(alive)
            if not alive:
                first = next(iter(self._turns)) == client
                del self._turns[client]
                if first:
                    self._begin_turn()

    def __iter__(self) -> Iterator[T]:
        return (item for queue in self._turns.values() for item in queue)

    def clear(self) -> None:
        """Forget everything."""
        self._turns.clear()
        self._credit = self._count = 0

    def _queue_of(self, client: str) -> deque[T]:
        queue = self._turns.get(client)
        if queue is None:
            queue = self._turns[client] = deque()
            if len(self._turns) == 1:
                self._begin_turn()
        return queue

    def _begin_turn(self) -> None:
        client = next(iter(self._turns), None)
        self._credit = 0 if client is None else max(1, self._weights.get(client, 1))
