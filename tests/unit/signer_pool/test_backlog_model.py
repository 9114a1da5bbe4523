"""The backlog against what it promises, whatever comes in whatever order; with a clock of the test's own."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pkix.algorithms import SIGNATURE_ALGORITHMS
from signer_pool import backlog as backlog_module
from signer_pool.backlog import OVERDUE_S, Backlog, Call, Item, Kind, Priority
from signer_pool.errors import PoolClosed, PoolFull

LIMIT = 12
PATIENCE = 2  # of the model, so that it is met
WEIGHTS = {"B": 2}
CLASSES = (Priority.REVOCATION, Priority.BULK, Priority.REFRESH)
ALGORITHMS = ("sha256WithRSAEncryption", "rsassa-pss-sha256")
KEYS = st.sampled_from([{"a"}, {"b"}, {"a", "b"}])

Place = tuple[Priority, Kind]


class BacklogModel(RuleBasedStateMachine):
    """Lists of items by class, kind and client. Items of settled calls stay in them: they do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(backlog_module, "PATIENCE", PATIENCE)
        self.loop = asyncio.new_event_loop()
        self.backlog = Backlog(limit=LIMIT, batch_age_s=0.5, weights=WEIGHTS)
        self.waiting: dict[Place, dict[str, list[Item]]] = defaultdict(lambda: defaultdict(list))
        self.batches: list[list[Item]] = []
        self.calls: list[Call] = []
        self.now = 0.0
        self.passed_over: Counter[Item] = Counter()
        self.settled: list[Call] = []  # the backlog was not told yet
        self.kinds: dict[Priority, list[Kind]] = defaultdict(list)  # in the order of their turns
        self.turns_since: dict[tuple[Place, str], Counter[str]] = defaultdict(Counter)

    def teardown(self) -> None:
        everything = [
            item for place in self.waiting for client in self.waiting[place] for item in self.live(place, client)
        ]
        drained: list[Item] = []
        while batch := self.backlog.take({"a", "b"}, lambda _: 5, self.now):
            drained += batch
        assert Counter(drained) == Counter(everything)
        for call in self.settled:
            self.backlog.forget(call)
        assert len(self.backlog) == 0
        for call in self.calls:
            if call.future.done() and not call.future.cancelled():
                call.future.exception()
        self.loop.close()
        self.patch.undo()

    def live(self, place: Place, client: str) -> list[Item]:
        return [item for item in self.waiting[place][client] if not item.call.future.done()]

    def heads(self, keys: set[str]) -> Iterator[tuple[Place, Item]]:
        """Return the first live item of each client in each queue of these keys."""
        for place, clients in self.waiting.items():
            if place[1][0] in keys:
                for client in clients:
                    yield from ((place, item) for item in self.live(place, client)[:1])

    def depth(self, priority: Priority, *, alive: bool) -> int:
        lists = [
            items for place, clients in self.waiting.items() if place[0] is priority for items in clients.values()
        ]
        return sum(not (alive and item.call.future.done()) for items in lists for item in items)

    @rule(
        client=st.sampled_from("ABC"),
        key=st.sampled_from("ab"),
        algorithm=st.sampled_from(ALGORITHMS),
        priority=st.sampled_from(CLASSES),
        count=st.integers(1, 5),
    )
    def accept(self, client: str, key: str, algorithm: str, priority: Priority, count: int) -> None:
        self.now += 0.01
        call = Call(
            self.loop.create_future(),
            key=key,
            algorithm=SIGNATURE_ALGORITHMS[algorithm],
            count=count,
            priority=priority,
            client=client,
            queued_at=self.now,
        )
        items = [Item(call, index, b"tbs") for index in range(count)]
        before = len(self.backlog)
        try:
            self.backlog.accept(items)
        except PoolFull:
            assert self.backlog.depth(priority) + count > LIMIT
            assert len(self.backlog) == before
            return
        assert self.backlog.depth(priority) <= LIMIT
        self.calls.append(call)
        self.waiting[priority, (key, algorithm)][client] += items
        if (key, algorithm) not in self.kinds[priority]:
            self.kinds[priority].append((key, algorithm))

    @rule(seconds=st.sampled_from([0.1, OVERDUE_S]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        call = data.draw(st.sampled_from(self.calls))
        if call.future.cancel():
            self.settled.append(call)

    @rule()
    def backlog_is_told(self) -> None:
        while self.settled:
            self.backlog.forget(self.settled.pop())
        for priority in Priority:
            assert self.backlog.depth(priority) == self.depth(priority, alive=True)

    @rule(keys=KEYS, size=st.integers(1, 4), times=st.integers(1, 4))
    def take(self, keys: set[str], size: int, times: int) -> None:
        for _ in range(times):
            self.take_once(keys, size)

    def take_once(self, keys: set[str], size: int) -> None:
        heads = list(self.heads(keys))
        ripe_at = self.backlog.ripe_at(keys, lambda _: size)
        batch = self.backlog.take(keys, lambda _: size, self.now)
        if not heads:
            assert (batch, ripe_at) == ([], None)
            return
        assert ripe_at is not None
        assert 0 < len(batch) <= size
        call = batch[0].call
        place = call.priority, (call.key, call.algorithm.name)
        assert all((i.call.priority, (i.call.key, i.call.algorithm.name)) == place for i in batch)
        assert call.key in keys
        was_given = self.look_at_order(place, batch, heads)
        self.kinds[place[0]].remove(place[1])
        self.kinds[place[0]].append(place[1])
        self.look_at_turns(place, batch, was_given=was_given)
        self.batches.append(batch)

    def look_at_order(self, place: Place, batch: list[Item], heads: list[tuple[Place, Item]]) -> bool:
        """Classes are strict, unless the longest waiting item has been passed over too often; tell whether."""
        longest_at, longest = min(heads, key=lambda head: head[1].call.queued_at)
        if self.now - longest.call.queued_at >= OVERDUE_S:
            if self.passed_over[longest] == PATIENCE:
                assert longest is batch[0]
                assert place == longest_at
                return True
            if longest not in batch:
                self.passed_over[longest] += 1
        urgent = min(at[0] for at, _ in heads)
        waiting = {at[1] for at, _ in heads if at[0] is urgent}
        assert place == (urgent, next(kind for kind in self.kinds[urgent] if kind in waiting))
        return False

    def look_at_turns(self, place: Place, batch: list[Item], *, was_given: bool) -> None:
        """Each client's items leave in order; between two turns of one, each other one has at most a turn."""
        clients = self.waiting[place]
        if was_given:  # the turns begin anew
            for waiting in clients:
                self.turns_since.pop((place, waiting), None)
        for item in batch:
            client = item.call.client
            assert item is self.live(place, client)[0]
            clients[client].remove(item)
            self.turns_since.pop((place, client), None)
            for other in clients:
                if other == client or not self.live(place, other):
                    continue
                since = self.turns_since[place, other]
                since[client] += 1
                assert since[client] <= WEIGHTS.get(client, 1), "takes more than its turn"
        for other in clients:
            if not self.live(place, other):
                self.turns_since.pop((place, other), None)

    @precondition(lambda self: self.batches)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        batch = self.batches.pop(data.draw(st.integers(0, len(self.batches) - 1)))
        self.backlog.give_back(batch)
        for item in reversed(batch):
            place = item.call.priority, (item.call.key, item.call.algorithm.name)
            if item.call.future.done():
                continue
            self.waiting[place][item.call.client].insert(0, item)
            if place[1] not in self.kinds[place[0]]:
                self.kinds[place[0]].append(place[1])

    @precondition(lambda self: self.batches)
    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        for item in self.batches.pop(data.draw(st.integers(0, len(self.batches) - 1))):
            item.call.deliver(item.index, b"signature %d" % item.index)
            if item.call.future.done() and not item.call.future.cancelled() and not item.call.future.exception():
                signatures = item.call.future.result()
                assert signatures == [b"signature %d" % index for index in range(len(signatures))]

    @precondition(lambda self: len(self.calls) > 5)
    @rule()
    def fail_all(self) -> None:
        self.backlog.fail_all(PoolClosed("test"))
        for clients in self.waiting.values():
            assert all(item.call.future.done() for items in clients.values() for item in items)
        self.waiting.clear()
        self.turns_since.clear()
        self.kinds.clear()
        self.settled.clear()
        assert len(self.backlog) == 0

    @invariant()
    def nothing_is_lost(self) -> None:
        for priority in Priority:
            alive, all_of_them = self.depth(priority, alive=True), self.depth(priority, alive=False)
            assert alive <= self.backlog.depth(priority) <= all_of_them


TestBacklogModel = BacklogModel.TestCase
TestBacklogModel.settings = settings(max_examples=120, stateful_step_count=50, deadline=None)
