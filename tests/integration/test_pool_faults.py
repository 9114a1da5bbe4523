"""Faults of lanes, with real child processes: nobody outside sees them."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop
from prometheus_client import CollectorRegistry

from pkix.algorithms import KeyAlgorithm, verify_signature
from signer_pool import lane_keeper
from signer_pool.ckr import Action
from signer_pool.errors import PoolClosed, PoolUnavailable, SigningFailed
from signer_pool.lane import Lane, Refusal, Signed, SignedCallback
from signer_pool.lane_config import LaneConfig
from signer_pool.lane_link import LaneLink, open_lane
from signer_pool.pool import LaneState, Priority, SignerPool, TokenState
from tests.unit.signer_pool.lanes import MemoryLogger, p256_config, sample, softhsm_token, software_config


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def pid_of(pool: SignerPool, number: int = 0) -> int:
    pid = pool.health().lanes[number].pid
    assert pid
    return pid


def restarts(registry: CollectorRegistry, reason: str, token: str = "software") -> float:
    return sample(registry, "certmill_signer_lane_restarts_total", token=token, reason=reason)


def open_descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


async def until(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds; the test's timeout is the bound."""
    while not condition():  # noqa: ASYNC110 - a process's state has no event to wait for
        await asyncio.sleep(0.005)


async def sign_concurrently(pool: SignerPool, count: int, disturb: Callable[[], None]) -> None:
    """Sign `count` different TBS at once, disturb when some are done, and verify every signature."""
    tbs_list = [f"tbs {number}".encode() * 30 for number in range(count)]
    done = 0

    async def one(tbs: bytes) -> bytes:
        nonlocal done
        signature = await pool.sign("key", tbs, Priority.INTERACTIVE)
        done += 1
        if done == 20:
            disturb()
        return signature

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(tbs)) for tbs in tbs_list]
    for tbs, task in zip(tbs_list, tasks, strict=True):
        verify_signature(pool.public_key("key"), tbs, task.result())


@pytest.mark.parametrize("lanes", [1, 2])
async def test_killed_lane_is_not_noticed(lanes: int, registry: CollectorRegistry) -> None:
    logger = MemoryLogger()
    with softhsm_token() as config:
        async with SignerPool(lanes=[config] * lanes, registry=registry, logger=logger, batch_size=8) as pool:
            await pool.generate_key("key", KeyAlgorithm.RSA_2048)
            victim = pid_of(pool)
            await sign_concurrently(pool, 200, lambda: os.kill(victim, signal.SIGKILL))
            await until(lambda: pool.health().alive == lanes)
            assert pid_of(pool) != victim
            assert restarts(registry, "died", token="test") == 1
            assert sample(registry, "certmill_signer_signatures_total", key="key", result="ok") == 200
            assert sample(registry, "certmill_signer_retries_total", reason="lane_lost") > 0
            assert sample(registry, "certmill_signer_lanes", token="test", state="ready") == lanes
            assert sample(registry, "certmill_signer_token_down", token="test") == 0


async def test_hanging_lane_is_replaced(tmp_path: Path, registry: CollectorRegistry) -> None:
    config = software_config(tmp_path, ("key", KeyAlgorithm.RSA_2048))
    async with SignerPool(
        lanes=[config], registry=registry, logger=MemoryLogger(), batch_size=8, batch_deadline_s=0.5
    ) as pool:
        victim = pid_of(pool)
        await sign_concurrently(pool, 200, lambda: os.kill(victim, signal.SIGSTOP))
        assert restarts(registry, "deadline") == 1
        assert not Path(f"/proc/{victim}").exists()


class Crooked:
    """A lane that alters what the real one answers."""

    def __init__(self, lane: Lane, alter: Callable[[Signed], Signed]) -> None:
        self._lane = lane
        self._alter = alter

    def __getattr__(self, name: str) -> object:
        return getattr(self._lane, name)

    def send(
        self, key: str, algorithm: str, tbs: Sequence[bytes], done: SignedCallback, *, deadline_s: float
    ) -> None:
        self._lane.send(
            key,
            algorithm,
            tbs,
            lambda reply: done(None if reply is None else self._alter(reply)),
            deadline_s=deadline_s,
        )


def flip(reply: Signed) -> Signed:
    """Flip the lowest bit of the second signature, or of the first where there is one."""
    signatures = list(reply.signatures)
    wrong = min(1, len(signatures) - 1)
    signatures[wrong] = signatures[wrong][:-1] + bytes((signatures[wrong][-1] ^ 1,))
    return Signed(reply.batch_id, signatures, reply.refusals, reply.service_s)


