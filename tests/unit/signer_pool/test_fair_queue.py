"""Turns of clients, by example and against a simple model of weighted round-robin."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from signer_pool.fair_queue import FairQueue

CLIENTS = st.sampled_from("ABC")
WEIGHTS = {"B": 2, "C": 3}


def queue_of(*items: str, **weights: int) -> FairQueue[str]:
    """Queue items, which begin with the letter of their client."""
    queue: FairQueue[str] = FairQueue(weights)
    for item in items:
        queue.append(item[0], item)
    return queue


def drain(queue: FairQueue[str]) -> str:
    return " ".join(queue.pop() for _ in range(len(queue)))


def test_clients_take_turns() -> None:
    assert drain(queue_of("A1", "A2", "A3", "A4", "B1", "B2", "C1")) == "A1 B1 C1 A2 B2 A3 A4"


def test_weight_is_the_length_of_a_turn() -> None:
    assert drain(queue_of("A1", "A2", "A3", "B1", "B2", "B3", B=2)) == "A1 B1 B2 A2 B3 A3"


def test_senseless_weight_stops_nobody() -> None:
    assert drain(queue_of("A1", "A2", "B1", "B2", A=0, B=-7)) == "A1 B1 A2 B2"


def test_client_that_comes_back_begins_at_the_end() -> None:
    queue = queue_of("A1", "B1", "B2")
    assert queue.pop() == "A1"
    queue.append("A", "A2")
    assert drain(queue) == "B1 A2 B2"


def test_client_that_waited_alone_has_no_claim_to_more_than_a_turn() -> None:
    queue = queue_of("A1", "A2", "A3", "A4", "A5", A=3)
    assert [queue.pop(), queue.pop()] == ["A1", "A2"]
    queue.append("B", "B1")
    assert drain(queue) == "A3 B1 A4 A5"


def test_what_is_given_back_comes_first_for_its_client() -> None:
    queue = queue_of("A1", "A2", "B1")
    assert queue.pop() == "A1"
    queue.give_back("A", "A1")
    assert list(queue.heads()) == ["B1", "A1"]
    assert drain(queue) == "B1 A1 A2"


def test_turn_can_be_given_to_a_client() -> None:
    queue = queue_of("A1", "A2", "B1", "B2", "C1", "C2", "C3", C=2)
    queue.give_turn("C")
    assert drain(queue) == "C1 C2 A1 B1 C3 A2 B2"


def test_dead_items_are_dropped_where_they_are_the_oldest() -> None:
    queue = queue_of("A-", "A-", "B1", "B-", "B2", "C-", "D1", B=2)
    queue.drop_heads(lambda item: item.endswith("-"))
    assert len(queue) == 4
    assert drain(queue) == "B1 B- D1 B2"
    queue = queue_of("A-", "B-")
    queue.drop_heads(lambda item: item.endswith("-"))
    assert len(queue) == 0
    queue.append("C", "C1")
    assert drain(queue) == "C1"


def test_turn_passes_on_when_its_client_has_only_dead_items() -> None:
    queue = queue_of("A-", "B1", "B2", "C1", B=2)
    queue.drop_heads(lambda item: item.endswith("-"))
    assert drain(queue) == "B1 B2 C1"


def test_everything_can_be_seen_and_forgotten() -> None:
    queue = queue_of("A1", "B1", "A2")
    assert sorted(queue) == ["A1", "A2", "B1"]
    queue.clear()
    assert (len(queue), list(queue), list(queue.heads())) == (0, [], [])
    with pytest.raises(IndexError):
        queue.pop()
    queue.append("B", "B1")
    assert drain(queue) == "B1"


class FairQueueModel(RuleBasedStateMachine):
    """A list of (client, items) in the order of turns; the first may take `left` more."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: FairQueue[int] = FairQueue(WEIGHTS)
        self.turns: list[tuple[str, list[int]]] = []
        self.left = 0
        self.taken: list[tuple[str, int]] = []
        self.count = 0

    def items_of(self, client: str) -> list[int]:
        for name, items in self.turns:
            if name == client:
                return items
        self.turns.append((client, []))
        if len(self.turns) == 1:
            self.begin()
        return self.turns[-1][1]

    def begin(self) -> None:
        self.left = WEIGHTS.get(self.turns[0][0], 1) if self.turns else 0

    @rule(client=CLIENTS)
    def append(self, client: str) -> None:
        self.count += 1
        self.queue.append(client, self.count)
        self.items_of(client).append(self.count)

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        client, item = self.taken.pop(data.draw(st.integers(0, len(self.taken) - 1)))
        self.queue.give_back(client, item)
        self.items_of(client).insert(0, item)

    @rule()
    def pop(self) -> None:
        if not self.turns:
            with pytest.raises(IndexError):
                self.queue.pop()
            return
        client, items = self.turns[0]
        item = items.pop(0)
        assert self.queue.pop() == item
        self.taken.append((client, item))
        self.left -= 1
        if not items:
            self.turns.pop(0)
            self.begin()
        elif self.left == 0:
            self.turns.append(self.turns.pop(0))
            self.begin()

    @precondition(lambda self: self.turns)
    @rule(data=st.data())
    def give_turn(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(0, len(self.turns) - 1))
        self.queue.give_turn(self.turns[number][0])
        self.turns.insert(0, self.turns.pop(number))
        self.begin()

    @rule(divisor=st.integers(1, 4))
    def drop_heads(self, divisor: int) -> None:
        self.queue.drop_heads(lambda item: item % divisor == 0)
        first = self.turns[0][0] if self.turns else None
        for _, items in self.turns:
            while items and items[0] % divisor == 0:
                items.pop(0)
        self.turns = [turn for turn in self.turns if turn[1]]
        if first is not None and (not self.turns or self.turns[0][0] != first):
            self.begin()

    @rule()
    def clear(self) -> None:
        self.queue.clear()
        self.turns, self.left = [], 0

    @invariant()
    def same_content(self) -> None:
        assert list(self.queue.heads()) == [items[0] for _, items in self.turns]
        assert list(self.queue) == [item for _, items in self.turns for item in items]
        assert len(self.queue) == len(list(self.queue))


TestFairQueueModel = FairQueueModel.TestCase
TestFairQueueModel.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_dead_items_can_be_dropped_wherever_they_are() -> None:
    queue = FairQueue[str]()
    for item in ("a1", "a2 dead", "a3", "b1 dead", "b2 dead", "c1", "c2 dead"):
        queue.append(item[0], item)
    queue.drop(lambda item: item.endswith("dead"))
    assert len(queue) == 3
    assert [queue.pop() for _ in range(3)] == ["a1", "c1", "a3"]
    queue.append("a", "a dead")
    queue.append("b", "b1")
    queue.drop(lambda item: item.endswith("dead"))
    assert [queue.pop() for _ in range(len(queue))] == ["b1"], "the turn passes on"
