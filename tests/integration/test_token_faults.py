"""Two tokens with the same keys under load, and what can happen to one of them: no caller notices."""

import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from signer_pool.errors import PoolUnavailable
from signer_pool.lane import Lane, SignedCallback
from signer_pool.lane_config import LaneConfig
from signer_pool.lane_keeper import LaneState
from signer_pool.lane_link import open_lane
from signer_pool.pool import Priority, SignerPool
from signer_pool.token import TokenState
from tests.support.tokens import (
    LABEL,
    PIN,
    SECRETS,
    SOFTHSM,
    BreakableToken,
    Journal,
    ReplicaToken,
    callers,
    make_token,
    until,
)
from tests.unit.signer_pool.lanes import MemoryLogger, sample

pytestmark = pytest.mark.usefixtures("unmeasured")

LANES_EACH = 2
DEVICE_REMOVED = 0x32
PIN_INCORRECT = 0xA0
PIN_EXPIRED = 0xA3
WRONG_PIN = "pin-9999-wrong"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> ReplicaToken:
    return make_token(tmp_path_factory.mktemp("token") / "original")


class Scene:
    """A pool over the tokens `a` and `b`, and the journal of those who sign with it."""

    def __init__(self, a: BreakableToken, b: BreakableToken) -> None:
        self.a = a
        self.b = b
        self.registry = CollectorRegistry()
        self.logger = MemoryLogger()
        self.pool: SignerPool
        self.journal: Journal

    async def signed(self, more: int) -> None:
        """Wait until callers have got so many more signatures."""
        enough = self.journal.signed + more
        await until(lambda: self.journal.signed >= enough, lambda: self.pool.health().reasons())

    def lost(self, reason: str) -> float:
        """Count the lanes of token a that were lost for this reason."""
        return sample(self.registry, "certmill_signer_lane_restarts_total", token="a", reason=reason)

    async def loses(self, count: int, reason: str) -> None:
        await until(lambda: self.lost(reason) >= count, self.pool.health)

    def given_out(self, result: str) -> float:
        keys = ("ec", "rsa")
        return sum(
            sample(self.registry, "certmill_signer_signatures_total", key=key, result=result) for key in keys
        )

    def assert_nobody_noticed(self) -> None:
        self.journal.assert_all_signed()
        assert self.given_out("ok") == self.journal.signed


def two_tokens(directory: Path, original: ReplicaToken, *, pin_of_a: str = PIN) -> list[BreakableToken]:
    return [
        BreakableToken(directory / name, original, lanes=LANES_EACH, pin=pin)
        for name, pin in {"a": pin_of_a, "b": PIN}.items()
    ]


@asynccontextmanager
async def opened(
    a: BreakableToken, b: BreakableToken, *, lane_opener: Callable[[LaneConfig], object] = open_lane
) -> AsyncIterator[Scene]:
    """Open a pool; afterwards none of its processes is left."""
    scene = Scene(a, b)
    pids: set[int] = set()
    async with SignerPool(
        lanes=a.configs + b.configs,
        registry=scene.registry,
        logger=scene.logger,
        lane_opener=lane_opener,  # type: ignore[arg-type]  # a recording lane is a lane
    ) as pool:
        scene.pool = pool
        a.join(pool, first_lane=0)
        b.join(pool, first_lane=LANES_EACH)
        scene.journal = Journal(pool, a.original.public_keys)
        yield scene
        pids.update(a.pids, b.pids)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@asynccontextmanager
async def under_load(original: ReplicaToken, directory: Path) -> AsyncIterator[Scene]:
    """Two tokens that are up, and 240 callers, of whom at the end none has noticed a thing."""
    a, b = two_tokens(directory, original)
    async with opened(a, b) as scene:
        await a.comes_up()
        await b.comes_up()
        async with callers(scene.journal):
            await scene.signed(2000)
            yield scene
            await scene.signed(500)
        scene.assert_nobody_noticed()


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


async def test_token_that_always_lies_is_kept_away(original: ReplicaToken, tmp_path: Path) -> None:
    async with under_load(original, tmp_path) as scene:
        scene.a.faults.arm("C_Sign", flip=True, times=0)
        await until(lambda: scene.a.states == [LaneState.QUARANTINED] * LANES_EACH)
        await scene.signed(2000)
        assert scene.lost("wrong_signature") == LANES_EACH
        scene.a.faults.clear()


SESSION_GONE, HANDLES_STALE, LOGGED_OUT = 0xB3, 0x82, 0x101


