"""The pool and its keepers over lanes that the test plays."""

import asyncio
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from prometheus_client import CollectorRegistry

from pkix.algorithms import KeyAlgorithm, verify_signature
from signer_pool import pool as pool_module
from signer_pool.errors import LaneStartError, PinRejected, PoolClosed, PoolFull, PoolUnavailable
from signer_pool.lane import (
    Generate,
    Generated,
    Lane,
    LaneConfig,
    Ready,
    Relist,
    Reply,
    Signed,
    SignedCallback,
    SoftwareLaneConfig,
)
from signer_pool.lane_keeper import Doorman
from signer_pool.pool import LaneState, Priority, SignerPool
from tests.unit.signer_pool.lanes import MemoryLogger
from tests.unit.signer_pool.virtual_time import run_virtual

CONFIG = SoftwareLaneConfig(directory="/one", passphrase="p")
OTHER = SoftwareLaneConfig(directory="/two", passphrase="p")
KEY = ec.generate_private_key(ec.SECP256R1())
SPKI = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
ED25519_SPKI = (
    ed25519.Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
)


class PlayedLane:
    """A lane that signs a batch in one second of virtual time."""

    token = "played"
    pid = 1

    def __init__(self) -> None:
        self.public_keys: Mapping[str, bytes] = {"ec": SPKI, "of another kind": ED25519_SPKI}
        self.batches: list[tuple[float, list[bytes]]] = []
        self.pipe: list[SignedCallback] = []
        self.relist_error: Exception | None = None
        self.killed: list[str] = []
        self.generation_s = 0.0
        self._lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._free_at = 0.0

    @property
    def in_flight(self) -> int:
        return len(self.pipe)

    def send(self, key: str, tbs: Sequence[bytes], done: SignedCallback) -> None:
        assert key == "ec"
        loop = asyncio.get_running_loop()
        self.batches.append((round(loop.time(), 4), list(tbs)))
        self.pipe.append(done)
        assert len(self.pipe) <= 2
        self._free_at = max(self._free_at, loop.time()) + 1.0
        loop.call_at(self._free_at, self._answer, tbs)

    def _answer(self, tbs: Sequence[bytes]) -> None:
        if self.pipe:
            from cryptography.hazmat.primitives.hashes import SHA256

            signatures = [KEY.sign(one, ec.ECDSA(SHA256())) for one in tbs]
            self.pipe.pop(0)(Signed(0, signatures, {}, 1.0))

    async def ask(self, request: Generate | Relist, *, deadline_s: float) -> Reply:
        assert deadline_s > 0
        if isinstance(request, Generate):
            await asyncio.sleep(self.generation_s)
            if self._lost.done():
                raise PoolUnavailable("lost")
            return Generated(SPKI)
        if self.relist_error:
            raise self.relist_error
        return Ready({}, "")

    async def wait_lost(self) -> str:
        return await asyncio.shield(self._lost)

    def kill(self, reason: str) -> None:
        self.killed.append(reason)
        if not self._lost.done():
            self._lost.set_result(reason)
        pipe, self.pipe = self.pipe, []
        for done in pipe:
            asyncio.get_running_loop().call_soon(done, None)

    async def close(self) -> None:
        self.kill("closed")


class Stage:
    """Opens played lanes, or raises what the test says."""

    def __init__(self, *errors: Exception | None) -> None:
        self.errors = list(errors)
        self.opened: list[tuple[float, str]] = []
        self.lanes: list[PlayedLane] = []

    async def __call__(self, config: LaneConfig, batch_deadline_s: float) -> Lane:
        assert batch_deadline_s > 0
        self.opened.append((round(asyncio.get_running_loop().time(), 4), config.token))
        error = self.errors.pop(0) if self.errors else None
        if error is not None:
            raise error
        self.lanes.append(PlayedLane())
        return cast("Lane", self.lanes[-1])


def pool_of(stage: Callable[..., object], *configs: LaneConfig, **changed: float) -> SignerPool:
    return SignerPool(
        lanes=configs or [CONFIG],
        registry=CollectorRegistry(),
        logger=MemoryLogger(),
        lane_opener=stage,  # type: ignore[arg-type]  # a stand-in
        **{"batch_size": 2, "batch_age_s": 0.25, **changed},  # type: ignore[arg-type]
    )


