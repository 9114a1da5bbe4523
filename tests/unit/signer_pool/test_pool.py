"""The pool over lanes that the test plays: opening, batches, new keys, what it says of itself."""

import asyncio
import time

import pytest
from prometheus_client import CollectorRegistry

from pkix.algorithms import KeyAlgorithm, verify_signature
from pkix.errors import UnsupportedKey
from signer_pool import pool as pool_module
from signer_pool.budget import NOW, Commitment, Freshness, Plan
from signer_pool.errors import (
    BudgetExceeded,
    KeyExists,
    LaneStartError,
    PinRejected,
    PoolClosed,
    PoolFull,
    PoolUnavailable,
    UnknownKey,
)
from signer_pool.lane import Generate, Lane, Relist
from signer_pool.lane_config import LaneConfig
from signer_pool.pool import LaneState, Priority, SignerPool, TokenState
from tests.unit.signer_pool.lanes import MemoryLogger, sample
from tests.unit.signer_pool.played import KEY, KEYS, ONE, OTHER_SPKI, SPKI, TWO, PlayedPool, Stage, now, token
from tests.unit.signer_pool.virtual_time import run_virtual


def test_two_batches_in_the_pipe_and_the_second_waits_for_size_or_age() -> None:
    async def main() -> None:
        stage = Stage()
        async with PlayedPool(stage) as pool:
            async with asyncio.TaskGroup() as group:
                group.create_task(pool.sign("ec", b"1", Priority.BULK))
                await asyncio.sleep(0.5)
                group.create_task(pool.sign("ec", b"2", Priority.BULK))
                await asyncio.sleep(0.1)
                assert pool.health().queue_depth == 1
                await asyncio.sleep(0.6)
                for number in b"345":
                    group.create_task(pool.sign("ec", bytes((number,)), Priority.BULK))
            (lane,) = stage.lanes
            # 0.75: the age of "2". 1.2: "34" fill a batch. 2.0: the pipe has a place; "5" is old enough.
            assert lane.batches == [(0.0, [b"1"]), (0.75, [b"2"]), (1.2, [b"3", b"4"]), (2.0, [b"5"])]
            assert lane.algorithms == ["ecdsa-with-SHA256"] * 4

    run_virtual(main)


def test_all_lanes_get_a_first_batch_before_any_gets_a_second() -> None:
    async def main() -> None:
        stage = Stage()
        async with PlayedPool(stage, ONE, TWO) as pool:
            await asyncio.sleep(1)
            assert pool.health().alive == pool.health().total == 2
            await pool.sign_many("ec", [bytes((number,)) for number in range(6)], Priority.BULK)
            assert [len(lane.batches) for lane in stage.lanes] == [2, 1]

    run_virtual(main)


def test_busy_lanes_wait_for_the_age_together() -> None:
    async def main() -> None:
        stage = Stage()
        async with PlayedPool(stage, ONE, TWO) as pool:
            await asyncio.sleep(1)
            first = asyncio.create_task(pool.sign_many("ec", [b"1", b"2", b"3"], Priority.BULK))
            await asyncio.sleep(0.1)
            await pool.sign("ec", b"4", Priority.BULK)
            assert [lane.batches for lane in stage.lanes] == [
                [(1.0, [b"1", b"2"]), (1.35, [b"4"])],
                [(1.0, [b"3"])],
            ]
            await first

    run_virtual(main)


def test_urgent_work_overtakes_what_waits() -> None:
    async def main() -> None:
        stage = Stage()
        async with PlayedPool(stage) as pool:
            bulk = asyncio.create_task(pool.sign_many("ec", [b"bulk"] * 12, Priority.BULK))
            await asyncio.sleep(0.5)
            signature = await pool.sign("ec", b"urgent", Priority.REVOCATION)
            assert now() <= 3.0
            verify_signature(KEY.public_key(), b"urgent", signature)
            await bulk

    run_virtual(main)


def test_clients_of_one_class_take_turns_by_weight() -> None:
    async def main() -> None:
        stage = Stage()
        async with PlayedPool(stage, weights={"ministry": 2}) as pool, asyncio.TaskGroup() as group:
            for client in ("flood", "ministry"):
                tbs_list = [f"{client} {number}".encode() for number in range(4)]
                group.create_task(pool.sign_many("ec", tbs_list, Priority.BULK, client=client))
        order = [tbs.decode().split()[0] for _, batch in stage.lanes[0].batches for tbs in batch]
        assert order == ["flood", "ministry", "ministry", "flood", "ministry", "ministry", "flood", "flood"]

    run_virtual(main)