async def test_what_the_session_is_said_to_be_is_healed_in_the_lane(
    original: ReplicaToken, tmp_path: Path
) -> None:
    async with under_load(original, tmp_path) as scene:
        faults, pids = scene.a.faults, scene.a.pids
        logins, sessions = faults.calls("C_Login"), faults.calls("C_OpenSession")
        for rv in (SESSION_GONE, HANDLES_STALE, LOGGED_OUT):
            faults.arm("C_Sign", rv=rv)
            sessions += 1
            await until(lambda: faults.calls("C_OpenSession") == sessions)  # noqa: B023 - awaited in this turn
        await scene.a.signs_again()
        assert scene.a.pids == pids
        # The login is the process's, and its first session lives: no PIN, and nobody was logged out.
        assert faults.calls("C_Login") == logins
        assert faults.calls("C_Logout") == 0


async def test_sessions_that_took_the_login_with_them_are_opened_by_new_processes(
    original: ReplicaToken, tmp_path: Path
) -> None:
    async with under_load(original, tmp_path) as scene:
        faults, pids = scene.a.faults, set(scene.a.pids)
        logins = faults.calls("C_Login")
        for times, rv in enumerate((SESSION_GONE, HANDLES_STALE, LOGGED_OUT), 1):
            faults.arm("C_Sign", invalidate=True, rv=rv)
            await scene.loses(times, "refused")
            await scene.a.comes_up()
            pids.update(scene.a.pids)
        await scene.a.signs_again()
        assert len(pids) == LANES_EACH + 3
        assert faults.calls("C_Login") == logins + 3  # each new process logged in once, and nobody else


@pytest.mark.parametrize("count", [1, 240])
async def test_lone_token_that_loses_all_its_sessions_at_once(
    original: ReplicaToken, tmp_path: Path, count: int
) -> None:
    """As after a short loss of the network: whatever was being signed is signed by the processes to come.

    A single caller's item meets the six lanes one after the other, and is none the worse for it.
    """
    token = BreakableToken(tmp_path / "lone", original, lanes=6)
    pool = SignerPool(lanes=token.configs, registry=CollectorRegistry(), logger=MemoryLogger())
    async with pool:
        token.join(pool, first_lane=0)
        await token.comes_up()
        journal = Journal(pool, original.public_keys)
        logins = token.faults.calls("C_Login")
        async with callers(journal, count=count):
            await until(lambda: journal.signed > 100)
            token.faults.arm("C_Sign", invalidate=True, times=6)
            await until(lambda: token.faults.calls("C_Login") >= logins + 6, pool.health)
            await token.signs_again()
        journal.assert_all_signed()
        assert token.faults.calls("C_Login") == logins + 6


async def test_pin_that_was_changed_is_given_once_after_all_sessions_were_lost(
    original: ReplicaToken, tmp_path: Path
) -> None:
    """The HSM drops its sessions and has another PIN: six lanes have to log in, and one wrong PIN is enough."""
    lanes = 6
    a = BreakableToken(tmp_path / "a", original, lanes=lanes)
    b = BreakableToken(tmp_path / "b", original, lanes=1)
    pool = SignerPool(lanes=a.configs + b.configs, registry=CollectorRegistry(), logger=MemoryLogger())
    async with pool:
        a.join(pool, first_lane=0)
        b.join(pool, first_lane=lanes)
        await a.comes_up()
        await b.comes_up()
        journal = Journal(pool, original.public_keys)
        logins = a.faults.calls("C_Login")
        async with callers(journal):
            await until(lambda: journal.signed > 2000)
            a.faults.arm("C_Login", rv=PIN_INCORRECT, times=0)
            a.faults.arm("C_Sign", invalidate=True, times=lanes)
            await until(lambda: a.states == [LaneState.FAILED] * lanes, pool.health)
            assert a.health.state is TokenState.FAILED
            assert "CKR_PIN_INCORRECT" in a.health.reason
            enough = journal.signed + 2000
            await until(lambda: journal.signed > enough)
        journal.assert_all_signed()
        assert a.faults.calls("C_Login") == logins + 1


# Pairs that nobody made for us: their public halves and labels as given.
FOREIGN_KEYS = """
import json, sys, pkcs11
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from pkcs11 import Attribute as A
from pkcs11.attributes import AttributeMapper
from pkcs11.util.ec import decode_ec_private_key, decode_ec_public_key
task = json.load(sys.stdin)
key = generate_private_key(SECP256R1())
private = key.private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption())
public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
mapper = AttributeMapper()
mapper.register_handler(A.LABEL, bytes, bytes)
token = pkcs11.lib(task["module"]).get_token(token_label=task["label"])
with token.open(rw=True, user_pin=task["pin"], attribute_mapper=mapper) as session:
    for number, (label, altered) in enumerate(task["keys"], 100):
        common = {A.TOKEN: True, A.LABEL: bytes.fromhex(label), A.ID: bytes([number])}
        altered = {A[name]: bytes.fromhex(octets) for name, octets in altered.items()}
        session.create_object(decode_ec_private_key(private) | common | {A.PRIVATE: True, A.SIGN: True})
        session.create_object(decode_ec_public_key(public) | common | {A.PRIVATE: False} | altered)
"""


