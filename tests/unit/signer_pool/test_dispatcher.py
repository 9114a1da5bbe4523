"""What the pool does about answers: refusals of every kind, wrong signatures, lanes and tokens that are lost."""

import asyncio
from collections.abc import Sequence
from typing import cast

import pytest

from pkix.algorithms import verify_signature
from signer_pool.ckr import Action
from signer_pool.errors import LaneStartError, PoolClosed, PoolUnavailable, SigningFailed, Unsignable
from signer_pool.lane import Signed
from signer_pool.pool import LaneState, Priority, TokenState
from tests.unit.signer_pool.lanes import sample
from tests.unit.signer_pool.played import (
    KEY,
    KEYS,
    ONE,
    SPKI,
    TWO,
    PlayedPool,
    Stage,
    lying,
    now,
    refusing,
    sign,
    signing,
    token,
)
from tests.unit.signer_pool.virtual_time import run_virtual

TBS = [bytes((number,)) for number in b"12345678"]


def sent(stage: Stage, token: str = "one") -> list[list[tuple[float, bytes]]]:
    """Return when which TBS went to which lane of a token."""
    return [[(at, b"".join(tbs)) for at, tbs in lane.batches] for lane in stage.of(token)]


async def signed(pool: PlayedPool, count: int, key: str = "ec") -> None:
    """Have some TBS signed and look at every signature."""
    signatures = await pool.sign_many(key, TBS[:count], Priority.BULK)
    for tbs, signature in zip(TBS[:count], signatures, strict=True):
        verify_signature(KEY.public_key(), tbs, signature)


def test_token_that_is_gone_is_latched_and_its_work_moves_to_the_other_at_once() -> None:
    async def main() -> None:
        stage = Stage(one=[[refusing(Action.TOKEN_DOWN, 0x30, at=1)], None, *[LaneStartError("gone")] * 9])
        async with PlayedPool(stage, ONE, ONE, TWO) as pool:
            await asyncio.sleep(0.5)
            stage.of("one")[1].service_s = stage.of("two")[0].service_s = 1.5
            await signed(pool, 6)
            # At 1.5 the first lane refuses. What it and its neighbour have goes in front, to the other token.
            assert sent(stage) == [[(0.5, b"12")], [(0.5, b"34")]]
            assert sent(stage, "two") == [[(0.5, b"56"), (1.5, b"2"), (2.0, b"34")]]
            assert now() == 5.0
            assert [lane.killed[0] for lane in stage.of("one")] == ["token_down"] * 2
            states = [(health.state, health.reason) for health in pool.health().tokens]
            assert states == [(TokenState.DOWN, "gone"), (TokenState.UP, "")]
            assert sample(pool.registry, "certmill_signer_ckr_total", token="one", code="CKR_DEVICE_ERROR") == 1
            assert sample(pool.registry, "certmill_signer_retries_total", reason="lane_lost") == 2
            assert sample(pool.registry, "certmill_signer_retries_total", reason="refused") == 1
            assert sample(pool.registry, "certmill_signer_signatures_total", key="ec", result="ok") == 6
            assert sample(pool.registry, "certmill_signer_signatures_total", key="ec", result="refused") == 1
            restarts = {"token": "one", "reason": "token_down"}
            assert sample(pool.registry, "certmill_signer_lane_restarts_total", **restarts) == 2

    run_virtual(main)


def test_token_that_comes_back_is_used_again() -> None:
    async def main() -> None:
        stage = Stage([refusing(Action.TOKEN_DOWN)], [refusing(Action.TOKEN_DOWN)])
        async with PlayedPool(stage) as pool:
            await signed(pool, 2)
            # Probed 0.05 s after the first refusal, 0.1 s after the second.
            assert sent(stage) == [[(0.0, b"12")], [(1.05, b"12")], [(2.15, b"12")]]
            assert pool.health().tokens[0].state is TokenState.UP

    run_virtual(main)


def test_login_that_is_taken_back_fails_the_token_for_good() -> None:
    async def main() -> None:
        stage = Stage(one=[[refusing(Action.NEVER, 0xA4)]])
        async with PlayedPool(stage, ONE, TWO, ONE) as pool:
            await asyncio.sleep(0.5)
            await signed(pool, 6)
            await asyncio.sleep(1000)
            assert sorted(name for _, name in stage.opened) == ["one", "one", "two"]
            assert [lane.state for lane in pool.health().lanes] == [
                LaneState.FAILED,
                LaneState.READY,
                LaneState.FAILED,
            ]
            assert pool.health().tokens[0].state is TokenState.FAILED
            assert pool.health().reasons()[0] == "token one is failed: refused: never"
            assert sample(pool.registry, "certmill_signer_ckr_total", token="one", code="CKR_PIN_LOCKED") == 1

    run_virtual(main)


