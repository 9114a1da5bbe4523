"""Two tokens under load: sessions that are lost, logins and PINs, and keys of others on the token."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from signer_pool.lane_keeper import LaneState
from signer_pool.lane_link import open_lane
from signer_pool.pool import SignerPool
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
    until,
)
from tests.support.two_tokens import LANES_EACH, opened, two_tokens, under_load
from tests.unit.signer_pool.lanes import MemoryLogger

pytestmark = pytest.mark.usefixtures("unmeasured")

DEVICE_REMOVED = 0x32
SESSION_GONE, HANDLES_STALE, LOGGED_OUT = 0xB3, 0x82, 0x101
PIN_INCORRECT = 0xA0
PIN_EXPIRED = 0xA3
WRONG_PIN = "pin-9999-wrong"


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
