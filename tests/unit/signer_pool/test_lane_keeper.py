"""One lane's life, in virtual time: when it is started again, what is done while nothing is asked of it."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from signer_pool.ckr import classify
from signer_pool.errors import KeyMismatch, LaneStartError, PinRejected, TokenRefused
from signer_pool.lane import Lane, Ping
from signer_pool.lane_keeper import WRONG_SIGNATURE, LaneKeeper, LaneState
from signer_pool.pace import Pace
from signer_pool.token import Token, TokenState
from tests.unit.signer_pool.lanes import MemoryLogger
from tests.unit.signer_pool.played import ONE, Stage, now
from tests.unit.signer_pool.virtual_time import run_virtual


class Watched:
    """A keeper, and what it told the pool."""

    def __init__(self, stage: Stage, keep_alive_s: float = 60.0) -> None:
        self.log = MemoryLogger()
        self.told: list[tuple[float, str]] = []
        self.mismatch: KeyMismatch | None = None
        self.failed: list[tuple[str, str]] = []
        self.freed: list[float] = []
        self.keeper = LaneKeeper(
            "lane-0",
            ONE,
            token=Token("one", stage, start_deadline_s=30.0, on_failed=lambda *told: self.failed.append(told)),
            pace=Pace(target_s=1.0, max_size=2, deadline_s=10.0),
            keep_alive_s=keep_alive_s,
            adopt=self._adopt,
            on_ready=lambda keeper: self.told.append((now(), keeper.state)),
            on_down=lambda keeper, cause: self.told.append((now(), f"{keeper.state.value}: {cause}")),
            on_free=lambda: self.freed.append(now()),
            logger=self.log,
        )

    def _adopt(self, lane: Lane) -> frozenset[str]:
        if self.mismatch:
            raise self.mismatch
        return frozenset(lane.public_keys)


@asynccontextmanager
async def running(watched: Watched) -> AsyncIterator[LaneKeeper]:
    task = asyncio.create_task(watched.keeper.run())
    try:
        await asyncio.sleep(0.001)
        yield watched.keeper
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


def lane_of(keeper: LaneKeeper) -> object:
    return keeper.lane


def gaps(stage: Stage) -> list[float]:
    return [round(after - before, 4) for (before, _), (after, _) in itertools.pairwise(stage.opened)]


async def restart_delay_s(stage: Stage) -> float:
    """Lose the lane and return how long it takes until there is another."""
    lanes, lost_at = len(stage.lanes), now()
    stage.lanes[-1].kill("died")
    while len(stage.lanes) == lanes:  # noqa: ASYNC110 - virtual time: it costs nothing
        await asyncio.sleep(0.001)
    return round(stage.opened[-1][0] - lost_at, 4)


def test_first_loss_is_made_good_at_once_the_next_ones_slower_and_slower() -> None:
    async def main() -> None:
        stage = Stage()
        watched = Watched(stage)
        async with running(watched) as keeper:
            delays_s = [await restart_delay_s(stage) for _ in range(10)]
            assert delays_s == [0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5]
            keeper.proved_good()
            assert [await restart_delay_s(stage) for _ in range(3)] == [0, 0.05, 0.1]

    run_virtual(main)


def test_lane_is_ready_then_down_and_the_pool_is_told() -> None:
    async def main() -> None:
        stage = Stage()
        watched = Watched(stage)
        async with running(watched) as keeper:
            assert keeper.state is LaneState.READY
            assert lane_of(keeper) is stage.lanes[0]
            assert keeper.keys == {"ec", "of another kind"}
            stage.opening_s["one"] = 1.0
            stage.lanes[0].kill("died")
            await asyncio.sleep(0.5)
            assert (keeper.state, keeper.last_error) == (LaneState.DOWN, "died")
            assert lane_of(keeper) is None
            assert not keeper.keys
            assert stage.lanes[0].killed == ["died", "closed"]
            await asyncio.sleep(1)
        assert watched.told == [(0.0, "ready"), (0.001, "down: died"), (1.001, "ready")]
        assert [line[0] for line in watched.log.lines] == ["info", "warning", "info"]
        assert stage.lanes[1].killed == ["closed"]
        assert lane_of(keeper) is None

    run_virtual(main)


def test_lane_that_is_dismissed_gets_nothing_more_and_an_old_one_harms_no_new_one() -> None:
    async def main() -> None:
        stage = Stage()
        async with running(Watched(stage)) as keeper:
            keeper.dismiss(stage.lanes[0], "refused")
            assert lane_of(keeper) is None
            assert not keeper.keys
            await asyncio.sleep(0.1)
            assert lane_of(keeper) is stage.lanes[1]
            keeper.dismiss(stage.lanes[0], "refused")
            assert lane_of(keeper) is stage.lanes[1]
            assert stage.lanes[1].killed == []

    run_virtual(main)


def test_quarantine_doubles_with_every_wrong_signature_up_to_five_minutes() -> None:
    async def main() -> None:
        stage = Stage()
        watched = Watched(stage)
        async with running(watched) as keeper:
            for _ in range(10):
                stage.lanes[-1].kill(WRONG_SIGNATURE)
                await asyncio.sleep(0.001)
                assert (keeper.state, keeper.last_error) == (LaneState.QUARANTINED, WRONG_SIGNATURE)
                await asyncio.sleep(301)
                keeper.proved_good()  # which is what a lane of broken hardware does between its lies
            pairs = zip(watched.told[1::2], watched.told[2::2], strict=True)
            delays = [round(ready - down) for (down, _), (ready, _) in pairs]
            assert delays == [2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
        assert {line[0] for line in watched.log.lines if "down" in line[1]} == {"error"}

    run_virtual(main)


def test_idle_session_is_used_a_little() -> None:
    async def main() -> None:
        stage = Stage()
        async with running(Watched(stage, keep_alive_s=60)):
            await asyncio.sleep(200)
            assert stage.lanes[0].pings == [60.0, 120.0, 180.0]
            assert len(stage.lanes) == 1

    run_virtual(main)


def test_busy_session_is_left_alone() -> None:
    async def main() -> None:
        stage = Stage()
        async with running(Watched(stage, keep_alive_s=60)) as keeper:
            (lane,) = stage.lanes
            await asyncio.sleep(30)
            keeper.batches += 1  # something was asked of it since
            await asyncio.sleep(80)
            assert lane.pings == []
            lane.service_s = 100.0
            lane.send("ec", "ecdsa-with-SHA256", [b"tbs"], lambda _: None, deadline_s=10)  # it works on one batch
            await asyncio.sleep(80)
            assert lane.pings == []
            await asyncio.sleep(60)
            assert lane.pings == [240.0]

    run_virtual(main)


@pytest.mark.parametrize("error", [TokenRefused("CKR_SESSION_CLOSED", classify(0xB0)), LaneStartError("whatever")])
def test_session_that_fails_its_ping_is_replaced(error: Exception) -> None:
    async def main() -> None:
        stage = Stage()
        watched = Watched(stage, keep_alive_s=60)
        async with running(watched):
            stage.lanes[0].errors[Ping] = error
            await asyncio.sleep(61)
            assert stage.lanes[0].killed == ["idle", "closed"]
            assert len(stage.lanes) == 2
            assert watched.told[1] == (60.0, "down: idle")
            assert (
                "warning",
                "idle session is gone",
                {"lane": "lane-0", "token": "one", "cause": str(error)},
            ) in watched.log.lines

    run_virtual(main)


def test_lane_that_is_lost_during_its_ping_was_not_lost_to_it() -> None:
    async def main() -> None:
        stage = Stage()
        watched = Watched(stage, keep_alive_s=60)
        async with running(watched):
            stage.lanes[0].answering_s = 1.0
            await asyncio.sleep(60.5)
            stage.lanes[0].kill("died")
            await asyncio.sleep(1)
            assert watched.told[1] == (61.0, "down: died")

    run_virtual(main)


def test_refused_pin_ends_the_keeper() -> None:
    async def main() -> None:
        stage = Stage(None, PinRejected("locked"))
        watched = Watched(stage)
        task = asyncio.create_task(watched.keeper.run())
        await asyncio.sleep(0.1)
        stage.lanes[0].kill("died")
        await task
        assert watched.keeper.state is LaneState.FAILED
        assert watched.told[-1] == (0.1, "failed: locked")
        assert watched.log.lines[-1][0] == "error"

    run_virtual(main)


def test_dead_token_alone_says_when_to_try_again() -> None:
    async def main() -> None:
        stage = Stage(*[LaneStartError("gone")] * 12)
        async with running(Watched(stage)) as keeper:
            assert (keeper.state, keeper.token.state) == (LaneState.DOWN, TokenState.DOWN)
            await asyncio.sleep(60)
            assert gaps(stage) == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5, 5, 5]
            assert keeper.state is LaneState.READY

    run_virtual(main)


def test_lane_for_which_there_is_no_session_backs_off_although_its_token_signs() -> None:
    async def main() -> None:
        stage = Stage(None, *[LaneStartError("CKR_SESSION_COUNT")] * 99)
        watched = Watched(stage)
        await watched.keeper.token.open(ONE)
        async with running(watched) as keeper:
            for _ in range(60):
                await asyncio.sleep(1)
                keeper.token.proved_good()
            assert gaps(stage)[1:9] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5]
            assert len(stage.opened) < 25

    run_virtual(main)


def test_token_with_a_wrong_key_is_looked_at_again_slower_and_slower() -> None:
    async def main() -> None:
        stage = Stage()
        watched = Watched(stage)
        watched.mismatch = KeyMismatch("key 'ec' is another one here")
        async with running(watched) as keeper:
            assert (keeper.state, keeper.last_error) == (LaneState.DOWN, "key 'ec' is another one here")
            await asyncio.sleep(1000)
            assert gaps(stage)[:5] == [2.0, 4.0, 8.0, 16.0, 32.0], "each look is a login"
            assert all(lane.killed == ["closed"] for lane in stage.lanes)
            watched.mismatch = None
            await asyncio.sleep(300)
            assert keeper.state is LaneState.READY

    run_virtual(main)
