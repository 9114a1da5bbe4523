"""Tokens that hold the same keys, so that a pool over them is redundant, and a journal of who signs with them.

original = make_token(directory)
a, b = (BreakableToken(tmp_path / name, original, lanes=2) for name in "ab")
async with SignerPool(lanes=a.configs + b.configs, ...) as pool:
    a.join(pool, first_lane=0)
    b.join(pool, first_lane=2)
    journal = Journal(pool, original.public_keys)
    async with callers(journal):
        a.kill_lanes()
        await a.comes_up()
journal.assert_all_signed()
"""

import asyncio
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from pkix.algorithms import SigningPublicKey, verify_signature
from pkix.errors import SignatureMismatch
from signer_pool.errors import SignerPoolError
from signer_pool.health import LaneHealth, TokenHealth
from signer_pool.lane_config import LaneConfig, Pkcs11LaneConfig
from signer_pool.lane_keeper import LaneState
from signer_pool.pool import Priority, SignerPool
from signer_pool.token import TokenState
from signer_pool.token_init import initialise_token
from tests.support.faulty_module import Faults, build

SOFTHSM = "/usr/lib/softhsm/libsofthsm2.so"
LABEL = "replica"
PIN = "pin-6204-secret"
SO_PIN = "so-pin-1187-secret"
SECRETS = (PIN, SO_PIN)

# Each key of the software is imported under the same label and id wherever a copy of the token is.
_IMPORT = """
import json, sys, pkcs11
from pkcs11 import Attribute as A
from pkcs11.util import ec, rsa
task = json.load(sys.stdin)
token = pkcs11.lib(task["module"]).get_token(token_label=task["label"])
decode = {
    "ec": (ec.decode_ec_private_key, ec.decode_ec_public_key),
    "rsa": (rsa.decode_rsa_private_key, rsa.decode_rsa_public_key),
}
with token.open(rw=True, user_pin=task["pin"]) as session:
    for number, (label, (private, public)) in enumerate(task["keys"].items(), 1):
        common = {A.TOKEN: True, A.LABEL: label, A.ID: bytes([number])}
        secret = {A.PRIVATE: True, A.SENSITIVE: True, A.EXTRACTABLE: False, A.SIGN: True}
        decode_private, decode_public = decode[label]
        session.create_object(decode_private(bytes.fromhex(private)) | common | secret)
        session.create_object(decode_public(bytes.fromhex(public)) | common | {A.PRIVATE: False, A.VERIFY: True})
"""

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaToken:
    """A SoftHSM token in a directory of its own, and the public halves of the keys that were imported."""

    home: Path
    public_keys: dict[str, SigningPublicKey]

    def config(self, name: str) -> Pkcs11LaneConfig:
        """Return a lane's configuration that calls this token `name`."""
        return Pkcs11LaneConfig(module_path=SOFTHSM, token_label=LABEL, pin=PIN, env=self.env, name=name)

    @property
    def env(self) -> dict[str, str]:
        """Return the variables by which SoftHSM finds the token."""
        return {"SOFTHSM2_CONF": str(self.home / "softhsm2.conf")}

    @property
    def objects(self) -> Path:
        """Return the directory with the token's objects."""
        return self.home / "tokens"

    def copy(self, home: Path) -> "ReplicaToken":
        """Make another token with the same keys; nothing that happens to one is seen by the other."""
        shutil.copytree(self.objects, home / "tokens")
        _configure(home)
        return ReplicaToken(home=home, public_keys=self.public_keys)

    def delete_objects(self) -> None:
        """Delete all that the token is, at once: SoftHSM would make new files in what is half deleted."""
        beside = self.home / "deleted"
        self.objects.rename(beside)
        shutil.rmtree(beside)

    def restore_objects(self, original: "ReplicaToken") -> None:
        """Have the token again as the original is, at once and whole."""
        beside = self.home / "restored"
        shutil.copytree(original.objects, beside)
        beside.rename(self.objects)


