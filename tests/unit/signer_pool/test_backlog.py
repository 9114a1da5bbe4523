"""The order of work."""

import asyncio

import pytest

from signer_pool.backlog import MAX_BATCH_BYTES, Backlog, Call, Item, Priority
from signer_pool.errors import PoolClosed, PoolFull

KEYS = frozenset({"a", "b"})


def items(tbs: str, key: str = "a", priority: Priority = Priority.BULK, at: float = 0.0) -> list[Item]:
    """Make one call with an item for each letter. Only inside a running loop."""
    future: asyncio.Future[list[bytes]] = asyncio.get_running_loop().create_future()
    call = Call(future, key=key, count=len(tbs), priority=priority, queued_at=at)
    return [Item(call, index, letter.encode()) for index, letter in enumerate(tbs)]


def backlog(limit: int = 100, batch_size: int = 3) -> Backlog:
    return Backlog(limit=limit, batch_size=batch_size, batch_age_s=0.5)


def text(batch: list[Item]) -> str:
    return "".join(item.tbs.decode() for item in batch)


async def test_urgent_first_and_classes_do_not_mix() -> None:
    waiting = backlog()
    waiting.accept(items("rr", priority=Priority.REFRESH))
    waiting.accept(items("bb", priority=Priority.BULK))
    waiting.accept(items("x", priority=Priority.REVOCATION))
    waiting.accept(items("o", priority=Priority.NEW_OCSP))
    assert [text(waiting.take(KEYS)) for _ in range(5)] == ["x", "o", "bb", "rr", ""]
    assert len(waiting) == 0


async def test_batches_hold_one_key_and_the_oldest_leaves_first() -> None:
    waiting = backlog()
    waiting.accept(items("1234", key="b", at=2.0))
    waiting.accept(items("abcd", key="a", at=1.0))
    waiting.accept(items("xyz", key="c", at=3.0))
    assert [text(waiting.take({*KEYS, "c"})) for _ in range(5)] == ["abc", "d", "123", "4", "xyz"]


async def test_lane_takes_only_keys_that_it_has() -> None:
    waiting = backlog()
    waiting.accept(items("1", key="b", priority=Priority.REVOCATION))
    waiting.accept(items("2", key="a"))
    assert text(waiting.take({"a"})) == "2"
    assert waiting.take({"a"}) == []
    assert waiting.ripe_at({"a"}) is None
    assert len(waiting) == 1


async def test_all_or_none_is_accepted() -> None:
    waiting = backlog(limit=3)
    waiting.accept(items("12"))
    with pytest.raises(PoolFull):
        waiting.accept(items("34"))
    assert len(waiting) == 2
    waiting.accept(items("5"))


async def test_given_back_items_come_first_in_their_order_and_beyond_the_bound() -> None:
    waiting = backlog(limit=4)
    waiting.accept(items("1234"))
    batch = waiting.take(KEYS)
    waiting.accept(items("567"))
    waiting.give_back(batch)
    assert len(waiting) == 7
    assert text(waiting.take(KEYS) + waiting.take(KEYS)) == "123456"


async def test_items_of_settled_calls_fall_out() -> None:
    waiting = backlog()
    gone, stays, gone_too = items("12"), items("3"), items("4")
    for call in (gone, stays, gone_too):
        waiting.accept(call)
    gone[0].call.future.cancel()
    gone_too[0].call.future.cancel()
    assert waiting.ripe_at(KEYS) == 0.5
    assert len(waiting) == 2
    assert text(waiting.take(KEYS)) == "3"
    assert len(waiting) == 0


async def test_full_batch_is_ripe_at_once() -> None:
    waiting = backlog()
    waiting.accept(items("12", at=7.0))
    assert waiting.ripe_at(KEYS) == 7.5
    waiting.accept(items("3", at=7.1))
    assert waiting.ripe_at(KEYS) == 0.0


async def test_large_items_make_small_batches() -> None:
    waiting = backlog()
    large = items("123")
    for item in large:
        item.tbs = bytes(MAX_BATCH_BYTES)
    waiting.accept(large)
    assert [len(waiting.take(KEYS)) for _ in range(3)] == [1, 1, 1]


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
