"""The order of work."""

import asyncio
from collections.abc import Container

import pytest

from pkix.algorithms import SIGNATURE_ALGORITHMS
from signer_pool.backlog import MAX_BATCH_BYTES, OVERDUE_S, PATIENCE, Backlog, Call, Item, Kind, Priority
from signer_pool.errors import PoolClosed, PoolFull

KEYS = frozenset({"a", "b"})


def items(
    tbs: str,
    key: str = "a",
    priority: Priority = Priority.BULK,
    at: float = 0.0,
    *,
    client: str = "",
    algorithm: str = "sha256WithRSAEncryption",
) -> list[Item]:
    """Make one call with an item for each letter. Only inside a running loop."""
    future: asyncio.Future[list[bytes]] = asyncio.get_running_loop().create_future()
    call = Call(
        future,
        key=key,
        algorithm=SIGNATURE_ALGORITHMS[algorithm],
        count=len(tbs),
        priority=priority,
        client=client,
        queued_at=at,
    )
    return [Item(call, index, letter.encode()) for index, letter in enumerate(tbs)]


def backlog(limit: int = 999, **weights: int) -> Backlog:
    return Backlog(limit=limit, batch_age_s=0.5, weights=weights)


def three(_: Kind) -> int:
    return 3


def take(waiting: Backlog, keys: Container[str] = KEYS, now: float = 0.0) -> str:
    return text(waiting.take(keys, three, now))


def text(batch: list[Item]) -> str:
    return "".join(item.tbs.decode() for item in batch)


async def test_urgent_first_and_classes_do_not_mix() -> None:
    waiting = backlog()
    waiting.accept(items("rr", priority=Priority.REFRESH))
    waiting.accept(items("bb", priority=Priority.BULK))
    waiting.accept(items("x", priority=Priority.REVOCATION))
    waiting.accept(items("o", priority=Priority.NEW_OCSP))
    assert [take(waiting) for _ in range(5)] == ["x", "o", "bb", "rr", ""]
    assert len(waiting) == 0


async def test_batches_hold_one_key_and_keys_take_turns() -> None:
    waiting = backlog()
    waiting.accept(items("1234", key="b", at=2.0))
    waiting.accept(items("abcd", key="a", at=1.0))
    waiting.accept(items("xyz", key="c", at=3.0))
    assert [take(waiting, {*KEYS, "c"}) for _ in range(5)] == ["123", "abc", "xyz", "4", "d"]


async def test_batches_hold_one_algorithm() -> None:
    waiting = backlog()
    waiting.accept(items("1", at=1.0))
    waiting.accept(items("2", at=2.0, algorithm="rsassa-pss-sha256"))
    waiting.accept(items("3", at=3.0))
    batch = waiting.take(KEYS, three, 0.0)
    assert text(batch) == "13"
    assert {item.call.algorithm.name for item in batch} == {"sha256WithRSAEncryption"}
    assert take(waiting) == "2"


async def test_size_of_a_batch_depends_on_its_kind() -> None:
    waiting = backlog()
    waiting.accept(items("1234", key="a", at=1.0))
    waiting.accept(items("5678", key="b", at=2.0))
    sizes = {("a", "sha256WithRSAEncryption"): 4, ("b", "sha256WithRSAEncryption"): 1}
    assert waiting.ripe_at(KEYS, sizes.__getitem__) == 0.0
    assert [text(waiting.take(KEYS, sizes.__getitem__, 0.0)) for _ in range(3)] == ["1234", "5", "6"]


async def test_lane_takes_only_keys_that_it_has() -> None:
    waiting = backlog()
    waiting.accept(items("1", key="b", priority=Priority.REVOCATION))
    waiting.accept(items("2", key="a"))
    assert take(waiting, {"a"}) == "2"
    assert take(waiting, {"a"}) == ""
    assert waiting.ripe_at({"a"}, three) is None
    assert len(waiting) == 1


