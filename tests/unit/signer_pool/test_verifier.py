"""Verifying in slices, the urgent first."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from signer_pool import verifier as verifier_module
from signer_pool.backlog import Call, Item, Priority
from signer_pool.errors import PoolClosed
from signer_pool.key_ring import KeyRing
from signer_pool.verifier import SignedBatch, Verifier
from tests.unit.signer_pool.played import ALGORITHM, SPKI, sign

BATCH = 6


class Scene:
    """A verifier whose slices are two signatures long."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ticks = 0
        monkeypatch.setattr(verifier_module.time, "perf_counter", self._tick)  # type: ignore[attr-defined]
        monkeypatch.setattr(verifier_module, "SLICE_S", 1.5)
        monkeypatch.setattr(verifier_module, "OVERDUE_S", 1000.0)
        ring = KeyRing()
        ring.adopt(cast("Any", SimpleNamespace(public_keys={"ec": SPKI})))
        self.verified: list[SignedBatch] = []
        self.verifier = Verifier(
            loop=asyncio.get_running_loop(), ring=ring, on_verified=self.verified.append, verify=True
        )

    def _tick(self) -> float:
        self.ticks += 1
        return float(self.ticks)

    def answer(self, priority: Priority, *wrong: int) -> SignedBatch:
        future: asyncio.Future[list[bytes]] = asyncio.get_running_loop().create_future()
        call = Call(
            future, key="ec", algorithm=ALGORITHM, count=BATCH, priority=priority, client="", queued_at=0.0
        )
        items = [Item(call, index, b"%d" % index) for index in range(BATCH)]
        signatures = [b"wrong" if item.index in wrong else sign(item.tbs) for item in items]
        return SignedBatch(cast("Any", None), cast("Any", None), items, signatures, is_whole=True)


async def test_loop_goes_round_between_slices_and_the_urgent_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    bulk, urgent = scene.answer(Priority.BULK), scene.answer(Priority.REVOCATION)
    scene.verifier.add(bulk)
    assert 0 < bulk.next < BATCH
    begun = bulk.next
    scene.verifier.add(urgent)
    assert (bulk.next, urgent.next > 0) == (begun, True)
    rounds = 0
    while len(scene.verified) < 2:
        await asyncio.sleep(0)
        rounds += 1
        assert rounds < 20
    assert scene.verified == [urgent, bulk]
    assert rounds > 2
    for answer in scene.verified:
        assert len(await answer.items[0].call.future) == BATCH


async def test_wrong_signatures_are_found_wherever_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    answer = scene.answer(Priority.BULK, 0, 3, 5)
    scene.verifier.add(answer)
    while not scene.verified:  # noqa: ASYNC110 - each round of the loop is a slice
        await asyncio.sleep(0)
    assert [item.index for item in answer.wrong] == [0, 3, 5]
    assert not answer.items[0].call.future.done()


async def test_what_is_not_verified_yet_can_be_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    answer = scene.answer(Priority.BULK)
    scene.verifier.add(answer)
    scene.verifier.fail_all(PoolClosed("test"))
    with pytest.raises(PoolClosed):
        await answer.items[0].call.future
    await asyncio.sleep(0)
    assert scene.verified == []


async def test_what_has_waited_long_is_verified_before_a_flood_of_urgent_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = Scene(monkeypatch)
    bulk = scene.answer(Priority.BULK)
    scene.verifier.add(bulk)
    scene.verifier.add(scene.answer(Priority.REVOCATION))
    begun = bulk.next
    scene.ticks += 2000
    scene.verifier.add(scene.answer(Priority.REVOCATION))
    assert bulk.next > begun
