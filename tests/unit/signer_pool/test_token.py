"""The door and the latch of a token, in virtual time."""

import asyncio
import itertools
from typing import cast

import pytest

from signer_pool.errors import LaneStartError, PinRejected
from signer_pool.lane import Lane
from signer_pool.lane_config import LaneConfig
from signer_pool.token import Token, TokenState
from tests.unit.signer_pool.played import ONE, Stage, now
from tests.unit.signer_pool.virtual_time import run_virtual


def token_of(stage: Stage) -> Token:
    return Token("one", stage, start_deadline_s=7.0, on_failed=lambda _name, _reason: None)


async def refused(token: Token, error: type[Exception] = LaneStartError) -> str:
    with pytest.raises(LaneStartError) as caught:
        await token.open(ONE)
    assert type(caught.value) is error
    return str(caught.value)


def test_lanes_are_opened_one_after_another() -> None:
    async def main() -> None:
        stage = Stage()
        stage.opening_s["one"] = 1.0
        token = token_of(stage)
        assert token.state is TokenState.STARTING
        async with asyncio.TaskGroup() as group:
            lanes = [group.create_task(token.open(ONE)) for _ in range(3)]
        assert [at for at, _ in stage.opened] == [0.0, 1.0, 2.0]
        assert [lane.result() for lane in lanes] == stage.lanes
        assert (token.state, token.reason) == (TokenState.UP, "")

    run_virtual(main)


def test_nothing_is_opened_while_somebody_holds_the_door() -> None:
    async def main() -> None:
        stage = Stage()
        token = token_of(stage)
        async with token.alone():
            opening = asyncio.ensure_future(token.open(ONE))
            await asyncio.sleep(3)
            assert stage.opened == []
        await opening
        assert stage.opened == [(3.0, "one")]

    run_virtual(main)


def test_dead_token_is_probed_slower_and_slower_but_at_least_every_five_seconds() -> None:
    async def main() -> None:
        stage = Stage(*[LaneStartError("no such slot")] * 11)
        token = token_of(stage)
        for _ in range(11):
            assert await refused(token) == "no such slot"
            assert (token.state, token.reason) == (TokenState.DOWN, "no such slot")
        await token.open(ONE)
        gaps = [round(after - before, 4) for (before, _), (after, _) in itertools.pairwise(stage.opened)]
        assert gaps == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5, 5]
        assert (token.state, token.reason) == (TokenState.UP, "")

    run_virtual(main)


def test_only_a_signature_ends_the_growing_of_the_delay() -> None:
    async def main() -> None:
        stage = Stage()
        token = token_of(stage)
        for delay_s in (0.05, 0.1, 0.2):
            lane = await token.open(ONE)
            token.latch("CKR_DEVICE_ERROR")
            token.lane_ended()
            assert (token.state, token.reason) == (TokenState.DOWN, "CKR_DEVICE_ERROR")
            latched_at = now()
            await token.open(ONE)
            assert round(now() - latched_at, 4) == delay_s
            assert lane is not stage.lanes[-1]
        token.proved_good()
        token.latch("CKR_DEVICE_ERROR")
        latched_at = now()
        await token.open(ONE)
        assert round(now() - latched_at, 4) == 0.05

    run_virtual(main)


def test_probe_does_not_wait_when_its_time_has_come() -> None:
    async def main() -> None:
        stage = Stage(LaneStartError("no"))
        token = token_of(stage)
        await refused(token)
        await asyncio.sleep(60)
        await token.open(ONE)
        assert now() == 60.0

    run_virtual(main)


def test_lane_that_cannot_be_opened_says_nothing_of_those_that_are_open() -> None:
    """The token may have no session left for it, and sign all the same: how often to try is the lane's affair."""

    async def main() -> None:
        stage = Stage(None, *[LaneStartError("CKR_SESSION_COUNT")] * 4)
        token = token_of(stage)
        await token.open(ONE)
        for _ in range(2):
            await refused(token)
            assert (token.state, token.reason) == (TokenState.UP, "")
        assert now() == 0.0
        token.lane_ended()
        await refused(token)
        assert (token.state, token.reason) == (TokenState.DOWN, "CKR_SESSION_COUNT")

    run_virtual(main)


def test_token_that_is_down_stays_so_while_its_last_lanes_end() -> None:
    async def main() -> None:
        stage = Stage(None, LaneStartError("gone"), LaneStartError("gone"))
        token = token_of(stage)
        await token.open(ONE)
        token.latch("CKR_DEVICE_ERROR")
        for _ in range(2):
            await refused(token)
            assert (token.state, token.reason) == (TokenState.DOWN, "gone")
        assert [at for at, _ in stage.opened] == [0.0, 0.05, 0.15]

    run_virtual(main)