async def test_clients_take_turns_inside_their_class() -> None:
    waiting = backlog(two=2)
    waiting.accept(items("AAAA", client="flood", at=1.0))
    waiting.accept(items("bbb", client="two", at=2.0))
    waiting.accept(items("c", client="one", at=3.0))
    waiting.accept(items("x", client="flood", priority=Priority.CRL, at=4.0))
    assert [take(waiting) for _ in range(4)] == ["x", "Abb", "cAb", "AA"]


async def test_all_or_none_is_accepted_in_each_class() -> None:
    waiting = backlog(limit=3)
    waiting.accept(items("12"))
    with pytest.raises(PoolFull, match="2 signatures of the class bulk wait already; the bound is 3"):
        waiting.accept(items("34", key="b"))
    assert len(waiting) == 2
    waiting.accept(items("34", priority=Priority.REVOCATION))
    waiting.accept(items("5"))
    assert [waiting.depth(priority) for priority in Priority] == [2, 0, 0, 0, 3, 0]


async def test_given_back_items_come_first_in_their_order_and_beyond_the_bound() -> None:
    waiting = backlog(limit=4)
    waiting.accept(items("1234"))
    batch = waiting.take(KEYS, three, 0.0)
    waiting.accept(items("567"))
    waiting.give_back(batch)
    assert len(waiting) == 7
    assert take(waiting) + take(waiting) == "123456"


async def test_items_of_settled_calls_fall_out() -> None:
    waiting = backlog()
    gone, stays, gone_too = items("12"), items("3"), items("4")
    for call in (gone, stays, gone_too):
        waiting.accept(call)
    gone[0].call.future.cancel()
    gone_too[0].call.future.cancel()
    waiting.forget(gone_too[0].call)
    assert waiting.ripe_at(KEYS, three) == 0.5
    assert len(waiting) == 3, "of one it was not told yet"
    waiting.forget(gone[0].call)
    assert len(waiting) == 1
    assert take(waiting) == "3"
    assert len(waiting) == 0


async def test_full_batch_is_ripe_at_once() -> None:
    waiting = backlog()
    waiting.accept(items("12", at=7.0))
    assert waiting.ripe_at(KEYS, three) == 7.5
    waiting.accept(items("3", at=7.1))
    assert waiting.ripe_at(KEYS, three) == 0.0


async def test_large_items_make_small_batches() -> None:
    waiting = backlog()
    large = items("123")
    for item in large:
        item.tbs = bytes(MAX_BATCH_BYTES)
    waiting.accept(large)
    assert [len(waiting.take(KEYS, three, 0.0)) for _ in range(3)] == [1, 1, 1]


async def test_overdue_item_is_passed_over_by_so_many_batches_and_no_more() -> None:
    waiting = backlog()
    waiting.accept(items("xxx" * (2 * PATIENCE + 2), priority=Priority.REVOCATION, at=1.0))
    waiting.accept(items("bulk", at=0.0))
    assert take(waiting, now=OVERDUE_S / 2) == "xxx"  # nothing is overdue yet
    taken = [take(waiting, now=OVERDUE_S) for _ in range(2 * PATIENCE + 2)]
    assert taken == [*["xxx"] * PATIENCE, "bul", *["xxx"] * PATIENCE, "k"]


async def test_patience_is_for_the_item_not_for_its_neighbours() -> None:
    """A class full of clients that take turns must not make the longest-waiting one wait for them all."""
    waiting = backlog()
    waiting.accept(items("x" * 99, priority=Priority.REVOCATION, at=1.0))
    for client in "abcdefg":
        waiting.accept(items(client * 2, client=client, at=0.0 if client == "f" else 0.5))
    taken = [take(waiting, now=9.0) for _ in range(PATIENCE + 1)]
    assert taken == [*["xxx"] * PATIENCE, "fab"]