def test_two_batches_in_the_pipe_and_the_second_waits_for_size_or_age() -> None:
    async def main() -> None:
        stage = Stage()
        async with pool_of(stage) as pool:
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

    run_virtual(main)


def test_all_lanes_get_a_first_batch_before_any_gets_a_second() -> None:
    async def main() -> None:
        stage = Stage()
        async with pool_of(stage, CONFIG, OTHER) as pool:
            await asyncio.sleep(1)
            assert pool.health().alive == pool.health().total == 2
            await pool.sign_many("ec", [bytes((number,)) for number in range(6)], Priority.BULK)
            assert [len(lane.batches) for lane in stage.lanes] == [2, 1]

    run_virtual(main)


def test_busy_lanes_wait_for_the_age_together() -> None:
    async def main() -> None:
        stage = Stage()
        async with pool_of(stage, CONFIG, OTHER) as pool:
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


def test_every_answer_of_a_lane_that_lies_is_looked_at() -> None:
    async def main() -> None:
        stage = Stage()
        async with pool_of(stage) as pool:
            call = asyncio.create_task(pool.sign_many("ec", [b"1", b"2", b"3"], Priority.BULK))
            await asyncio.sleep(0.5)
            (liar,) = stage.lanes
            answers, liar.pipe = liar.pipe, []
            for count, done in zip((2, 1), answers, strict=True):
                done(Signed(0, [b"wrong"] * count, {}, 1.0))
            for tbs, signature in zip((b"1", b"2", b"3"), await call, strict=True):
                verify_signature(KEY.public_key(), tbs, signature)
            assert liar.killed[:2] == ["wrong_signature"] * 2
            assert len(stage.lanes) == 2

    run_virtual(main)


def test_urgent_work_overtakes_what_waits() -> None:
    async def main() -> None:
        stage = Stage()
        async with pool_of(stage) as pool:
            bulk = asyncio.create_task(pool.sign_many("ec", [b"bulk"] * 12, Priority.BULK))
            await asyncio.sleep(0.5)
            started = asyncio.get_running_loop().time()
            signature = await pool.sign("ec", b"urgent", Priority.REVOCATION)
            assert asyncio.get_running_loop().time() - started <= 2.5
            verify_signature(KEY.public_key(), b"urgent", signature)
            await bulk

    run_virtual(main)


def test_wrong_use_is_refused_at_once() -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="needs a lane"):
            SignerPool(lanes=[], registry=CollectorRegistry(), logger=MemoryLogger())
        closed = pool_of(Stage())
        with pytest.raises(PoolClosed):
            await closed.sign("ec", b"tbs", Priority.BULK)
        async with pool_of(Stage(), queue_limit=3) as pool:
            with pytest.raises(PoolFull):
                await pool.sign_many("ec", [b"tbs"] * 4, Priority.BULK)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(pool_module, "MAX_TBS_BYTES", 3)
                with pytest.raises(ValueError, match="TBS of more than"):
                    await pool.sign("ec", b"tbs!", Priority.BULK)
            for label in ("", "../key", "a/b", "a\0b", "x" * 65):
                with pytest.raises(ValueError, match="key label"):
                    await pool.generate_key(label, KeyAlgorithm.EC_P256)
            assert pool.labels() == {"ec"}

    run_virtual(main)


def test_cancelled_caller_disturbs_nobody() -> None:
    async def main() -> None:
        stage = Stage()
        async with pool_of(stage) as pool:
            calls = [asyncio.create_task(pool.sign("ec", bytes((number,)), Priority.BULK)) for number in range(6)]
            await asyncio.sleep(0.5)
            calls[0].cancel()
            calls[5].cancel()
            done = [call for call in calls if call not in (calls[0], calls[5])]
            for call in done:
                await call
            assert [tbs for _, batch in stage.lanes[0].batches for tbs in batch] == [
                b"\0",
                b"\1",
                b"\2",
                b"\3",
                b"\4",
            ]

    run_virtual(main)


def test_restarts_are_slower_and_slower_but_end_at_five_seconds() -> None:
    async def main() -> None:
        stage = Stage(None, *[LaneStartError("no")] * 12)
        async with pool_of(stage) as pool:
            stage.lanes[0].kill("died")
            await asyncio.sleep(60)
            times = [at for at, _ in stage.opened]
            gaps = [round(after - before, 4) for before, after in itertools.pairwise(times)]
            assert gaps == [0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5, 5, 5]
            assert pool.health().alive == 1
            await pool.sign("ec", b"tbs", Priority.BULK)
            stage.lanes[1].kill("died")
            await asyncio.sleep(0.01)
            assert pool.health().alive == 1

    run_virtual(main)