def refuse(reply: Signed) -> Signed:
    refusal = Refusal(Action.REPLACE, 0x005, "CKR_GENERAL_ERROR")
    return Signed(reply.batch_id, [b""] * len(reply.signatures), {0: refusal}, reply.service_s)


@asynccontextmanager
async def crooked_pool(
    config: LaneConfig, registry: CollectorRegistry, alter: Callable[[Signed], Signed], *, times: int
) -> AsyncIterator[SignerPool]:
    """Open a pool whose first `times` lanes alter their answers."""
    opened = 0

    async def opener(config: LaneConfig) -> Lane:
        nonlocal opened
        opened += 1
        lane = await open_lane(config)
        return Crooked(lane, alter) if opened <= times else lane  # type: ignore[return-value]

    async with SignerPool(
        lanes=[config], registry=registry, logger=MemoryLogger(), batch_size=8, lane_opener=opener
    ) as pool:
        yield pool


@pytest.fixture
def short_quarantine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane_keeper, "_FIRST_QUARANTINE_S", 0.02)


@pytest.mark.usefixtures("short_quarantine")
async def test_wrong_signature_is_never_released(tmp_path: Path, registry: CollectorRegistry) -> None:
    tbs_list = [f"tbs {number}".encode() for number in range(60)]
    async with crooked_pool(p256_config(tmp_path), registry, flip, times=2) as pool:
        signatures = await pool.sign_many("ec", tbs_list, Priority.BULK)
        for tbs, signature in zip(tbs_list, signatures, strict=True):
            verify_signature(pool.public_key("ec"), tbs, signature)
    assert sample(registry, "certmill_signer_verifications_rejected_total") >= 2
    assert restarts(registry, "wrong_signature") == 2
    assert sample(registry, "certmill_signer_signatures_total", key="ec", result="wrong") >= 2
    assert sample(registry, "certmill_signer_signatures_total", key="ec", result="ok") == 60


async def test_refused_item_is_tried_elsewhere(tmp_path: Path, registry: CollectorRegistry) -> None:
    async with crooked_pool(p256_config(tmp_path), registry, refuse, times=1) as pool:
        signature = await pool.sign("ec", b"tbs", Priority.BULK)
        verify_signature(pool.public_key("ec"), b"tbs", signature)
    assert restarts(registry, "refused") == 1
    assert sample(registry, "certmill_signer_signatures_total", key="ec", result="refused") == 1


@pytest.mark.usefixtures("short_quarantine")
@pytest.mark.parametrize(("alter", "reason"), [(flip, "verify"), (refuse, "CKR_GENERAL_ERROR")])
async def test_three_failures_end_a_call(
    tmp_path: Path, registry: CollectorRegistry, alter: Callable[[Signed], Signed], reason: str
) -> None:
    async with crooked_pool(p256_config(tmp_path), registry, alter, times=3) as pool:
        with pytest.raises(SigningFailed, match=reason):
            await pool.sign("ec", b"tbs", Priority.BULK)
        await until(lambda: pool.health().alive == 1)
        await pool.sign("ec", b"other tbs", Priority.BULK)


async def test_callers_get_a_typed_error_at_their_deadline(tmp_path: Path, registry: CollectorRegistry) -> None:
    config = p256_config(tmp_path)
    async with SignerPool(lanes=[config], registry=registry, logger=MemoryLogger()) as pool:
        (tmp_path / "ec.pem").rename(tmp_path / "elsewhere")
        tmp_path.rename(tmp_path.with_name("gone"))
        os.kill(pid_of(pool), signal.SIGKILL)
        await until(lambda: pool.health().alive == 0)
        started = asyncio.get_running_loop().time()
        with pytest.raises(PoolUnavailable, match=r"within 0\.3 s"):
            await pool.sign("ec", b"tbs", Priority.BULK, deadline_s=0.3)
        assert 0.3 <= asyncio.get_running_loop().time() - started < 2
        await until(lambda: "no such directory" in str(pool.health().lanes[0].last_error))
        assert pool.health().lanes[0].state is LaneState.DOWN
        assert [(token.state, token.reason) for token in pool.health().tokens] == [
            (TokenState.DOWN, pool.health().lanes[0].last_error)
        ]
        assert sample(registry, "certmill_signer_token_down", token="software") == 1
        tmp_path.with_name("gone").rename(tmp_path)
        (tmp_path / "elsewhere").rename(tmp_path / "ec.pem")
        await pool.sign("ec", b"tbs", Priority.BULK)


