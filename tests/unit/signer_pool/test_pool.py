"""The pool over lanes that the test plays: opening, batches, new keys, what it says of itself."""

import asyncio
import hashlib
import math
from typing import cast

import pytest
from prometheus_client import CollectorRegistry

from pkix.algorithms import KeyAlgorithm, verify_signature
from pkix.errors import UnsupportedKey
from signer_pool import pool as pool_module
from signer_pool.errors import (
    LaneStartError,
    PinRejected,
    PoolClosed,
    PoolFull,
    UnknownKey,
)
from signer_pool.lane import Lane
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
            with pytest.raises(ValueError, match="4 signatures in one call, at most 3"):
                await pool.sign_many("ec", [b"tbs"] * 4, Priority.BULK)
            with pytest.raises(TypeError, match="bytes"):
                await pool.sign("ec", cast("bytes", "text"), Priority.BULK)
            with pytest.raises(ValueError, match="no number"):
                await pool.sign("ec", b"tbs", Priority.BULK, deadline_s=math.nan)
            calls = [pool.sign("ec", b"tbs", Priority.BULK) for _ in range(5)]
            ends = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(end) for end in ends] == [bytes] * 3 + [PoolFull] * 2
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


def test_no_lane_at_all_raises_the_first_reason() -> None:
    async def main() -> None:
        with pytest.raises(LaneStartError, match="first"):
            async with PlayedPool(Stage(LaneStartError("first"), LaneStartError("second")), ONE, TWO):
                pytest.fail("a pool without a lane was opened")

    run_virtual(main)


def test_reason_that_may_heal_is_raised_before_a_refused_pin() -> None:
    async def main() -> None:
        with pytest.raises(LaneStartError, match="away") as caught:
            async with PlayedPool(Stage(PinRejected("refused"), LaneStartError("away")), ONE, TWO):
                pytest.fail("a pool without a lane was opened")
        assert type(caught.value) is LaneStartError

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
            assert sample(pool.registry, "certmill_signer_ckr_total", token="one", code="CKR_PIN_INCORRECT") == 1

    run_virtual(main)


def test_crashed_keeper_is_told_and_does_not_take_the_pool_with_it() -> None:
    async def main() -> None:
        with pytest.raises(LaneStartError, match="bug: ZeroDivisionError"):
            async with PlayedPool(Stage(ZeroDivisionError())):
                pytest.fail("a pool without a lane was opened")
        async with PlayedPool(Stage(None, ZeroDivisionError()), ONE, TWO) as pool:
            await asyncio.sleep(1)
            assert [line[1] for line in pool.log.lines if line[0] == "error"] == ["lane keeper: bug"]
            assert [lane.state for lane in pool.health().lanes] == [LaneState.READY] * 2, "it goes on"

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
            assert sample(pool.registry, "certmill_signer_missing_keys", token="two") == 1
            assert sample(pool.registry, "certmill_signer_missing_keys", token="one") == 0
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
            ]
            await asyncio.sleep(1)
            assert pool.health().reasons() == ["token three is failed: locked"]
            stage.opening_s["one"] = 1.0
            stage.lanes[0].kill("died")
            await asyncio.sleep(0.1)
            assert pool.health().reasons()[1:] == ["lane-0 of token one is down: died"]

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


def test_token_whose_pin_is_known_to_be_refused_is_not_opened() -> None:
    async def main() -> None:
        stage = Stage()
        told: list[tuple[str, str]] = []
        pool = PlayedPool(
            stage,
            ONE,
            TWO,
            refused_tokens={"one": "its PIN was refused before", "three": "of no interest"},
            on_token_failed=lambda *what: told.append(what),
        )
        async with pool:
            await asyncio.sleep(10)
            assert [name for _, name in stage.opened] == ["two"]
            assert pool.health().reasons() == ["token one is failed: its PIN was refused before"]
            assert told == []
        with pytest.raises(PinRejected, match="before"):
            async with PlayedPool(stage, ONE, refused_tokens={"one": "its PIN was refused before"}):
                pytest.fail("a pool without a lane was opened")

    run_virtual(main)


def test_expected_key_shuts_out_a_wrong_token_that_comes_first() -> None:
    async def main() -> None:
        stage = Stage()
        stage.keys = {"one": {"ec": OTHER_SPKI}}
        stage.opening_s["two"] = 1.0
        async with PlayedPool(stage, ONE, TWO, expected={"ec": hashlib.sha256(SPKI).digest()}) as pool:
            await pool.sign("ec", b"tbs", Priority.BULK)
            assert sent_to(stage, "one") == 0
            assert "is not the one that is expected" in pool.health().reasons()[0]

    run_virtual(main)


def sent_to(stage: Stage, token: str) -> int:
    return sum(len(lane.batches) for lane in stage.of(token))


def test_pool_can_be_closed_twice() -> None:
    async def main() -> None:
        async with PlayedPool(Stage()) as pool:
            await pool.aclose()
        with pytest.raises(PoolClosed):
            await pool.sign("ec", b"tbs", Priority.BULK)

    run_virtual(main)


def test_token_that_goes_by_two_names_is_told() -> None:
    async def main() -> None:
        stage = Stage()
        stage.described = {"one": "serial 1", "two": "serial 1"}
        async with PlayedPool(stage, ONE, ONE, TWO, token("three")) as pool:
            await asyncio.sleep(0.001)
            told = [line[2] for line in pool.log.lines if "two names" in line[1]]
            assert {str(line["token"]) for line in told} <= {"one", "two"}
            assert {str(line["also"]) for line in told} <= {"['one']", "['two']"}
            assert told

    run_virtual(main)
