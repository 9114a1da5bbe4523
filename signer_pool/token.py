"""One token: the door through which its lanes are opened, and the latch that keeps a dead one shut.

Invariants: lanes of a token open one after another (several processes that open one at the same instant can see
CKR_GENERAL_ERROR, and a probe by one is a probe for all); a PIN that was refused is never tried again; after a
failure the next probe waits, each time longer, until a lane has signed.
"""

import asyncio
import enum
from collections.abc import Callable

from signer_pool.errors import LaneStartError, PinRejected
from signer_pool.lane import Lane, LaneOpener
from signer_pool.lane_config import LaneConfig

_FIRST_PROBE_S = 0.05
_LAST_PROBE_S = 5.0


class TokenState(enum.StrEnum):
    """What is known of a token. `failed` is final: an operator must act and restart."""

    STARTING = "starting"
    UP = "up"
    DOWN = "down"
    FAILED = "failed"


class Token:
    """A token and its door.

    `reason`: why it is not up, one line. `keys`: what its newest lane can sign with, None before there was one.
    """

    def __init__(
        self, name: str, opener: LaneOpener, *, start_deadline_s: float, on_failed: Callable[[str, str], None]
    ) -> None:
        self.name = name
        self._on_failed = on_failed
        self.keys: frozenset[str] | None = None
        self.state = TokenState.STARTING
        self.reason = ""
        self._opener = opener
        self._start_deadline_s = start_deadline_s
        self._door = asyncio.Lock()
        self._failures = 0
        self._probe_at = 0.0
        self._lanes = 0

    def alone(self) -> asyncio.Lock:
        """Return the lock under which no lane of this token is opened, so that none sees half a key."""
        return self._door

    async def open(self, config: LaneConfig) -> Lane:
        """Open a lane, when its time has come; raises `LaneStartError`, `PinRejected`."""
        async with self._door:
            await asyncio.sleep(max(0.0, self._probe_at - _now()))
            if self._has_failed():
                raise PinRejected(self.reason)
            try:
                async with asyncio.timeout(self._start_deadline_s):
                    lane = await self._opener(config)
            except PinRejected as error:
                self.fail(str(error))
                raise
            except LaneStartError as error:
                self._not_opened(str(error))
                raise
            except TimeoutError:
                within = f"within {self._start_deadline_s:g} s"
                reason = f"{config.token}: not open {within}; check that the HSM is reachable"
                self._not_opened(reason)
                raise LaneStartError(reason) from None
            except OSError as error:
                reason = f"{config.token}: cannot start a process: {error}; check limits"
                self._not_opened(reason)
                raise LaneStartError(reason) from error
            if self._has_failed():  # since we began: a lane that was open had its PIN refused
                await lane.close()
                raise PinRejected(self.reason)
            self.state, self.reason = TokenState.UP, ""
            self._lanes += 1
            return lane

    def may_have(self, key: str) -> bool:
        """Tell whether this token could sign with the key soon: it is not down, and is not known to lack it."""
        alive = self.state in {TokenState.STARTING, TokenState.UP}
        return alive and (self.keys is None or key in self.keys)

    def lane_ended(self) -> None:
        """Take note that a lane which was opened is no more."""
        self._lanes -= 1

    def latch(self, reason: str) -> None:
        """Take the token for down until a probe succeeds."""
        self._failures += 1
        self._probe_at = _now() + min(_LAST_PROBE_S, _FIRST_PROBE_S * 2.0 ** min(self._failures - 1, 30))
        if not self._has_failed():
            self.state, self.reason = TokenState.DOWN, reason

    def fail(self, reason: str) -> None:
        """Never try it again: its PIN was refused."""
        if not self._has_failed():
            self.refuse(reason)
            self._on_failed(self.name, reason)

    def refuse(self, reason: str) -> None:
        """Never try it, or never again."""
        self.state, self.reason = TokenState.FAILED, reason

    def proved_good(self) -> None:
        """Forget earlier failures: the token has signed."""
        self._failures = 0

    def _not_opened(self, reason: str) -> None:
        """Latch the token, unless it is up with other lanes: it may only have no session left for one more."""
        if not self._lanes or self.state is not TokenState.UP:
            self.latch(reason)

    def _has_failed(self) -> bool:
        return self.state is TokenState.FAILED


def _now() -> float:
    return asyncio.get_running_loop().time()
