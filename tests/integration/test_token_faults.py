"""Two tokens with the same keys under load, and what can happen to one of them: no caller notices."""

import asyncio
import os
import signal
import statistics
from collections.abc import Sequence
from pathlib import Path

import pytest

from signer_pool import lane_keeper
from signer_pool.errors import PoolUnavailable
from signer_pool.lane import Lane, SignedCallback
from signer_pool.lane_config import LaneConfig
from signer_pool.lane_keeper import LaneState
from signer_pool.lane_link import open_lane
from signer_pool.pool import Priority
from signer_pool.token import TokenState
from tests.support.tokens import (
    Journal,
    ReplicaToken,
    callers,
    until,
)
from tests.support.two_tokens import LANES_EACH, opened, two_tokens, under_load

pytestmark = pytest.mark.usefixtures("unmeasured")

DEVICE_REMOVED = 0x32


async def test_killed_lane(original: ReplicaToken, tmp_path: Path) -> None:
    async with under_load(original, tmp_path) as scene:
        os.kill(scene.a.pids[0], signal.SIGKILL)
        await scene.loses(1, "died")
        await scene.a.signs_again()
        assert scene.lost("died") == 1


async def test_stopped_lane(original: ReplicaToken, tmp_path: Path) -> None:
    async with under_load(original, tmp_path) as scene:
        stopped = scene.a.pids[0]
        os.kill(stopped, signal.SIGSTOP)
        await scene.loses(1, "deadline")
        await scene.a.signs_again()
        assert stopped not in scene.a.pids
        assert not Path(f"/proc/{stopped}").exists()


async def test_all_lanes_of_a_token_killed_again_and_again(original: ReplicaToken, tmp_path: Path) -> None:
    async with under_load(original, tmp_path) as scene:
        for times in range(1, 6):
            scene.a.kill_lanes()
            await scene.loses(times * LANES_EACH, "died")
            await scene.a.comes_up()
        await scene.a.signs_again()


async def test_deleted_token(original: ReplicaToken, tmp_path: Path) -> None:
    async with under_load(original, tmp_path) as scene:
        scene.a.delete()
        await until(lambda: scene.a.health.state is TokenState.DOWN)
        await scene.signed(2000)
        scene.a.restore()
        await scene.a.signs_again()


async def test_removed_device(original: ReplicaToken, tmp_path: Path) -> None:
    async with under_load(original, tmp_path) as scene:
        logins = scene.a.faults.calls("C_Login")
        scene.a.faults.arm("C_Sign", rv=DEVICE_REMOVED, times=0)
        await scene.loses(3 * LANES_EACH, "token_down")
        await scene.signed(4000)
        # It opens and breaks at its first signature; the probes become fewer and fewer, not a storm.
        assert scene.a.faults.calls("C_Login") - logins <= 8 * LANES_EACH
        scene.a.faults.clear()
        await scene.a.signs_again()


async def test_hanging_signature(original: ReplicaToken, tmp_path: Path) -> None:
    async with under_load(original, tmp_path) as scene:
        scene.a.faults.arm("C_Sign", hang=True)
        await scene.loses(1, "deadline")
        await scene.a.signs_again()
        assert scene.lost("deadline") == 1


async def test_crashing_signature(original: ReplicaToken, tmp_path: Path) -> None:
    async with under_load(original, tmp_path) as scene:
        scene.a.faults.arm("C_Sign", crash=True)
        await scene.loses(1, "died")
        await scene.a.signs_again()
        assert scene.lost("died") == 1


async def test_flipped_bit_is_never_given_out(original: ReplicaToken, tmp_path: Path) -> None:
    async with under_load(original, tmp_path) as scene:
        scene.a.faults.arm("C_Sign", nth=3, flip=True)
        await until(lambda: LaneState.QUARANTINED in scene.a.states)
        assert scene.a.states.count(LaneState.QUARANTINED) == 1
        await scene.signed(2000)
        await scene.a.signs_again()
        assert scene.given_out("wrong") == scene.lost("wrong_signature") == 1


