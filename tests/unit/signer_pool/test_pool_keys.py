"""New keys: made in the first token, once, and shown to all lanes."""

import asyncio

import pytest

from pkix.algorithms import KeyAlgorithm, verify_signature
from signer_pool.errors import (
    KeyExists,
    LaneStartError,
    PoolUnavailable,
)
from signer_pool.lane import Generate, Relist
from signer_pool.pool import Priority
from tests.unit.signer_pool.played import KEYS, ONE, OTHER_SPKI, TWO, PlayedPool, Stage, now
from tests.unit.signer_pool.virtual_time import run_virtual


def test_new_key_is_shown_to_all_lanes() -> None:
    async def main() -> None:
        stage = Stage()
        async with PlayedPool(stage, ONE, ONE) as pool:
            await asyncio.sleep(0.001)
            public_key = await pool.generate_key("new", KeyAlgorithm.EC_P256)
            tbs_list = [bytes((number,)) for number in range(4)]
            for tbs, signature in zip(tbs_list, await pool.sign_many("new", tbs_list, Priority.BULK), strict=True):
                verify_signature(public_key, tbs, signature)
            assert [len(lane.batches) for lane in stage.lanes] == [1, 1]
            with pytest.raises(KeyExists):
                await pool.generate_key("new", KeyAlgorithm.EC_P256)

    run_virtual(main)


def test_key_that_was_made_by_a_lane_that_did_not_live_to_tell_is_not_made_again_elsewhere() -> None:
    async def main() -> None:
        stage = Stage()
        async with PlayedPool(stage, ONE, TWO) as pool:
            await asyncio.sleep(0.001)
            lane = stage.of("one")[0]
            lane.answering_s = 1.0
            generating = asyncio.ensure_future(pool.generate_key("new", KeyAlgorithm.EC_P256))
            await asyncio.sleep(1.5)  # the token makes it now
            stage.opening_s["one"] = 3.0
            lane.made_unheard("new")
            with pytest.raises(PoolUnavailable):
                await generating
            with pytest.raises(KeyExists):
                await pool.generate_key("new", KeyAlgorithm.EC_P256)
            assert len(stage.of("one")) == 2, "it waited until the token could be asked"
            assert all("new" not in lane.public_keys for lane in stage.of("two"))

    run_virtual(main)


def test_keys_are_made_in_the_first_token() -> None:
    async def main() -> None:
        stage = Stage()
        async with PlayedPool(stage, ONE, TWO) as pool:
            await asyncio.sleep(0.001)
            stage.opening_s["one"] = 1.0
            stage.of("one")[0].kill("died")
            await asyncio.sleep(0.1)
            await pool.generate_key("new", KeyAlgorithm.EC_P256)
            assert "new" in stage.of("one")[-1].public_keys
            assert "new" not in stage.of("two")[0].public_keys

    run_virtual(main)


def test_no_key_is_generated_before_every_token_was_seen() -> None:
    """One that is down might have a key of this name."""

    async def main() -> None:
        stage = Stage(None, LaneStartError("unplugged"), LaneStartError("unplugged"))
        stage.keys = {"two": {**KEYS, "root": OTHER_SPKI}}
        async with PlayedPool(stage, ONE, TWO) as pool:
            with pytest.raises(KeyExists):
                await pool.generate_key("root", KeyAlgorithm.EC_P256)
            assert len(stage.opened) == 4

    run_virtual(main)


def test_tokens_that_are_not_seen_in_time_are_named() -> None:
    async def main() -> None:
        stage = Stage(None, *[LaneStartError("unplugged")] * 99)
        async with PlayedPool(stage, ONE, TWO, start_deadline_s=3.0) as pool:
            with pytest.raises(PoolUnavailable, match="token two is down: unplugged"):
                await pool.all_tokens_seen(deadline_s=7.0)
            assert now() == 7.0
            with pytest.raises(PoolUnavailable, match="token two is down: unplugged"):
                await pool.generate_key("new", KeyAlgorithm.EC_P256)
            assert now() == 10.0
            assert pool.labels() == {"ec"}
        async with PlayedPool(Stage(), ONE, TWO) as pool:
            await pool.all_tokens_seen(deadline_s=1.0)

    run_virtual(main)