async def test_foreign_keys_keep_no_token_from_opening(original: ReplicaToken, tmp_path: Path) -> None:
    a = BreakableToken(tmp_path / "a", original)
    keys = [
        (b"sm2", {"EC_PARAMS": "06082a811ccf5501822d"}),  # a curve that the library lacks
        (b"explicit", {"EC_PARAMS": "3003020101"}),
        (b"empty", {"EC_PARAMS": ""}),
        (b"point", {"EC_POINT": "0403616263"}),
        ("Schlüssel".encode("latin-1"), {}),
    ]
    task = {
        "module": SOFTHSM,
        "label": LABEL,
        "pin": PIN,
        "keys": [(label.hex(), altered) for label, altered in keys],
    }
    subprocess.run(
        [sys.executable, "-P", "-c", FOREIGN_KEYS],
        input=json.dumps(task).encode(),
        env={**os.environ, **a.replica.env},
        check=True,
    )
    lane = await open_lane(a.configs[0])
    try:
        assert set(lane.public_keys) == set(original.public_keys)
        told = sorted(note.partition("the public key ")[2].partition(" cannot be read")[0] for note in lane.notes)
        assert told == ["'empty'", "'explicit'", "'point'", "'sm2'", "of id 68"]
    finally:
        await lane.close()


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


async def test_wrong_pin_is_given_once_and_shown_nowhere(
    original: ReplicaToken, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    a, b = two_tokens(tmp_path, original, pin_of_a=WRONG_PIN)
    a.faults.arm("C_Login", delay_us=300_000)
    async with opened(a, b) as scene:
        await a.logs_in(1)  # its process has the PIN now
        shown = [Path(f"/proc/{pid}/{what}").read_text() for pid in children() for what in ("cmdline", "environ")]
        assert sum("signer_pool.lane_process" in text for text in shown) >= LANES_EACH
        await b.comes_up()
        async with callers(scene.journal):
            await until(lambda: a.states == [LaneState.FAILED] * LANES_EACH, scene.pool.health)
            b.kill_lanes()  # its lanes are opened again, those of the other token are not
            await scene.signed(2000)
            await b.comes_up()
        scene.assert_nobody_noticed()
        assert a.health.state is TokenState.FAILED
        assert a.faults.calls("C_Login") == 1
        said = capfd.readouterr()
        shown += [repr(scene.logger.lines), repr(scene.pool.health()), repr(a.configs), said.out, said.err]
    assert not [secret for secret in (*SECRETS, WRONG_PIN) for text in shown if secret in text]


def children() -> set[int]:
    return {int(pid) for tasks in Path("/proc/self/task").glob("*/children") for pid in tasks.read_text().split()}


async def test_refused_pin_stops_a_lane_that_is_just_opening(original: ReplicaToken, tmp_path: Path) -> None:
    async with under_load(original, tmp_path) as scene:
        logins = scene.a.faults.calls("C_Login")
        scene.a.faults.arm("C_Login", delay_us=500_000)
        os.kill(scene.a.pids[0], signal.SIGKILL)
        await scene.a.logs_in(logins + 1)
        scene.a.faults.arm("C_Sign", rv=PIN_EXPIRED)
        await until(lambda: scene.a.states == [LaneState.FAILED] * LANES_EACH)
        assert scene.a.health.state is TokenState.FAILED
        assert scene.a.faults.calls("C_Login") == logins + 1


async def test_login_is_not_cut_off_by_the_end_of_the_pool(original: ReplicaToken, tmp_path: Path) -> None:
    # SoftHSM rewrites the token's file in each login: a process that is killed then leaves no token.
    a, b = two_tokens(tmp_path, original)
    others = children()
    async with opened(a, b):
        await a.comes_up()
        logins = a.faults.calls("C_Login")
        a.faults.arm("C_Login", delay_us=300_000)
        os.kill(a.pids[0], signal.SIGKILL)
        await a.logs_in(logins + 1)
        searches = a.faults.calls("C_FindObjects")
    assert a.faults.calls("C_FindObjects") > searches
    assert children() <= others


async def test_login_is_not_cut_off_when_the_token_is_given_up(original: ReplicaToken, tmp_path: Path) -> None:
    async with under_load(original, tmp_path) as scene:
        calls = scene.a.faults.calls
        logins, searches = calls("C_Login"), calls("C_FindObjects")
        scene.a.faults.arm("C_Login", delay_us=300_000)
        os.kill(scene.a.pids[0], signal.SIGKILL)
        await scene.a.logs_in(logins + 1)
        scene.a.faults.arm("C_Sign", rv=DEVICE_REMOVED)
        await scene.loses(LANES_EACH - 1, "token_down")  # all that are open
        await scene.a.signs_again()
        # Whoever logged in went on to look for its keys.
        assert calls("C_Login") > logins + 1
        assert calls("C_FindObjects") * logins == searches * calls("C_Login")