def test_cancelled_caller_disturbs_nobody() -> None:
    async def main() -> None:
        stage = Stage()
        async with PlayedPool(stage) as pool:
            calls = [asyncio.create_task(pool.sign("ec", bytes((number,)), Priority.BULK)) for number in range(6)]
            await asyncio.sleep(0.5)
            calls[0].cancel()
            calls[5].cancel()
            for call in calls[1:5]:
                await call
            assert b"".join(tbs for _, batch in stage.lanes[0].batches for tbs in batch) == b"\0\1\2\3\4"

    run_virtual(main)


def test_wrong_use_is_refused_at_once() -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="needs a lane"):
            SignerPool(lanes=[], registry=CollectorRegistry(), logger=MemoryLogger())
        closed = PlayedPool(Stage())
        with pytest.raises(PoolClosed):
            await closed.sign("ec", b"tbs", Priority.BULK)
        async with PlayedPool(Stage(), queue_limit=3) as pool:
            with pytest.raises(PoolFull):
                await pool.sign_many("ec", [b"tbs"] * 4, Priority.BULK)
            with pytest.raises(UnknownKey):
                await pool.sign("other", b"tbs", Priority.BULK)
            with pytest.raises(UnknownKey):
                await pool.sign("other", b"tbs", Priority.BULK, algorithm="ecdsa-with-SHA256")
            with pytest.raises(UnsupportedKey):
                await pool.sign("ec", b"tbs", Priority.BULK, algorithm="ecdsa-with-SHA384")
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(pool_module, "MAX_TBS_BYTES", 3)
                with pytest.raises(ValueError, match="TBS of more than"):
                    await pool.sign("ec", b"tbs!", Priority.BULK)
            for label in ("", "../key", "a/b", "a\0b", "x" * 65):
                with pytest.raises(ValueError, match="key label"):
                    await pool.generate_key(label, KeyAlgorithm.EC_P256)
            assert pool.labels() == {"ec"}

    run_virtual(main)


def commit(pool: SignerPool, busy_per_s: float) -> None:
    """Have all but a little of the one signature a second that a played lane signs committed."""
    pool.budget.commit([Plan(NOW, [Commitment("refresh", "ec", busy_per_s)])], Freshness(0, None))


def test_bulk_waits_for_its_share_of_the_budget_and_no_longer_than_its_deadline() -> None:
    async def main() -> None:
        stage = Stage()
        clock = asyncio.get_running_loop().time
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(time, "monotonic", clock)
            async with PlayedPool(stage, batch_size=1, bulk_reserve=0.0) as pool:
                await pool.sign("ec", b"measured", Priority.INTERACTIVE)
                commit(pool, 0.5)
                began = now()
                await pool.sign("ec", b"from the bucket", Priority.BULK)
                assert now() - began == 1.0
                began = now()
                await pool.sign("ec", b"delayed", Priority.BULK)
                assert now() - began == 2.0  # one second in which half a signature was left over, twice
                await pool.sign("ec", b"urgent work is not asked", Priority.REVOCATION)
                began = now()
                calls = [pool.sign("ec", b"tbs", Priority.BULK, deadline_s=1.5) for _ in range(3)]
                ends = await asyncio.gather(*calls, return_exceptions=True)
                assert any(isinstance(end, PoolUnavailable) for end in ends)
                assert now() - began == 1.5
                commit(pool, 1.0)
                with pytest.raises(BudgetExceeded, match="nothing is left"):
                    await pool.sign("ec", b"refused", Priority.BULK)

    run_virtual(main)


def test_bulk_that_waits_for_its_share_when_the_pool_is_closed_is_told_so() -> None:
    async def main() -> None:
        stage = Stage()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(time, "monotonic", asyncio.get_running_loop().time)
            async with PlayedPool(stage, batch_size=1, bulk_reserve=0.0) as pool:
                await pool.sign("ec", b"measured", Priority.INTERACTIVE)
                commit(pool, 0.5)
                calls = [asyncio.ensure_future(pool.sign("ec", b"tbs", Priority.BULK)) for _ in range(2)]
                await asyncio.sleep(0.5)
            ends = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(end) for end in ends] == [PoolClosed, PoolClosed]
            assert now() <= 4.0

    run_virtual(main)


