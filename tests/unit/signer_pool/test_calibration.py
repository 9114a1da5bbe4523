"""Measuring the pace on demand."""

import asyncio

import pytest

from signer_pool.ckr import Action
from signer_pool.lane import Signed
from signer_pool.pace import Capacity
from signer_pool.pool import LaneState, Priority, SignerPool, TokenState
from tests.unit.signer_pool.played import (
    KEYS,
    ONE,
    SPKI,
    TWO,
    PlayedPool,
    Stage,
    lying,
    now,
    refusing,
    signing,
)
from tests.unit.signer_pool.virtual_time import run_virtual

PROBE = b"certmill calibration probe: not a certificate, not a CRL, not an OCSP response"


def measured(pool: SignerPool) -> list[Capacity]:
    return [one for one in pool.capacities() if one.signs_per_s]


def test_every_ready_lane_is_measured_with_every_key_that_it_has() -> None:
    async def main() -> None:
        stage = Stage()
        stage.keys = {"two": {**KEYS, "own": SPKI}}
        async with PlayedPool(stage, ONE, ONE, TWO, batch_size=4) as pool:
            await asyncio.sleep(0.5)
            assert measured(pool) == []
            await pool.calibrate(["ec", "own"], signs=4)
            assert [lane.batches for lane in stage.of("one")] == [[(0.5, [PROBE]), (2.5, [PROBE] * 4)]] * 2
            assert [lane.batches for lane in stage.of("two")] == [[(0.5, [PROBE])] * 2 + [(2.5, [PROBE] * 4)] * 2]
            assert now() == 4.5
            assert sorted((one.token, one.key, round(one.signs_per_s, 2)) for one in measured(pool)) == [
                ("one", "ec", 5.0),
                ("two", "ec", 2.5),
                ("two", "own", 2.5),
            ]
            await pool.calibrate(["of another kind", "nobody's"])
            assert now() == 4.5
            await pool.calibrate(["own"], signs=3)
            assert stage.of("two")[0].batches[4:] == [(4.5, [PROBE] * 3)], "its pace is known by now"

    run_virtual(main)


def test_capacity_is_that_of_the_lanes_that_are_ready() -> None:
    async def main() -> None:
        stage = Stage()
        async with PlayedPool(stage, ONE, ONE) as pool:
            await asyncio.sleep(0.5)
            await pool.calibrate(["ec"], signs=1)
            assert measured(pool) == [Capacity(token="one", key="ec", signs_per_s=2.0)]
            stage.opening_s["one"] = 1.0
            stage.lanes[0].kill("died")
            await asyncio.sleep(0.5)
            assert measured(pool) == [Capacity(token="one", key="ec", signs_per_s=1.0)]

    run_virtual(main)


def test_lane_that_signs_probes_wrongly_is_quarantined() -> None:
    async def main() -> None:
        async with PlayedPool(Stage([lying])) as pool:
            await pool.calibrate(["ec"])
            assert measured(pool) == []
            await asyncio.sleep(0.5)
            assert [lane.state for lane in pool.health().lanes] == [LaneState.QUARANTINED]

    run_virtual(main)


@pytest.mark.parametrize(
    ("action", "state"), [(Action.TOKEN_DOWN, TokenState.DOWN), (Action.NEVER, TokenState.FAILED)]
)
def test_what_a_token_refuses_to_sign_counts_as_for_any_other_work(action: Action, state: TokenState) -> None:
    async def main() -> None:
        stage = Stage([refusing(action)])
        async with PlayedPool(stage) as pool:
            await pool.calibrate(["ec"])
            assert pool.health().tokens[0].state is state
            assert stage.lanes[0].killed == ["token_down"]
            assert measured(pool) == []

    run_virtual(main)


def test_lane_that_is_lost_while_it_is_measured() -> None:
    async def main() -> None:
        stage = Stage()
        async with PlayedPool(stage, ONE, TWO) as pool:
            await asyncio.sleep(0.5)
            measuring = asyncio.ensure_future(pool.calibrate(["ec"]))
            await asyncio.sleep(0.5)
            stage.of("one")[0].kill("died")
            await measuring
            assert now() == 2.5
            assert {capacity.token for capacity in measured(pool)} == {"one", "two"}, (
                "the new lane was measured too"
            )

    run_virtual(main)


def test_cancelled_measurement_disturbs_nothing() -> None:
    async def main() -> None:
        stage = Stage()
        async with PlayedPool(stage, ONE, TWO) as pool:
            await asyncio.sleep(0.5)
            measuring = asyncio.ensure_future(pool.calibrate(["ec"]))
            await asyncio.sleep(0.5)
            measuring.cancel()
            with pytest.raises(asyncio.CancelledError):
                await measuring
            await asyncio.sleep(1)
            assert len(measured(pool)) == 2

    run_virtual(main)


def test_answer_of_an_earlier_lane_does_not_cost_the_next_one_its_life() -> None:
    async def main() -> None:
        stage = Stage()
        async with PlayedPool(stage) as pool:
            measuring = asyncio.ensure_future(pool.calibrate(["ec"]))
            await asyncio.sleep(0.5)
            (lane,) = stage.lanes
            lane.answer(Signed(0, [b"wrong"] * 8, {}, 1.0))
            await measuring
            assert lane.killed == ["wrong_signature"]
            await asyncio.sleep(5)
            assert stage.lanes[1].killed == []

    run_virtual(main)


def test_work_that_came_meanwhile_leaves_as_soon_as_a_lane_has_a_place() -> None:
    """Probes fill the pipe, and no answer of the dispatcher's own says that it is free again."""

    async def main() -> None:
        stage = Stage([signing] * 3)
        stage.keys = {"one": {**KEYS, "own": SPKI, "too": SPKI}}
        async with PlayedPool(stage) as pool:
            measuring = asyncio.ensure_future(pool.calibrate(["ec", "own", "too"]))
            await asyncio.sleep(0.1)
            await pool.sign("ec", b"tbs", Priority.REVOCATION)
            # At 2.0 two of three probes are answered: there is a place in the pipe.
            assert (2.0, [b"tbs"]) in stage.lanes[0].batches
            await measuring

    run_virtual(main)