def test_refused_pin_is_never_tried_again() -> None:
    async def main() -> None:
        stage = Stage(PinRejected("wrong PIN"))
        stage.opening_s["one"] = 1.0
        token = token_of(stage)
        waiting = asyncio.ensure_future(refused(token, PinRejected))
        assert await refused(token, PinRejected) == "wrong PIN"
        assert await waiting == "wrong PIN"
        await asyncio.sleep(1000)
        assert await refused(token, PinRejected) == "wrong PIN"
        assert len(stage.opened) == 1
        token.latch("CKR_DEVICE_ERROR")
        assert (token.state, token.reason) == (TokenState.FAILED, "wrong PIN")
        assert await refused(token, PinRejected) == "wrong PIN"
        assert len(stage.opened) == 1

    run_virtual(main)


def test_pin_that_is_refused_elsewhere_while_a_probe_waits_is_not_tried() -> None:
    async def main() -> None:
        stage = Stage()
        token = token_of(stage)
        token.latch("CKR_DEVICE_ERROR")
        waiting = asyncio.ensure_future(refused(token, PinRejected))
        await asyncio.sleep(0.01)
        token.fail("PIN locked")
        assert await waiting == "PIN locked"
        assert stage.opened == []

    run_virtual(main)


def test_lane_that_was_opened_while_the_pin_was_refused_elsewhere_is_not_used() -> None:
    async def main() -> None:
        stage = Stage()
        stage.opening_s["one"] = 1.0
        token = token_of(stage)
        opening = asyncio.ensure_future(refused(token, PinRejected))
        await asyncio.sleep(0.5)
        token.fail("PIN locked")
        assert await opening == "PIN locked"
        assert stage.lanes[0].killed == ["closed"]
        assert token.state is TokenState.FAILED

    run_virtual(main)


def test_slow_and_impossible_starts_are_the_operators_affair() -> None:
    async def main() -> None:
        async def impossible(config: LaneConfig) -> Lane:
            raise OSError("too many processes")

        slow = Stage()
        slow.opening_s["one"] = 8.0
        token = token_of(slow)
        assert "not open within 7 s" in await refused(token)
        assert now() == 7.0
        assert token.state is TokenState.DOWN
        token = Token("one", impossible, start_deadline_s=7.0, on_failed=lambda _name, _reason: None)
        assert "cannot start a process: too many processes; check limits" in await refused(token)
        assert token.state is TokenState.DOWN

    run_virtual(main)


def test_cancelled_opening_leaves_the_door_free() -> None:
    async def main() -> None:
        stage = Stage()
        stage.opening_s["one"] = 1.0
        token = token_of(stage)
        opening = asyncio.ensure_future(token.open(ONE))
        await asyncio.sleep(0.5)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        assert await token.open(ONE) is cast("object", stage.lanes[0])
        assert now() == 1.5

    run_virtual(main)


def test_token_that_is_away_for_days_is_still_probed() -> None:
    async def main() -> None:
        stage = Stage(*[LaneStartError("no such slot")] * 2000)
        token = token_of(stage)
        for _ in range(2000):
            await refused(token)
        assert now() < 2000 * 5.1
        await token.open(ONE)
        assert token.state is TokenState.UP

    run_virtual(main)


def test_refused_token_is_told_once_and_one_that_begins_refused_is_not_opened() -> None:
    async def main() -> None:
        stage = Stage(PinRejected("wrong PIN"))
        told: list[tuple[str, str]] = []
        token = Token("one", stage, start_deadline_s=7.0, on_failed=lambda *what: told.append(what))
        await refused(token, PinRejected)
        token.fail("again")
        assert told == [("one", "wrong PIN")]
        known = Token("two", stage, start_deadline_s=7.0, on_failed=lambda *what: told.append(what))
        known.refuse("was refused before")
        assert await refused(known, PinRejected) == "was refused before"
        assert len(stage.opened) == len(told) == 1

    run_virtual(main)


def test_token_may_have_a_key_unless_it_is_down_or_known_to_lack_it() -> None:
    async def main() -> None:
        token = token_of(Stage())
        assert token.may_have("ec")
        token.keys = frozenset({"ec"})
        assert token.may_have("ec")
        assert not token.may_have("rsa")
        token.latch("gone")
        assert not token.may_have("ec")

    run_virtual(main)