def test_refused_pin_is_final_for_lanes_that_share_it_only() -> None:
    async def main() -> None:
        stage = Stage(PinRejected("refused"))
        async with pool_of(stage, CONFIG, OTHER, CONFIG) as pool:
            await asyncio.sleep(100)
            states = [lane.state for lane in pool.health().lanes]
            assert states == [LaneState.FAILED, LaneState.READY, LaneState.FAILED]
            assert len(stage.opened) == 2

    run_virtual(main)


def test_other_pin_for_the_same_token_is_tried() -> None:
    async def main() -> None:
        corrected = SoftwareLaneConfig(directory=CONFIG.directory, passphrase="right")
        async with pool_of(Stage(PinRejected("refused")), CONFIG, corrected) as pool:
            assert [lane.state for lane in pool.health().lanes] == [LaneState.FAILED, LaneState.READY]

    run_virtual(main)


def test_no_lane_at_all_raises_the_first_reason() -> None:
    async def main() -> None:
        with pytest.raises(LaneStartError, match="first"):
            async with pool_of(Stage(LaneStartError("first"), LaneStartError("second")), CONFIG, OTHER):
                pytest.fail("a pool without a lane was opened")

    run_virtual(main)


def test_slow_and_impossible_starts_are_the_operators_affair() -> None:
    async def main() -> None:
        async def never(*_: object) -> None:
            await asyncio.Event().wait()

        async def impossible(*_: object) -> None:
            raise OSError("too many processes")

        for opener, message in ((never, "not open within 7 s"), (impossible, "too many processes")):
            doorman = Doorman(opener, batch_deadline_s=1, start_deadline_s=7)  # type: ignore[arg-type]
            with pytest.raises(LaneStartError, match=message):
                await doorman.open(CONFIG)

    run_virtual(main)


def test_crashed_keeper_is_told_and_does_not_take_the_pool_with_it() -> None:
    async def main() -> None:
        with pytest.raises(LaneStartError, match="bug: ZeroDivisionError"):
            async with pool_of(Stage(ZeroDivisionError())):
                pytest.fail("a pool without a lane was opened")
        async with pool_of(Stage(None, ZeroDivisionError()), CONFIG, OTHER) as pool:
            await asyncio.sleep(1)
            assert [lane.state for lane in pool.health().lanes] == [LaneState.READY, LaneState.FAILED]

    run_virtual(main)


def test_lane_that_cannot_list_a_new_key_is_replaced() -> None:
    async def main() -> None:
        stage = Stage(None, None, LaneStartError("no"))
        async with pool_of(stage, CONFIG, OTHER) as pool:
            await asyncio.sleep(1)
            stage.lanes[1].relist_error = PoolUnavailable("lost")
            await pool.generate_key("new", KeyAlgorithm.EC_P256)
            assert stage.lanes[1].killed == ["relist"]
            await asyncio.sleep(0.01)
            assert pool.health().alive == 1
            await pool.generate_key("newer", KeyAlgorithm.EC_P256)

    run_virtual(main)


def test_no_lane_sees_half_a_key() -> None:
    async def main() -> None:
        stage = Stage(None, LaneStartError("once"))
        async with pool_of(stage, CONFIG, CONFIG) as pool:
            stage.lanes[0].generation_s = 1.0
            await pool.generate_key("new", KeyAlgorithm.EC_P256)
            assert len(stage.lanes) == 1
            await asyncio.sleep(0.001)
            assert len(stage.lanes) == 2

    run_virtual(main)


def test_lane_that_is_lost_before_its_turn_generates_nothing() -> None:
    async def slow(config: LaneConfig, batch_deadline_s: float) -> Lane:
        if stage.lanes:
            await asyncio.sleep(1.0)
        return await stage(config, batch_deadline_s)

    stage = Stage()

    async def main() -> None:
        async with pool_of(slow, CONFIG, CONFIG) as pool:
            generating = asyncio.ensure_future(pool.generate_key("new", KeyAlgorithm.EC_P256))
            await asyncio.sleep(0.1)
            stage.lanes[0].kill("gone")
            with pytest.raises(PoolUnavailable, match="before it could"):
                await generating

    run_virtual(main)