def test_no_lane_at_all_raises_the_first_reason() -> None:
    async def main() -> None:
        with pytest.raises(LaneStartError, match="first"):
            async with PlayedPool(Stage(LaneStartError("first"), LaneStartError("second")), ONE, TWO):
                pytest.fail("a pool without a lane was opened")

    run_virtual(main)


def test_refused_pin_is_final_for_all_lanes_of_the_token_and_no_other() -> None:
    async def main() -> None:
        stage = Stage(PinRejected("refused", 0xA0))
        async with PlayedPool(stage, ONE, TWO, ONE) as pool:
            await asyncio.sleep(100)
            states = [lane.state for lane in pool.health().lanes]
            assert states == [LaneState.FAILED, LaneState.READY, LaneState.FAILED]
            assert [name for _, name in stage.opened] == ["one", "two"]
            one, two = pool.health().tokens
            assert (one.state, one.reason, two.state, two.reason) == (
                TokenState.FAILED,
                "refused",
                TokenState.UP,
                "",
            )
            assert sample(pool.registry, "certmill_signer_lanes", token="one", state="failed") == 2
            assert sample(pool.registry, "certmill_signer_token_down", token="one") == 1
            assert sample(pool.registry, "certmill_signer_ckr_total", code="CKR_PIN_INCORRECT") == 1

    run_virtual(main)


def test_crashed_keeper_is_told_and_does_not_take_the_pool_with_it() -> None:
    async def main() -> None:
        with pytest.raises(LaneStartError, match="bug: ZeroDivisionError"):
            async with PlayedPool(Stage(ZeroDivisionError())):
                pytest.fail("a pool without a lane was opened")
        async with PlayedPool(Stage(None, ZeroDivisionError()), ONE, TWO) as pool:
            await asyncio.sleep(1)
            assert [lane.state for lane in pool.health().lanes] == [LaneState.READY, LaneState.FAILED]
            assert [line[1] for line in pool.log.lines if line[0] == "error"] == ["lane keeper crashed"]

    run_virtual(main)


def test_notes_of_lanes_and_keys_that_a_token_lacks_are_told() -> None:
    async def main() -> None:
        stage = Stage()
        stage.keys = {"one": {**KEYS, "root": SPKI}}

        async def opener(config: LaneConfig) -> Lane:
            lane = await stage(config)
            lane.notes = [f"a note of {config.token_name}"]
            return lane

        async with PlayedPool(opener, ONE, TWO) as pool:
            await asyncio.sleep(0.001)
            warnings = [line[2] for line in pool.log.lines if line[0] == "warning"]
            assert warnings == [
                {"lane": "lane-0", "cause": "a note of one"},
                {"lane": "lane-1", "cause": "a note of two"},
                {"token": "two", "keys": ["root"]},
            ]
            assert [health.missing_keys for health in pool.health().tokens] == [(), ("root",)]
            assert pool.health().reasons() == ["token two lacks the keys root"]
            stage.opening_s["one"] = 1.0
            stage.lanes[0].kill("died")
            await asyncio.sleep(0.5)
            assert [health.missing_keys for health in pool.health().tokens] == [(), ("root",)]
            # What two lacks, one signs: the stage would not have it otherwise.
            await pool.sign_many("root", [b"tbs"] * 8, Priority.BULK)
            assert [len(lane.batches) for lane in stage.lanes] == [0, 0, 4]

    run_virtual(main)


def test_reasons_name_dead_tokens_first() -> None:
    async def main() -> None:
        stage = Stage(None, LaneStartError("no such slot"), PinRejected("locked"))
        async with PlayedPool(stage, ONE, TWO, token("three")) as pool:
            await asyncio.sleep(0.001)
            assert pool.health().reasons() == [
                "token two is down: no such slot",
                "token three is failed: locked",
                "lane-1 is down: no such slot",
                "lane-2 is failed: locked",
            ]
            await asyncio.sleep(1)
            assert pool.health().reasons()[0] == "token three is failed: locked"

    run_virtual(main)