def test_item_that_nobody_can_sign_fails_alone_and_at_once() -> None:
    async def main() -> None:
        stage = Stage([refusing(Action.CALLER, 0x21, at=0)])
        async with PlayedPool(stage) as pool:
            bad = asyncio.ensure_future(pool.sign("ec", b"bad", Priority.BULK))
            good = asyncio.ensure_future(pool.sign("ec", b"good", Priority.BULK))
            with pytest.raises(Unsignable, match="key 'ec': refused: caller"):
                await bad
            assert now() == 1.0
            verify_signature(KEY.public_key(), b"good", await good)
            assert now() == 1.0
            assert stage.lanes[0].killed == []
            assert sample(pool.registry, "certmill_signer_retries_total", reason="refused") == 0
            assert sample(pool.registry, "certmill_signer_ckr_total", token="one", code="CKR_DATA_LEN_RANGE") == 1

    run_virtual(main)


def test_lane_whose_state_is_in_doubt_is_replaced_and_what_was_not_tried_goes_in_front() -> None:
    async def main() -> None:
        stage = Stage([refusing(Action.REPLACE, 0x05, at=1)])
        async with PlayedPool(stage, batch_size=4) as pool:
            await signed(pool, 8)
            assert sent(stage) == [[(0.0, b"1234"), (0.0, b"5678")], [(1.0, b"5678"), (1.0, b"234")]]
            assert stage.lanes[0].killed[0] == "refused"

    run_virtual(main)


def test_item_fails_when_its_only_token_has_refused_it_three_times() -> None:
    async def main() -> None:
        stage = Stage(one=[[refusing(Action.REPLACE)]] * 3)
        stage.keys = {"one": {**KEYS, "own": SPKI}}
        async with PlayedPool(stage, TWO, ONE) as pool:
            await asyncio.sleep(0.5)
            with pytest.raises(SigningFailed, match="key 'own': refused: replace, 3 times") as caught:
                await pool.sign("own", b"tbs", Priority.BULK)
            assert type(caught.value) is SigningFailed
            assert len(stage.of("one")) == 3
            assert sample(pool.registry, "certmill_signer_signatures_total", key="own", result="refused") == 3

    run_virtual(main)


def test_item_is_not_given_up_while_another_token_has_not_refused_it() -> None:
    async def main() -> None:
        stage = Stage(one=[[refusing(Action.REPLACE)]] * 99)
        stage.opening_s["one"] = 0.5
        async with PlayedPool(stage, TWO, ONE, batch_size=1) as pool:
            stage.lanes[0].service_s = 5.0
            busy = asyncio.ensure_future(signed(pool, 2))
            await asyncio.sleep(0.5)
            signature = await pool.sign("ec", b"tbs", Priority.BULK)
            verify_signature(KEY.public_key(), b"tbs", signature)
            # One has refused it once: it was left to two, which had no place until then.
            assert sent(stage, "two") == [[(0.0, b"1"), (0.0, b"2"), (5.0, b"tbs")]]
            assert len(stage.of("one")) == 2
            await busy

    run_virtual(main)


def test_item_fails_when_all_able_tokens_have_refused_it_and_one_often() -> None:
    async def main() -> None:
        stage = Stage(*[[refusing(Action.REPLACE)]] * 9)
        async with PlayedPool(stage, ONE, TWO) as pool:
            await asyncio.sleep(0.001)
            with pytest.raises(SigningFailed, match="3 times"):
                await pool.sign("ec", b"tbs", Priority.BULK)
            # Three times by one token, and by the other as often as it came to it.
            refusals = sorted(sum(map(len, sent(stage, name))) for name in ("one", "two"))
            assert refusals[0] >= 1
            assert refusals[1] == 3

    run_virtual(main)


@pytest.mark.parametrize("wrong", [b"wrong", b""])
def test_wrong_signature_quarantines_the_lane_and_no_caller_sees_it(wrong: bytes) -> None:
    """Nor an empty one, which a broken module may give instead of an error."""

    async def main() -> None:
        stage = Stage([lambda tbs: Signed(0, [sign(tbs[0]), wrong], {}, 1.0)])
        async with PlayedPool(stage) as pool:
            call = asyncio.ensure_future(signed(pool, 2))
            await asyncio.sleep(1.5)
            (health,) = pool.health().lanes
            assert (health.state, health.last_error) == (LaneState.QUARANTINED, "wrong_signature")
            assert pool.health().tokens[0].state is TokenState.UP
            assert sample(pool.registry, "certmill_signer_lanes", token="one", state="quarantined") == 1
            await call
            assert sent(stage) == [[(0.0, b"12")], [(3.0, b"2")]]
            assert sample(pool.registry, "certmill_signer_signatures_total", key="ec", result="wrong") == 1
            assert sample(pool.registry, "certmill_signer_verifications_rejected_total") == 1
            errors = [line[1] for line in pool.log.lines if line[0] == "error"]
            assert errors == ["wrong signature: the lane is quarantined", "lane is down"]

    run_virtual(main)


