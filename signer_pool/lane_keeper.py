"""Keeps one lane alive: starts it, waits until it is lost, starts it again, with a capped delay."""

import asyncio
import enum
from collections.abc import Callable
from typing import Protocol

from signer_pool.errors import KeyMismatch, LaneStartError, PinRejected
from signer_pool.lane import Lane, LaneConfig, LaneOpener

_FIRST_DELAY_S = 0.05
_LAST_DELAY_S = 5.0


class LaneState(enum.StrEnum):
    """What a lane is doing. `failed` is final: an operator must act and restart."""

    STARTING = "starting"
    READY = "ready"
    DOWN = "down"
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


class Doorman:
    """Lets lanes open their token one after another, and never twice with a PIN that was refused.

    Several processes that open a token at the same instant can see CKR_GENERAL_ERROR; several lanes that
    each try a wrong PIN once lock the token all the same.
    """

    def __init__(self, opener: LaneOpener, *, batch_deadline_s: float, start_deadline_s: float) -> None:
        self._opener = opener
        self._batch_deadline_s = batch_deadline_s
        self._start_deadline_s = start_deadline_s
        self._locks: dict[str, asyncio.Lock] = {}
        self._rejected: list[tuple[LaneConfig, str]] = []

    def alone(self, token: str) -> asyncio.Lock:
        """Return the lock under which no lane of this token is opened, so that none sees half a key."""
        return self._locks.setdefault(token, asyncio.Lock())

    async def open(self, config: LaneConfig) -> Lane:
        """Open a lane; raises `LaneStartError`, `PinRejected`."""
        async with self.alone(config.token):
            for refused, reason in self._rejected:
                if refused == config:
                    raise PinRejected(reason)
            try:
                async with asyncio.timeout(self._start_deadline_s):
                    return await self._opener(config, self._batch_deadline_s)
            except PinRejected as error:
                self._rejected.append((config, str(error)))
                raise
            except TimeoutError:
                raise LaneStartError(
                    f"{config.token}: not open within {self._start_deadline_s:g} s; check that the HSM is "
                    "reachable"
                ) from None
            except OSError as error:
                raise LaneStartError(f"{config.token}: cannot start a process: {error}; check limits") from error


class LaneKeeper:
    """One lane's life. The pool reads `lane`, `keys` and `state`, and is told by the callbacks.

    `adopt` looks at a fresh lane and returns the labels it may sign with, or raises `KeyMismatch`;
    `on_ready` and `on_down` come after the state has changed.
    """

    def __init__(
        self,
        name: str,
        config: LaneConfig,
        *,
        doorman: Doorman,
        adopt: Callable[[Lane], frozenset[str]],
        on_ready: Callable[["LaneKeeper"], None],
        on_down: Callable[["LaneKeeper", Exception | str], None],
        logger: Logger,
    ) -> None:
        self.name = name
        self.config = config
        self.state = LaneState.STARTING
        self.last_error: str | None = None
        self.lane: Lane | None = None
        self.keys: frozenset[str] = frozenset()
        self._doorman = doorman
        self._adopt = adopt
        self._on_ready = on_ready
        self._on_down = on_down
        self._logger = logger
        self._failures = 0

    def proved_good(self) -> None:
        """Forget earlier failures: the lane has signed."""
        self._failures = 0

    def set_aside(self) -> None:
        """Send it nothing more: it is lost, or about to be."""
        self.lane = None
        self.keys = frozenset()

    async def run(self) -> None:
        """Keep the lane alive until cancelled, or until its PIN is refused; raises nothing else."""
        while True:
            try:
                await self._live_once()
            except PinRejected as error:
                self._go_down(LaneState.FAILED, error)
                return
            except (LaneStartError, KeyMismatch) as error:
                self._go_down(LaneState.DOWN, error)
                self._failures = max(1, self._failures)
            # At once after the first loss: most are accidents. Else slower and slower.
            if self._failures:
                await asyncio.sleep(min(_LAST_DELAY_S, _FIRST_DELAY_S * 2.0 ** (self._failures - 1)))
            self._failures += 1

    async def _live_once(self) -> None:
        lane = await self._doorman.open(self.config)
        try:
            self.keys = self._adopt(lane)
            self.lane = lane
            self.state = LaneState.READY
            self._logger.info("lane is ready", lane=self.name, pid=lane.pid, keys=len(self.keys))
            self._on_ready(self)
            reason = await lane.wait_lost()
            self.set_aside()
            self._go_down(LaneState.DOWN, reason)
        finally:
            self.set_aside()
            await lane.close()

    def _go_down(self, state: LaneState, cause: Exception | str) -> None:
        self.state = state
        self.last_error = str(cause)
        log = self._logger.error if state is LaneState.FAILED else self._logger.warning
        log("lane is down", lane=self.name, state=state.value, cause=self.last_error)
        self._on_down(self, cause)