def test_lanes_by_state_are_counted() -> None:
    async def main() -> None:
        stage = Stage()
        stage.opening_s["one"] = 1.0
        async with PlayedPool(stage, ONE, ONE) as pool:
            lanes = [sample(pool.registry, "certmill_signer_lanes", token="one", state=s) for s in LaneState]
            assert lanes == [1, 1, 0, 0, 0]
            assert sample(pool.registry, "certmill_signer_token_down", token="one") == 0
            stage.lanes[0].kill("died")
            await asyncio.sleep(0.001)
            lanes = [sample(pool.registry, "certmill_signer_lanes", token="one", state=s) for s in LaneState]
            assert lanes == [1, 0, 1, 0, 0]
            assert sample(pool.registry, "certmill_signer_lane_restarts_total", token="one", reason="died") == 1
            await pool.sign("ec", b"tbs", Priority.BULK)

    run_virtual(main)


def test_new_key_is_shown_to_all_lanes() -> None:
    async def main() -> None:
        stage = Stage()
        async with PlayedPool(stage, ONE, ONE) as pool:
            await asyncio.sleep(0.001)
            for lane in stage.lanes:  # the token has it from now on
                lane.public_keys = {**KEYS, "new": SPKI}
            public_key = await pool.generate_key("new", KeyAlgorithm.EC_P256)
            tbs_list = [bytes((number,)) for number in range(4)]
            for tbs, signature in zip(tbs_list, await pool.sign_many("new", tbs_list, Priority.BULK), strict=True):
                verify_signature(public_key, tbs, signature)
            assert [len(lane.batches) for lane in stage.lanes] == [1, 1]
            with pytest.raises(KeyExists):
                await pool.generate_key("new", KeyAlgorithm.EC_P256)

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


def test_lane_that_cannot_list_a_new_key_is_replaced() -> None:
    async def main() -> None:
        stage = Stage(None, None, LaneStartError("no"))
        async with PlayedPool(stage, ONE, TWO) as pool:
            await asyncio.sleep(1)
            stage.lanes[1].errors[Relist] = PoolUnavailable("lost")
            await pool.generate_key("new", KeyAlgorithm.EC_P256)
            assert stage.lanes[1].killed == ["relist"]
            await asyncio.sleep(0.01)
            assert pool.health().alive == 1
            await pool.generate_key("newer", KeyAlgorithm.EC_P256)
            assert pool.health().alive == 2

    run_virtual(main)


def test_no_lane_sees_half_a_key() -> None:
    async def main() -> None:
        stage = Stage()
        async with PlayedPool(stage, ONE, ONE) as pool:
            await asyncio.sleep(0.001)
            stage.lanes[0].answering_s = 1.0
            generating = asyncio.ensure_future(pool.generate_key("new", KeyAlgorithm.EC_P256))
            await asyncio.sleep(0.1)
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
        async with PlayedPool(stage, ONE, TWO) as pool:
            await asyncio.sleep(0.001)
            stage.opening_s["two"] = 1.0
            stage.lanes[1].kill("died")
            await asyncio.sleep(0.1)
            stage.keys["two"] = stage.lanes[0].public_keys = {**KEYS, "new": SPKI}
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


def test_lane_that_is_lost_before_its_turn_generates_nothing() -> None:
    async def main() -> None:
        stage = Stage()
        async with PlayedPool(stage, ONE, ONE) as pool:
            await asyncio.sleep(0.001)
            stage.opening_s["one"] = 1.0
            stage.lanes[1].kill("died")  # while it starts again, nobody else may use the door
            await asyncio.sleep(0.1)
            generating = asyncio.ensure_future(pool.generate_key("new", KeyAlgorithm.EC_P256))
            await asyncio.sleep(0.1)
            stage.lanes[0].kill("gone")
            with pytest.raises(PoolUnavailable, match="before it could"):
                await generating

    run_virtual(main)


def test_no_key_without_a_lane() -> None:
    async def main() -> None:
        stage = Stage()
        async with PlayedPool(stage) as pool:
            stage.opening_s["one"] = 1.0
            stage.lanes[0].kill("died")
            await asyncio.sleep(0.1)
            with pytest.raises(PoolUnavailable, match="no lane is ready"):
                await pool.generate_key("new", KeyAlgorithm.EC_P256)

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
            assert now() <= 14.0
            await generating

    run_virtual(main)