async def test_token_that_always_lies_is_kept_away(
    original: ReplicaToken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Longer than 2000 signatures take on a busy machine: after two seconds it is tried again, and lies again.
    monkeypatch.setattr(lane_keeper, "_FIRST_QUARANTINE_S", 60.0)
    async with under_load(original, tmp_path) as scene:
        scene.a.faults.arm("C_Sign", flip=True, times=0)
        await until(lambda: scene.a.states == [LaneState.QUARANTINED] * LANES_EACH)
        await scene.signed(2000)
        assert scene.lost("wrong_signature") == LANES_EACH
        scene.a.faults.clear()


class RecordingLane:
    """A lane that writes down the sizes of its batches."""

    def __init__(self, lane: Lane, sizes: list[int]) -> None:
        self._lane = lane
        self._sizes = sizes

    def __getattr__(self, name: str) -> object:
        return getattr(self._lane, name)

    def send(
        self, key: str, algorithm: str, tbs: Sequence[bytes], done: SignedCallback, *, deadline_s: float
    ) -> None:
        self._sizes.append(len(tbs))
        self._lane.send(key, algorithm, tbs, done, deadline_s=deadline_s)


async def sign_much(journal: Journal) -> None:
    async with asyncio.TaskGroup() as group:
        for _ in range(240):
            group.create_task(journal.call("ec", count=20, priority=Priority.BULK))


@pytest.mark.alone
async def test_slow_token_and_fast_token_both_run_full(original: ReplicaToken, tmp_path: Path) -> None:
    a, b = two_tokens(tmp_path, original)
    a.faults.sign_latency_us(5000)
    b.faults.sign_latency_us(1000)
    sizes: dict[str, list[int]] = {"a": [], "b": []}

    async def opener(config: LaneConfig) -> RecordingLane:
        return RecordingLane(await open_lane(config), sizes[config.token_name])

    loop = asyncio.get_running_loop()
    async with opened(a, b, lane_opener=opener) as scene:
        await a.comes_up()
        await b.comes_up()
        await sign_much(scene.journal)
        for each in sizes.values():
            each.clear()
        before, began = {side.name: side.faults.calls("C_Sign") for side in (a, b)}, loop.time()
        await sign_much(scene.journal)
        took_s = loop.time() - began
        made = {side.name: side.faults.calls("C_Sign") - before[side.name] for side in (a, b)}
        scene.assert_nobody_noticed()
        for side in (a, b):
            could = max(c.signs_per_s for c in scene.pool.capacities() if c.token == side.name)
            assert made[side.name] / took_s >= 0.75 * could
    # 25 ms of work in each batch: who gets the slow token waits no longer than who gets the fast one.
    assert 3 <= statistics.median(sizes["a"]) <= 6
    assert 12 <= statistics.median(sizes["b"]) <= 26


async def test_both_tokens_gone_and_back(original: ReplicaToken, tmp_path: Path) -> None:
    a, b = two_tokens(tmp_path, original)
    async with opened(a, b) as scene:
        await a.comes_up()
        await b.comes_up()
        async with callers(scene.journal):
            await scene.signed(1000)
            for side in (a, b):
                side.delete()
                side.kill_lanes()
            await until(lambda: a.health.state is b.health.state is TokenState.DOWN)
            # The callers go on waiting; one who cannot wait is told so, in time.
            began = asyncio.get_running_loop().time()
            with pytest.raises(PoolUnavailable, match=r"within 0\.4 s"):
                await scene.pool.sign("ec", b"tbs", Priority.REVOCATION, deadline_s=0.4)
            assert asyncio.get_running_loop().time() - began < 1.0
            reasons = scene.pool.health().reasons()
            assert all(any(f"token {name} is down" in reason for reason in reasons) for name in "ab"), reasons
            assert scene.pool.health().alive == 0
            for side in (a, b):
                side.restore()
            await a.signs_again()
            await b.signs_again()
        scene.assert_nobody_noticed()