def make_token(home: Path) -> ReplicaToken:
    """Make a token in `home` and import a P-256 key `ec` and an RSA-2048 key `rsa`. Blocks: some 0.6 s."""
    keys: dict[str, PrivateKey] = {
        "ec": ec.generate_private_key(ec.SECP256R1()),
        "rsa": rsa.generate_private_key(public_exponent=65537, key_size=2048),
    }
    (home / "tokens").mkdir(parents=True)
    _configure(home)
    token = ReplicaToken(home=home, public_keys={label: key.public_key() for label, key in keys.items()})
    initialise_token(SOFTHSM, LABEL, SO_PIN, PIN, token.env)
    task = {
        "module": SOFTHSM,
        "label": LABEL,
        "pin": PIN,
        "keys": {label: (_private_der(key).hex(), _public_der(key).hex()) for label, key in keys.items()},
    }
    # In a process of its own: a module that is loaded here would hear of every fork of the tests.
    subprocess.run(
        [sys.executable, "-P", "-c", _IMPORT],
        input=json.dumps(task).encode(),
        env={**os.environ, **token.env},
        check=True,
    )
    return token


def _configure(home: Path) -> None:
    lines = f"directories.tokendir = {home}/tokens\nobjectstore.backend = file\nlog.level = ERROR\n"
    (home / "softhsm2.conf").write_text(lines)


def _private_der(key: PrivateKey) -> bytes:
    return key.private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption())


def _public_der(key: PrivateKey) -> bytes:
    if isinstance(key, rsa.RSAPrivateKey):
        return key.public_key().public_bytes(Encoding.DER, PublicFormat.PKCS1)
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


class BreakableToken:
    """A copy of a token that goes by the name of its directory, what breaks it, and its lanes in a pool."""

    def __init__(self, directory: Path, original: ReplicaToken, *, lanes: int = 1, pin: str = PIN) -> None:
        directory.mkdir(parents=True)
        self.name = directory.name
        self.original = original
        self.replica = original.copy(directory / "token")
        self.faults = Faults(directory)
        config = msgspec.structs.replace(self.replica.config(self.name), pin=pin)
        self.configs: list[LaneConfig] = [self.faults.lane_config(config, build())] * lanes

    def join(self, pool: SignerPool, *, first_lane: int) -> None:
        """Say which pool the lanes are in, and where."""
        self.pool = pool
        self._lanes = slice(first_lane, first_lane + len(self.configs))

    @property
    def lanes(self) -> tuple[LaneHealth, ...]:
        """Return the pool's view of the lanes."""
        return self.pool.health().lanes[self._lanes]

    @property
    def health(self) -> TokenHealth:
        """Return the pool's view of the token."""
        return next(token for token in self.pool.health().tokens if token.name == self.name)

    @property
    def states(self) -> list[LaneState]:
        """Return the states of the lanes."""
        return [lane.state for lane in self.lanes]

    @property
    def pids(self) -> list[int]:
        """Return the lanes' processes, as far as there are any."""
        return [lane.pid for lane in self.lanes if lane.pid]

    @property
    def is_up(self) -> bool:
        """Tell whether the token and all its lanes are ready."""
        return self.health.state is TokenState.UP and set(self.states) == {LaneState.READY}

    def kill_lanes(self) -> None:
        """Kill every process of the token; what they work at is lost."""
        for pid in self.pids:
            send_signal(pid, signal.SIGKILL)

    def delete(self) -> None:
        """Delete the token's directory."""
        self.replica.delete_objects()

    def restore(self) -> None:
        """Put the token back as it was."""
        self.replica.restore_objects(self.original)

    async def comes_up(self) -> None:
        """Wait until the token and all its lanes are ready."""
        await until(lambda: self.is_up, lambda: self.pool.health().reasons())

    async def signs_again(self) -> None:
        """Wait until the token is up and has signed more than what its lanes had in their pipes before."""
        await self.comes_up()
        enough = self.faults.calls("C_Sign") + 600
        await until(lambda: self.faults.calls("C_Sign") > enough, lambda: self.pool.health().reasons())

    async def logs_in(self, count: int) -> None:
        """Wait for the `count`th login since the token was made."""
        await until(lambda: self.faults.calls("C_Login") >= count, lambda: self.pool.health().reasons())


