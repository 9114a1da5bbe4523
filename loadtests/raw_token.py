"""The reference of the signer benchmarks: one process, one PKCS #11 session, a loop that only signs.

The child (`python -m loadtests.raw_token`) reads the lane's configuration as one line of JSON, then `Loop`s,
one a line, and answers each with a line: the signatures per second it made. It prepares nothing between two
signatures: no hashing (an EC key signs the same 32 bytes again and again), no DER, no copying.
"""

import asyncio
import os
import sys
import time
from asyncio.subprocess import PIPE
from types import TracebackType
from typing import Self, cast

import msgspec
import pkcs11
from pkcs11.types import SignMixin

from pkix.algorithms import KeyAlgorithm
from signer_pool.lane_config import Pkcs11LaneConfig

_INPUTS = {
    KeyAlgorithm.EC_P256: (pkcs11.Mechanism.ECDSA, bytes(32)),
    KeyAlgorithm.RSA_2048: (pkcs11.Mechanism.SHA256_RSA_PKCS, bytes(600)),
    KeyAlgorithm.RSA_3072: (pkcs11.Mechanism.SHA256_RSA_PKCS, bytes(600)),
}
_BUFFER_BYTES = 1024
_AT_ONCE = 8
"""Signatures between two looks at the clock."""


class Loop(msgspec.Struct, frozen=True):
    """Sign with this key for so long."""

    label: str
    algorithm: KeyAlgorithm
    seconds: float


class RawToken:
    """The parent's side. An async context manager; the child idles between two loops."""

    def __init__(self, config: Pkcs11LaneConfig) -> None:
        self._config = config

    async def __aenter__(self) -> Self:
        self._child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", __name__, stdin=PIPE, stdout=PIPE, env={**os.environ, **self._config.env}
        )
        await self._write(self._config)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._child.returncode is None:
            self._child.kill()
        await self._child.wait()

    async def signs_per_s(self, label: str, algorithm: KeyAlgorithm, seconds: float) -> float:
        """Let the child sign and return its rate."""
        await self._write(Loop(label, algorithm, seconds))
        assert self._child.stdout is not None
        answer = await self._child.stdout.readline()
        if not answer:
            raise SystemExit("the raw loop failed, see above")
        return float(answer)

    async def _write(self, message: msgspec.Struct) -> None:
        assert self._child.stdin is not None
        self._child.stdin.write(msgspec.json.encode(message) + b"\n")
        await self._child.stdin.drain()


def main() -> None:
    """Be the child."""
    config = msgspec.json.decode(sys.stdin.buffer.readline(), type=Pkcs11LaneConfig)
    token = pkcs11.lib(config.module_path).get_token(token_label=config.token_label)
    with token.open(user_pin=config.pin) as session:
        for line in sys.stdin.buffer:
            rate = _sign(session, msgspec.json.decode(line, type=Loop))
            sys.stdout.write(f"{rate}\n")
            sys.stdout.flush()


def _sign(session: pkcs11.Session, loop: Loop) -> float:
    mechanism, data = _INPUTS[loop.algorithm]
    key = session.get_key(object_class=pkcs11.ObjectClass.PRIVATE_KEY, label=loop.label)
    sign = cast("SignMixin", key).sign
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < loop.seconds:
        for _ in range(_AT_ONCE):
            sign(data, mechanism=mechanism, buffer_size=_BUFFER_BYTES)
        count += _AT_ONCE
    return count / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