def test_every_answer_of_a_lane_that_lies_is_looked_at() -> None:
    async def main() -> None:
        stage = Stage()
        async with PlayedPool(stage) as pool:
            call = asyncio.ensure_future(signed(pool, 3))
            await asyncio.sleep(0.5)
            (liar,) = stage.lanes
            assert sent(stage) == [[(0.0, b"12"), (0.25, b"3")]]
            liar.answer(Signed(0, [b"wrong"] * 2, {}, 1.0))
            liar.answer(Signed(0, [b"wrong"], {}, 1.0))
            assert liar.killed == ["wrong_signature"] * 2
            await call
            assert len(stage.lanes) == 2

    run_virtual(main)


def test_three_wrong_signatures_end_a_call() -> None:
    async def main() -> None:
        async with PlayedPool(Stage(*[[lying]] * 3)) as pool:
            with pytest.raises(SigningFailed, match="the signature does not verify, 3 times"):
                await pool.sign("ec", b"tbs", Priority.BULK)

    run_virtual(main)


def test_nothing_is_verified_where_that_was_asked_for() -> None:
    async def main() -> None:
        async with PlayedPool(Stage([lying]), verify=False) as pool:
            assert await pool.sign("ec", b"tbs", Priority.BULK) == b"wrong"

    run_virtual(main)


def test_healed_errors_are_counted_and_nobody_sees_them() -> None:
    async def main() -> None:
        stage = Stage([lambda tbs: Signed(0, [sign(one) for one in tbs], {}, 1.0, {0xB3: 2, 0x06: 1})])
        async with PlayedPool(stage) as pool:
            await signed(pool, 2)
            assert (
                sample(pool.registry, "certmill_signer_ckr_total", token="one", code="CKR_SESSION_HANDLE_INVALID")
                == 2
            )
            assert sample(pool.registry, "certmill_signer_ckr_total", token="one", code="CKR_FUNCTION_FAILED") == 1
            assert not [line for line in pool.log.lines if line[0] == "error"]

    run_virtual(main)


def test_deadline_of_a_batch_follows_the_measured_pace() -> None:
    async def main() -> None:
        stage = Stage()
        async with PlayedPool(stage, batch_deadline_s=100.0) as pool:
            (lane,) = stage.lanes
            for _ in range(2):
                await signed(pool, 2)  # 0.5 s for each signature
            await signed(pool, 1)
            assert lane.deadlines_s == [100.0, 50.0, 25.0]

    run_virtual(main)


def test_calls_end_at_their_own_deadline() -> None:
    async def main() -> None:
        stage = Stage()
        async with PlayedPool(stage) as pool:
            stage.lanes[0].service_s = 5.0
            with pytest.raises(PoolUnavailable, match=r"no signature within 3\.5 s"):
                await pool.sign("ec", b"tbs", Priority.BULK, deadline_s=3.5)
            assert now() == 3.5
            assert pool.health().queue_depth == 0
            await signed(pool, 1)  # the lane was not harmed

    run_virtual(main)


def test_what_comes_back_after_closing_is_told_that_it_was_closed() -> None:
    async def main() -> None:
        stage = Stage()
        pool = PlayedPool(stage)
        async with pool:
            lost, refused = (asyncio.ensure_future(pool.sign("ec", b"tbs", Priority.BULK)) for _ in range(2))
            await asyncio.sleep(0.1)
            waits = asyncio.ensure_future(pool.sign_many("ec", TBS, Priority.BULK))
            await asyncio.sleep(0.1)
            pool._dispatcher.close(PoolClosed("test"))
            with pytest.raises(PoolClosed, match="test"):
                await waits
            stage.lanes[0].answer(cast("Signed", refusing(Action.REPLACE)([b"tbs"] * 2)))
            with pytest.raises(PoolClosed, match="test"):
                await lost
            with pytest.raises(PoolClosed, match="test"):
                await refused
        assert sample(pool.registry, "certmill_signer_retries_total", reason="refused") == 0

    run_virtual(main)