async def test_replaced_key_is_not_used(tmp_path: Path, registry: CollectorRegistry) -> None:
    config = p256_config(tmp_path)
    async with SignerPool(lanes=[config], registry=registry, logger=MemoryLogger()) as pool:
        pool.pin_key("ec", pool.public_key("ec"))
        (tmp_path / "ec.pem").rename(tmp_path / "right")
        p256_config(tmp_path)
        os.kill(pid_of(pool), signal.SIGKILL)
        await until(lambda: "not the one that is expected" in str(pool.health().lanes[0].last_error))
        with pytest.raises(PoolUnavailable):
            await pool.sign("ec", b"tbs", Priority.BULK, deadline_s=0.2)
        (tmp_path / "right").rename(tmp_path / "ec.pem")
        await pool.sign("ec", b"tbs", Priority.BULK)


async def test_closing_fails_what_waits_and_leaves_nothing_behind(
    tmp_path: Path, registry: CollectorRegistry
) -> None:
    config = software_config(tmp_path, ("key", KeyAlgorithm.RSA_3072))
    tasks_before, descriptors_before = asyncio.all_tasks(), open_descriptors()
    pool = SignerPool(lanes=[config, config], registry=registry, logger=MemoryLogger(), batch_size=4)
    async with pool:
        await until(lambda: pool.health().alive == 2)
        pids = [lane.pid for lane in pool.health().lanes]
        call = asyncio.create_task(pool.sign_many("key", [b"tbs"] * 400, Priority.BULK))
        await until(lambda: sample(registry, "certmill_signer_batch_size_count") >= 4)
    with pytest.raises(PoolClosed):
        await call
    with pytest.raises(PoolClosed):
        await pool.sign("key", b"tbs", Priority.BULK)
    await pool.aclose()
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    await until(lambda: asyncio.all_tasks() == tasks_before)
    await until(lambda: open_descriptors() <= descriptors_before)


async def test_stopped_lane_does_not_hold_up_closing(tmp_path: Path, registry: CollectorRegistry) -> None:
    async with SignerPool(lanes=[p256_config(tmp_path)], registry=registry, logger=MemoryLogger()) as pool:
        victim = pid_of(pool)
        os.kill(victim, signal.SIGSTOP)
    assert not Path(f"/proc/{victim}").exists()


async def test_cancelled_start_leaves_no_process(tmp_path: Path) -> None:
    task = asyncio.create_task(open_lane(p256_config(tmp_path)))
    link: LaneLink | None = None
    while link is None or link.child is None:
        await asyncio.sleep(0)
        frame = task.get_coro().cr_frame  # type: ignore[union-attr]  # it is a coroutine
        link = frame.f_locals.get("link") if frame else None
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not Path(f"/proc/{link.pid}").exists()


async def test_ctrl_c_does_not_end_a_lane(tmp_path: Path, registry: CollectorRegistry) -> None:
    async with SignerPool(lanes=[p256_config(tmp_path)], registry=registry, logger=MemoryLogger()) as pool:
        pid = pid_of(pool)
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
        await pool.sign("ec", b"tbs", Priority.BULK)
        assert pid_of(pool) == pid


ORPHAN = """
import asyncio, sys
from signer_pool.lane_config import SoftwareLaneConfig
from signer_pool.lane_link import open_lane
async def main():
    lane = await open_lane(SoftwareLaneConfig(directory=sys.argv[1], passphrase="p"))
    print(lane.pid, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


@pytest.mark.parametrize("stopped", [False, True])
async def test_lane_never_outlives_its_parent(tmp_path: Path, stopped: bool) -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", ORPHAN, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout
    pid = int(await parent.stdout.readline())
    if stopped:
        os.kill(pid, signal.SIGSTOP)
    parent.kill()
    await parent.wait()
    stat = Path(f"/proc/{pid}/stat")
    await until(lambda: not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z")


def test_same_on_uvloop(tmp_path: Path, registry: CollectorRegistry) -> None:
    config = software_config(tmp_path, ("key", KeyAlgorithm.RSA_2048))

    async def main() -> None:
        async with SignerPool(
            lanes=[config, config], registry=registry, logger=MemoryLogger(), batch_size=8
        ) as pool:
            victim = pid_of(pool)
            await sign_concurrently(pool, 200, lambda: os.kill(victim, signal.SIGKILL))
            await until(lambda: pool.health().alive == 2)
            pids = [lane.pid for lane in pool.health().lanes]
        assert not [pid for pid in [victim, *pids] if Path(f"/proc/{pid}").exists()]

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
