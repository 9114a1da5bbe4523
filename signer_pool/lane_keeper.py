"""Keeps one lane alive: starts it, waits until it is lost, starts it again, with a capped delay."""

import asyncio
import enum
from collections.abc import Callable
from typing import Protocol

from signer_pool.errors import KeyMismatch, LaneStartError, PinRejected, SignerPoolError
from signer_pool.lane import Lane, Ping
from signer_pool.lane_config import LaneConfig
from signer_pool.pace import Pace
from signer_pool.token import Token, TokenState

_FIRST_DELAY_S = 0.05
_LAST_DELAY_S = 5.0
_FIRST_QUARANTINE_S = 2.0
_LAST_QUARANTINE_S = 300.0
_LONGEST_PING_S = 5.0  # whoever asked for a signature meanwhile waits so long at most
WRONG_SIGNATURE = "wrong_signature"
KEY_MISMATCH = "key_mismatch"


class LaneState(enum.StrEnum):
    """What a lane is doing.

    `quarantined`: it gave a wrong signature and waits before it gets a fresh process. `failed` is final: an
    operator must act and restart.
    """

    STARTING = "starting"
    READY = "ready"
    DOWN = "down"
    QUARANTINED = "quarantined"
    FAILED = "failed"


class Logger(Protocol):
    """What we need of a structlog logger."""

    def info(self, event: str, **details: object) -> object:
        """Log what is good to know."""
        ...

    def warning(self, event: str, **details: object) -> object:
        """Log what heals by itself."""
        ...

    def error(self, event: str, **details: object) -> object:
        """Log what somebody must see to."""
        ...


class LaneKeeper:
    """One lane's life. The pool reads `lane`, `keys` and `state`, and is told by the callbacks.

    `dismissed` is the last lane that did not end by itself. The dispatcher keeps here: `batches`, how many were
    sent; `in_doubt`: it works at an item over which another lane was lost, so nothing else goes behind it;
    `unverified`: answers of its lanes that are not verified yet.

    `adopt` looks at a fresh lane and returns the keys it may sign with, or raises `KeyMismatch`; `on_ready` and
    `on_down` come after the state has changed, `on_free` when the lane has a place again that no batch had.
    """

    def __init__(
        self,
        name: str,
        config: LaneConfig,
        *,
        token: Token,
        pace: Pace,
        keep_alive_s: float,
        adopt: Callable[[Lane], frozenset[str]],
        on_ready: Callable[["LaneKeeper"], None],
        on_down: Callable[["LaneKeeper", Exception | str], None],
        on_free: Callable[[], None],
        logger: Logger,
    ) -> None:
        self.name = name
        self.config = config
        self.token = token
        self.pace = pace
        self.state = LaneState.STARTING
        self.last_error: str | None = None
        self.lane: Lane | None = None
        self.keys: frozenset[str] = frozenset()
        self.dismissed: Lane | None = None
        self.batches = 0
        self.in_doubt = False
        self.unverified = 0
        self._keep_alive_s = keep_alive_s
        self._adopt = adopt
        self._on_ready = on_ready
        self._on_down = on_down
        self._on_free = on_free
        self._logger = logger
        self._failures = 0
        self._quarantines = 0
        self._told: tuple[LaneState, str] | None = None

    def proved_good(self) -> None:
        """Forget earlier failures: the lane has signed a whole batch, and every signature was right."""
        self._failures = 0
        self.token.proved_good()

    def set_aside(self) -> None:
        """Send it nothing more: it is lost, or about to be."""
        self.lane = None
        self.keys = frozenset()

    def dismiss(self, lane: Lane, reason: str) -> None:
        """Send this lane nothing more and be done with it; what it has comes back to the backlog."""
        if self.lane is lane:
            self.set_aside()
        self.dismissed = lane
        lane.kill(reason)

    async def run(self) -> None:
        """Keep the lane alive until cancelled, or until its PIN is refused; raises nothing else."""
        while True:
            try:
                reason = await self._live_once()
            except PinRejected as error:
                self._go_down(LaneState.FAILED, error)
                return
            except LaneStartError as error:
                self._go_down(LaneState.DOWN, error)
                if self.token.state is TokenState.DOWN:
                    continue  # the token says when the next try is due
                self._failures = max(1, self._failures)
                reason = ""
            except KeyMismatch as error:
                self._go_down(LaneState.DOWN, error)
                reason = KEY_MISMATCH
            except Exception as error:
                self._logger.error("lane keeper: bug", lane=self.name, token=self.token.name, exc_info=error)
                self._go_down(LaneState.DOWN, LaneStartError(f"bug: {type(error).__name__}, see the log"))
                self._failures = max(1, self._failures)
                reason = ""
            if reason in {WRONG_SIGNATURE, KEY_MISMATCH}:
                await asyncio.sleep(_doubled(_FIRST_QUARANTINE_S, self._quarantines, _LAST_QUARANTINE_S))
                self._quarantines += 1
            # At once after the first loss: most are accidents. Else slower and slower.
            elif self._failures:
                await asyncio.sleep(_doubled(_FIRST_DELAY_S, self._failures - 1, _LAST_DELAY_S))
            self._failures += 1

    async def _live_once(self) -> str:
        lane = await self.token.open(self.config)
        try:
            self.keys = self.token.keys = self._adopt(lane)
            self.lane = lane
            self.state = LaneState.READY
            self._told = None
            self._logger.info(
                "lane is ready", lane=self.name, token=self.token.name, pid=lane.pid, keys=len(self.keys)
            )
            self._on_ready(self)
            reason = await self._until_lost(lane)
            self.set_aside()
            wrong = reason == WRONG_SIGNATURE
            self._go_down(LaneState.QUARANTINED if wrong else LaneState.DOWN, reason)
            return reason
        finally:
            self.set_aside()
            self.token.lane_ended()
            await lane.close()

    async def _until_lost(self, lane: Lane) -> str:
        """Wait until the lane is lost and return why. An idle session is used a little from time to time."""
        while True:
            batches = self.batches
            try:
                async with asyncio.timeout(self._keep_alive_s):
                    return await lane.wait_lost()
            except TimeoutError:
                if batches != self.batches or lane.in_flight:
                    continue
            try:
                await lane.ask(Ping(), deadline_s=min(self._keep_alive_s, _LONGEST_PING_S))
                self._on_free()
            except SignerPoolError as error:
                self._logger.warning(
                    "idle session is gone", lane=self.name, token=self.token.name, cause=str(error)
                )
                lane.kill("idle")

    def _go_down(self, state: LaneState, cause: Exception | str) -> None:
        self.state = state
        self.last_error = str(cause)
        if self._told != (state, self.last_error):  # else a dead token would fill the log, probe after probe
            self._told = (state, self.last_error)
            bad = state in {LaneState.FAILED, LaneState.QUARANTINED}
            log = self._logger.error if bad else self._logger.warning
            log("lane is down", lane=self.name, token=self.token.name, state=state.value, cause=self.last_error)
        self._on_down(self, cause)


def _doubled(first_s: float, times: int, last_s: float) -> float:
    return min(last_s, first_s * 2.0 ** min(times, 30))