def test_lane_with_another_token_is_unharmed_by_a_lost_one() -> None:
    """A lane that dies gives its work back, and only its work."""

    async def main() -> None:
        stage = Stage()
        async with PlayedPool(stage, ONE, token("three")) as pool:
            await asyncio.sleep(0.5)
            call = asyncio.ensure_future(signed(pool, 4))
            await asyncio.sleep(0.5)
            stage.lanes[0].kill("died")
            await call
            # Each of them may be why the lane died.
            assert sent(stage, "three") == [[(0.5, b"34"), (1.0, b"1")]]
            assert sent(stage) == [[(0.5, b"12")], [(1.0, b"2")]]
            assert stage.of("three")[0].killed == []

    run_virtual(main)


def deadly(tbs: Sequence[bytes]) -> Signed | None:
    """Die over a poisonous TBS."""
    return None if b"poison" in tbs else signing(tbs)


def test_item_that_kills_every_lane_ends_alone_and_no_other_call_with_it() -> None:
    async def main() -> None:
        stage = Stage()
        stage.always = deadly
        async with PlayedPool(stage, ONE, ONE, TWO, TWO, batch_size=4) as pool:
            await asyncio.sleep(0.5)
            poison = asyncio.ensure_future(pool.sign("ec", b"poison", Priority.BULK))
            calls = [asyncio.ensure_future(pool.sign("ec", tbs, Priority.BULK)) for tbs in TBS]
            with pytest.raises(SigningFailed, match="4 lanes were lost over one signature"):
                await poison
            for tbs, call in zip(TBS, calls, strict=True):
                verify_signature(KEY.public_key(), tbs, await call)
            # Once in company, three times alone.
            assert sum(lane.killed[:1] == ["died"] for lane in stage.lanes) == 4

    run_virtual(main)


def test_what_waits_behind_a_batch_that_kills_its_lane_is_not_blamed() -> None:
    async def main() -> None:
        stage = Stage()
        async with PlayedPool(stage, batch_size=2) as pool:
            call = asyncio.ensure_future(signed(pool, 4))
            await asyncio.sleep(0.5)
            stage.lanes[0].kill("died")
            await call
            # "12" was in work, one by one now, and nothing behind either; "34" was behind it.
            assert sent(stage)[1] == [(0.5, b"1"), (1.5, b"2"), (2.5, b"34")]

    run_virtual(main)


def test_no_batch_waits_behind_a_question() -> None:
    """It may hang for longer than the caller can wait."""

    async def main() -> None:
        stage = Stage()
        async with PlayedPool(stage, ONE, TWO, keep_alive_s=10.0) as pool:
            await asyncio.sleep(0.001)
            stage.of("one")[0].answering_s = 5.0
            busy = asyncio.ensure_future(pool.sign("ec", b"busy", Priority.BULK))  # one's, until 10.5
            await asyncio.sleep(9.5)
            await busy
            await asyncio.sleep(11)
            assert stage.of("one")[0].is_asked
            began = now()
            await signed(pool, 2)
            assert now() - began == 1.0

    run_virtual(main)


def test_token_whose_lane_only_starts_again_still_counts_as_able() -> None:
    async def main() -> None:
        stage = Stage(one=[[refusing(Action.REPLACE)]] * 3)
        async with PlayedPool(stage, ONE, TWO) as pool:
            await asyncio.sleep(0.5)
            stage.opening_s["two"] = 5.0
            stage.of("two")[0].kill("died")
            await asyncio.sleep(0.1)
            await signed(pool, 1)

    run_virtual(main)


def test_item_is_left_to_a_token_that_has_refused_it_less_often() -> None:
    async def main() -> None:
        stage = Stage(one=[[refusing(Action.REPLACE)] * 9] * 40)
        stage.opening_s = {"one": 0.01, "two": 0.3}
        async with PlayedPool(stage, ONE, ONE, ONE, ONE, TWO) as pool:
            await asyncio.sleep(1)
            stage.of("two")[0].kill("died")
            began = now()
            await signed(pool, 2)
            assert now() - began <= 3.0

    run_virtual(main)


def test_signatures_that_come_after_the_end_are_given_to_nobody() -> None:
    async def main() -> None:
        stage = Stage()
        async with PlayedPool(stage) as pool:
            call = asyncio.ensure_future(pool.sign("ec", b"tbs", Priority.BULK))
            await asyncio.sleep(0.5)
            pool._dispatcher.close(PoolClosed("test"))
            with pytest.raises(PoolClosed, match="test"):
                await call

    run_virtual(main)