async def test_patience_is_not_lost_by_lanes_that_do_not_have_the_key() -> None:
    """With two lanes of which one has a single key, it is the other that has to keep the promise."""
    waiting = backlog()
    waiting.accept(items("x" * 200, key="a", priority=Priority.REVOCATION, at=1.0))
    waiting.accept(items("bulk", key="b", at=0.0))
    taken = []
    for _ in range(PATIENCE + 1):
        assert take(waiting, {"a"}, now=9.0) == "xxx"
        taken.append(take(waiting, now=9.0))
    assert taken == [*["xxx"] * PATIENCE, "bul"]


async def test_failing_all() -> None:
    waiting = backlog()
    first, second = items("12"), items("3", key="b")
    waiting.accept(first)
    waiting.accept(second)
    waiting.fail_all(PoolClosed("closed"))
    assert len(waiting) == 0
    for item in (first[0], second[0]):
        assert isinstance(item.call.future.exception(), PoolClosed)


async def test_call_is_settled_once() -> None:
    (one,) = items("1")
    one.call.fail(PoolClosed("closed"))
    one.call.fail(PoolFull("full"))
    one.call.deliver(0, b"signature")
    assert isinstance(one.call.future.exception(), PoolClosed)


async def test_call_has_its_signatures_in_their_order() -> None:
    one, two = items("12")
    two.call.deliver(1, b"B")
    assert not two.call.future.done()
    one.call.deliver(0, b"A")
    assert one.call.future.result() == [b"A", b"B"]


async def test_dead_items_of_a_key_that_nobody_takes_neither_fill_the_class_nor_the_memory() -> None:
    waiting = Backlog(limit=4, batch_age_s=0.5)
    for _ in range(50):
        call = items("1234", key="b")
        waiting.accept(call)
        call[0].call.future.cancel()
        waiting.forget(call[0].call)
    assert len(waiting) == 0
    assert sum(len(queue) for queues in waiting._queues.values() for queue in queues.values()) <= 12
    waiting.accept(items("1234", key="a"))
    assert take(waiting) == "123"


async def test_too_many_items_for_ever_and_too_many_for_now_are_two_things() -> None:
    waiting = Backlog(limit=3, batch_age_s=0.5)
    with pytest.raises(ValueError, match="at most 3 can wait"):
        waiting.accept(items("1234"))
    waiting.accept(items("12"))
    with pytest.raises(PoolFull, match="2 signatures of the class"):
        waiting.accept(items("34"))


async def test_item_over_which_a_lane_was_lost_goes_alone() -> None:
    waiting = backlog()
    suspect, after = items("123", at=1.0), items("45", at=2.0)
    suspect[1].losses = 1
    waiting.accept(suspect)
    waiting.accept(after)
    assert [take(waiting) for _ in range(3)] == ["1", "2", "345"]


async def test_settled_items_are_not_given_back() -> None:
    waiting = backlog()
    gone, stays = items("1"), items("2")
    for call in (gone, stays):
        waiting.accept(call)
    batch = waiting.take(KEYS, three, 0.0)
    gone[0].call.future.cancel()
    waiting.give_back(batch)
    assert len(waiting) == 1
    assert take(waiting) == "2"


async def test_only_what_is_urgent_enough_is_taken() -> None:
    waiting = backlog()
    waiting.accept(items("1", priority=Priority.BULK))
    assert waiting.ripe_at(KEYS, three, Priority.INTERACTIVE) is None
    assert waiting.take(KEYS, three, 1000.0, least=Priority.INTERACTIVE) == []
    waiting.accept(items("2", priority=Priority.INTERACTIVE, at=999.0))
    assert waiting.ripe_at(KEYS, three, Priority.INTERACTIVE) == 999.5
    for item in "2", "":
        assert text(waiting.take(KEYS, three, 1000.0, least=Priority.INTERACTIVE)) == item
    assert take(waiting) == "1"
