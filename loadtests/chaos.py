"""What can happen to an HSM, at random: the faults of `make soak`."""

import asyncio
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from signer_pool.ckr import TABLE, Action
from tests.support.tokens import BreakableToken, send_signal

HEAL_WITHIN_S = 30.0
LIES_AT_MOST = 3
"""Wrong signatures for each token: the pool keeps a lane that lies away for longer each time, up to minutes."""

LARGE_FAULT_S = 8.0
"""Not later than so long before the end: what follows has to heal."""

# Values that end a call or a token are not faults that the pool could hide.
_ENDS_A_CALL = {"CKR_DATA_INVALID", "CKR_DATA_LEN_RANGE", "CKR_FUNCTION_REJECTED", "CKR_KEY_EXHAUSTED"}
_CODES = [row.code for row in TABLE.values() if row.action is not Action.NEVER and row.name not in _ENDS_A_CALL]
_FUNCTIONS = ["C_Sign", "C_SignInit", "C_OpenSession", "C_Login", "C_FindObjectsInit", "C_FindObjects"]


class Chaos:
    """Breaks one token at random, again and again, and sees that it heals each time.

    `one_lives` is held while a token as a whole is away. `faults` counts what was done, `violations` takes in what
    went wrong.
    """

    def __init__(
        self,
        token: BreakableToken,
        one_lives: asyncio.Lock,
        *,
        seed: int,
        faults: Counter[str],
        violations: list[str],
    ) -> None:
        self._told = faults
        self._violations = violations
        self._token = token
        self._faults = token.faults
        self._one_lives = one_lives
        self._dice = random.Random(f"{seed} {token.name}")
        self._lies = 0

    async def run(self, end: float) -> None:
        """Break the token until the end; it is whole when this returns."""
        loop = asyncio.get_running_loop()
        small = (*[self._return_value] * 4, self._session_lost, self._crash, self._kill, self._slow)
        # Those that take the whole token away for some time, or need time to heal.
        large = (self._wrong_signature, self._hang, self._stop, self._kill_all, self._removed, self._deleted)
        while (left := end - loop.time()) > 0:
            await asyncio.sleep(min(left, self._dice.uniform(0.2, 1.0)))
            if self._dice.random() < 0.3 and left > LARGE_FAULT_S:
                async with self._one_lives:
                    await self._break(self._dice.choice(large))
            else:
                await self._break(self._dice.choice(small))

    async def _break(self, fault: Callable[[], Awaitable[None]]) -> None:
        name = fault.__name__.strip("_").replace("_", " ")
        self._told[name] += 1
        await fault()
        try:
            async with asyncio.timeout(HEAL_WITHIN_S):
                while not self._token.is_up:  # noqa: ASYNC110 - a process's state has no event to wait for
                    await asyncio.sleep(0.02)
        except TimeoutError:
            reasons = "; ".join(self._token.pool.health().reasons())
            self._violations.append(f"{name}: not healed after {HEAL_WITHIN_S:g} s: {reasons}")
        self._faults.clear()

    async def _hit(self, function: str, **fault: Any) -> None:  # noqa: ANN401 - as Faults.arm() has it
        """Arm a fault and wait until it has hit; there may be no call left that it could."""
        hits = self._faults.hits(function)
        self._faults.arm(function, **fault)
        with suppress(TimeoutError):
            async with asyncio.timeout(2.0):
                while self._faults.hits(function) == hits:  # noqa: ASYNC110 - it happens in another process
                    await asyncio.sleep(0.01)

    async def _return_value(self) -> None:
        function, code = self._dice.choice(_FUNCTIONS), self._dice.choice(_CODES)
        if function not in {"C_Sign", "C_SignInit"}:
            self._faults.arm("C_Sign", invalidate=True)
            await self._hit(function, rv=code)
        else:
            await self._hit(function, rv=code, nth=self._dice.randint(1, 5))

    async def _session_lost(self) -> None:
        await self._hit("C_Sign", invalidate=True, rv=self._dice.choice((0x82, 0xB3, 0x101)))

    async def _crash(self) -> None:
        await self._hit("C_Sign", crash=True, nth=self._dice.randint(1, 5))

    async def _kill(self) -> None:
        self._signal(signal.SIGKILL)

    async def _slow(self) -> None:
        self._faults.sign_latency_us(self._dice.choice((500, 5000, 20_000)))
        await asyncio.sleep(self._dice.uniform(0.2, 1.0))
        self._faults.sign_latency_us(0)

    async def _wrong_signature(self) -> None:
        if self._lies < LIES_AT_MOST:
            self._lies += 1
            await self._hit("C_Sign", flip=True, nth=self._dice.randint(1, 5))

    async def _hang(self) -> None:
        await self._hit("C_Sign", hang=True)

    async def _stop(self) -> None:
        self._signal(signal.SIGSTOP)
        await asyncio.sleep(0.1)

    async def _kill_all(self) -> None:
        self._token.kill_lanes()

    async def _removed(self) -> None:
        for function in ("C_Sign", "C_OpenSession"):
            self._faults.arm(function, rv=0x32, times=0)
        await asyncio.sleep(self._dice.uniform(0.2, 2.0))
        self._faults.clear()

    async def _deleted(self) -> None:
        self._token.delete()
        await asyncio.sleep(self._dice.uniform(0.2, 2.0))
        self._token.restore()

    def _signal(self, number: int) -> None:
        if self._token.pids:
            send_signal(self._dice.choice(self._token.pids), number)