def test_lane_that_cannot_list_its_keys_is_replaced_and_no_key_is_made_without_it() -> None:
    async def main() -> None:
        stage = Stage(None, None, LaneStartError("no"))
        async with PlayedPool(stage, ONE, TWO) as pool:
            await asyncio.sleep(1)
            stage.lanes[1].errors[Relist] = PoolUnavailable("lost")
            with pytest.raises(PoolUnavailable, match="a token was lost"):
                await pool.generate_key("new", KeyAlgorithm.EC_P256)
            assert stage.lanes[1].killed == ["relist"]
            await asyncio.sleep(0.01)
            assert pool.health().alive == 1
            await pool.generate_key("new", KeyAlgorithm.EC_P256)
            assert pool.health().alive == 2

    run_virtual(main)


def test_no_lane_sees_half_a_key() -> None:
    async def main() -> None:
        stage = Stage()
        async with PlayedPool(stage, ONE, ONE) as pool:
            await asyncio.sleep(0.001)
            stage.lanes[0].answering_s = 1.0
            generating = asyncio.ensure_future(pool.generate_key("new", KeyAlgorithm.EC_P256))
            await asyncio.sleep(1.1)  # it has asked for the keys that are there
            stage.lanes[1].kill("died")
            await asyncio.sleep(0.8)
            assert len(stage.lanes) == 2
            await asyncio.sleep(0.2)
            assert len(stage.lanes) == 3
            await generating

    run_virtual(main)


def test_lane_that_is_down_while_a_key_is_made_finds_it_when_it_is_back() -> None:
    async def main() -> None:
        stage = Stage()
        async with PlayedPool(stage, ONE, ONE) as pool:
            await asyncio.sleep(0.001)
            stage.opening_s["one"] = 1.0
            stage.lanes[1].kill("died")
            await asyncio.sleep(0.1)
            await pool.generate_key("new", KeyAlgorithm.EC_P256)
            await asyncio.sleep(1.0)
            await pool.sign_many("new", [b"tbs"] * 4, Priority.BULK)
            assert [len(lane.batches) for lane in stage.lanes] == [1, 0, 1]

    run_virtual(main)


def test_key_that_the_token_refuses_to_make() -> None:
    async def main() -> None:
        stage = Stage()
        async with PlayedPool(stage) as pool:
            stage.lanes[0].errors[Generate] = KeyExists("under another name")
            with pytest.raises(KeyExists, match="under another"):
                await pool.generate_key("new", KeyAlgorithm.EC_P256)
            assert pool.labels() == {"ec"}

    run_virtual(main)


def test_token_that_is_lost_while_the_door_is_shut_ends_the_making_of_a_key() -> None:
    async def main() -> None:
        stage = Stage()
        async with PlayedPool(stage, ONE, ONE, TWO) as pool:
            await asyncio.sleep(0.001)
            stage.opening_s = {"one": 1.0, "two": 5.0}
            stage.of("one")[1].kill("died")  # while it starts again, nobody else may use the door
            await asyncio.sleep(0.1)
            generating = asyncio.ensure_future(pool.generate_key("new", KeyAlgorithm.EC_P256))
            await asyncio.sleep(0.1)
            stage.of("two")[0].kill("gone")
            with pytest.raises(PoolUnavailable, match="before the key could be made"):
                await generating
            assert pool.labels() == {"ec"}

    run_virtual(main)


def test_key_waits_for_a_lane() -> None:
    async def main() -> None:
        stage = Stage()
        async with PlayedPool(stage) as pool:
            stage.opening_s["one"] = 1.0
            stage.lanes[0].kill("died")
            await asyncio.sleep(0.1)
            await pool.generate_key("new", KeyAlgorithm.EC_P256)
            assert now() >= 1.0

    run_virtual(main)


def test_work_that_came_while_a_key_was_made_leaves_when_the_lane_has_a_place() -> None:
    """A ping and a new key fill the pipe, and neither's answer is one of the dispatcher's."""

    async def main() -> None:
        stage = Stage()
        async with PlayedPool(stage, keep_alive_s=10.0) as pool:
            (lane,) = stage.lanes
            lane.answering_s = 1.0
            await asyncio.sleep(10.1)
            generating = asyncio.ensure_future(pool.generate_key("new", KeyAlgorithm.EC_P256))
            await asyncio.sleep(0.1)
            assert lane.in_flight == 2
            await pool.sign("ec", b"tbs", Priority.REVOCATION)
            assert now() <= 14.2
            await generating

    run_virtual(main)