def send_signal(pid: int, number: int) -> None:
    """Send a signal to a lane's process, which may have ended before the pool knows it."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


class Journal:
    """Makes calls and writes down how each ended. Every signature is verified here, whatever the pool does.

    `asked`, `signed`: counts of signatures; `withdrawn`: those of calls that were cancelled, which are not in
    `asked`; `errors`: what calls raised; `wrong`: calls that were answered with something else than their
    signatures, or late; `in_flight`: calls that have not ended. Memory does not grow with the calls.
    """

    def __init__(self, pool: SignerPool, public_keys: dict[str, SigningPublicKey]) -> None:
        self._pool = pool
        self._public_keys = public_keys
        self._numbers = itertools.count()
        self.in_flight: set[int] = set()
        self.asked = self.signed = self.withdrawn = self.calls = 0
        self.errors: list[SignerPoolError] = []
        self.wrong: list[str] = []

    async def call(
        self,
        key: str,
        *,
        count: int = 1,
        priority: Priority = Priority.INTERACTIVE,
        client: str = "",
        deadline_s: float = 30.0,
        overdue_s: float = 1.0,
    ) -> None:
        """Ask for `count` signatures over bytes that nobody else signs; errors of the pool are written down.

        A call that ends more than `overdue_s` after its deadline counts as wrong.
        """
        number = next(self._numbers)
        self.in_flight.add(number)
        self.calls += 1
        self.asked += count
        tbs_list = [f"call {number}, tbs {index} ".encode() * 20 for index in range(count)]
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            signatures = await self._pool.sign_many(key, tbs_list, priority, client=client, deadline_s=deadline_s)
        except SignerPoolError as error:
            self.errors.append(error)
        except asyncio.CancelledError:
            self.asked -= count
            self.withdrawn += count
            raise
        else:
            self._check(number, key, tbs_list, signatures)
        finally:
            self.in_flight.remove(number)
        took_s = loop.time() - started
        if took_s > deadline_s + overdue_s:
            self.wrong.append(f"call {number} took {took_s:.1f} s, its deadline was {deadline_s:g} s")

    def _check(self, number: int, key: str, tbs_list: list[bytes], signatures: list[bytes]) -> None:
        if len(signatures) != len(tbs_list):
            self.wrong.append(f"call {number} got {len(signatures)} signatures for {len(tbs_list)}")
            return
        for tbs, signature in zip(tbs_list, signatures, strict=True):
            try:
                verify_signature(self._public_keys[key], tbs, signature)
            except SignatureMismatch:
                self.wrong.append(f"call {number} got a signature that is not its own")
            else:
                self.signed += 1

    def take_errors(self) -> list[SignerPoolError]:
        """Return what calls raised since the last time. Fails if one has not ended, or was answered wrongly."""
        assert not self.in_flight, f"{len(self.in_flight)} calls have not ended"
        assert not self.wrong, self.wrong[:5]
        errors, self.errors = self.errors, []
        return errors

    def assert_all_signed(self) -> None:
        """Fail unless every call has ended, and with its signatures."""
        assert self.take_errors() == []
        assert self.signed == self.asked


@asynccontextmanager
async def callers(journal: Journal, *, count: int = 240, deadline_s: float = 30.0) -> AsyncIterator[None]:
    """Let so many callers, of every priority, make one call after the other while the context lasts."""
    stopped = False

    async def caller(number: int) -> None:
        while not stopped:
            await journal.call(
                "ec" if number % 8 else "rsa",
                count=1 + number % 3,
                priority=Priority(number % len(Priority)),
                client=f"client {number % 5}",
                deadline_s=deadline_s,
            )

    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(caller(number))
        try:
            yield
        finally:
            stopped = True


async def until(condition: Callable[[], object], what: Callable[[], object] | str = "") -> None:
    """Wait until the condition holds, for 20 s at most; `what` says then what holds instead, or what it was."""
    try:
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110 - a process's state has no event to wait for
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"not within 20 s: {what if isinstance(what, str) else what()}") from None
