"""The signer pool: one primitive, `await pool.sign(key, tbs, priority)`, over any number of lanes.

How it works: calls put items into the backlog. Whenever a lane has a free place (two batches in the pipe,
so that the token never idles) the next batch leaves. Its answer wakes the loop once; every signature is
verified with the key's public half before its caller sees it. Items of a lane that dies, hangs or lies go
back to the front of the backlog, the same TBS, and a keeper starts the lane again. A call ends with its
signatures or one typed error, at its own deadline at the latest.
"""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self, cast

from prometheus_client import CollectorRegistry

from pkix.algorithms import KeyAlgorithm, SigningPublicKey
from signer_pool.backlog import MAX_BATCH_BYTES, Backlog, Priority
from signer_pool.dispatcher import Dispatcher
from signer_pool.errors import KeyExists, LaneStartError, PoolClosed, PoolUnavailable, SignerPoolError
from signer_pool.key_ring import KeyRing
from signer_pool.lane import MAX_FRAME_BYTES, Generate, Generated, LaneConfig, LaneOpener, Relist
from signer_pool.lane_keeper import Doorman, LaneKeeper, LaneState, Logger
from signer_pool.lane_link import open_lane
from signer_pool.metrics import PoolMetrics

__all__ = ["LaneHealth", "LaneState", "PoolHealth", "Priority", "SignerPool"]

MAX_TBS_BYTES = MAX_FRAME_BYTES - 2 * MAX_BATCH_BYTES
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneHealth:
    """One lane: `last_error` is the newest reason why it was not ready."""

    name: str
    token: str
    state: LaneState
    pid: int | None
    last_error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolHealth:
    """The pool: it can sign while `alive` is not 0."""

    lanes: tuple[LaneHealth, ...]
    queue_depth: int

    @property
    def alive(self) -> int:
        """Count the lanes that are ready."""
        return sum(lane.state is LaneState.READY for lane in self.lanes)

    @property
    def total(self) -> int:
        """Count all lanes."""
        return len(self.lanes)


class SignerPool:
    """Signs with keys that stay in tokens. An async context manager; belongs to one event loop.

    Entering returns when the first lane is ready, and raises `LaneStartError` or `PinRejected` when none
    can start. Leaving fails what waits with `PoolClosed` and reaps every child.
    """

    def __init__(
        self,
        *,
        lanes: Sequence[LaneConfig],
        registry: CollectorRegistry,
        logger: Logger,
        batch_size: int = 64,
        batch_age_s: float = 0.002,
        queue_limit: int = 20_000,
        batch_deadline_s: float = 10.0,
        start_deadline_s: float = 30.0,
        lane_opener: LaneOpener = open_lane,
    ) -> None:
        if not lanes:
            raise ValueError("a pool needs a lane")
        self._logger = logger
        self._start_deadline_s = start_deadline_s
        self._ring = KeyRing()
        self._backlog = Backlog(limit=queue_limit, batch_size=batch_size, batch_age_s=batch_age_s)
        self._metrics = PoolMetrics(
            registry,
            priorities=[priority.name.lower() for priority in Priority],
            states=[state.value for state in LaneState],
            queue_depth=lambda: len(self._backlog),
        )
        self._doorman = Doorman(lane_opener, batch_deadline_s=batch_deadline_s, start_deadline_s=start_deadline_s)
        self._keepers = [
            LaneKeeper(
                f"lane-{number}",
                config,
                doorman=self._doorman,
                adopt=self._ring.adopt,
                on_ready=self._on_ready,
                on_down=self._on_down,
                logger=logger,
            )
            for number, config in enumerate(lanes)
        ]
        self._tasks: list[asyncio.Task[None]] = []
        self._start_errors: dict[str, Exception] = {}
        self._closed = True

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._started: asyncio.Future[None] = loop.create_future()
        self._generating = asyncio.Lock()
        self._dispatcher = Dispatcher(
            loop=loop,
            backlog=self._backlog,
            ring=self._ring,
            keepers=self._keepers,
            metrics=self._metrics,
            logger=self._logger,
        )
        self._closed = False
        self._count_lanes()
        for keeper in self._keepers:
            task = loop.create_task(keeper.run(), name=keeper.name)
            task.add_done_callback(partial(self._on_keeper_ended, keeper))
            self._tasks.append(task)
        try:
            await self._started
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Fail what waits or is being signed with `PoolClosed` and end every lane; idempotent."""
        if self._closed:
            return
        self._closed = True
        self._dispatcher.close(PoolClosed("the signer pool was closed"))
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    async def sign(self, key: str, tbs: bytes, priority: Priority, *, deadline_s: float = 30.0) -> bytes:
        """Return the verified signature over `tbs` by the key of this label. See `sign_many`."""
        return (await self.sign_many(key, (tbs,), priority, deadline_s=deadline_s))[0]

    async def sign_many(
        self, key: str, tbs_list: Sequence[bytes], priority: Priority, *, deadline_s: float = 30.0
    ) -> list[bytes]:
        """Return verified signatures in the order of `tbs_list` (PKCS #1 v1.5, or DER Ecdsa-Sig-Value).

        All or nothing. Raises `UnknownKey`, `PoolFull`, `PoolClosed` at once; `PoolUnavailable` when
        `deadline_s` has passed; `SigningFailed` when the token refused three times; ValueError for a TBS
        beyond `MAX_TBS_BYTES`. Cancelling drops what has not left yet and disturbs nobody else.
        """
        if self._closed:
            raise PoolClosed("the signer pool is closed")
        self._ring.public_key(key)
        if not tbs_list:
            return []
        if max(map(len, tbs_list)) > MAX_TBS_BYTES:
            raise ValueError(f"a TBS of more than {MAX_TBS_BYTES} bytes")
        return await self._dispatcher.submit(key, tbs_list, priority, deadline_s)

    def public_key(self, label: str) -> SigningPublicKey:
        """Return the public half of a key; raises `UnknownKey`."""
        return self._ring.public_key(label)

    def labels(self) -> frozenset[str]:
        """Return the labels of all keys that some token has shown."""
        return self._ring.labels()

    def pin_key(self, label: str, public_key: SigningPublicKey) -> None:
        """From now on accept only this key under this label; lanes that show another are not used.

        Raises `UnknownKey` if no token has shown the label, `KeyMismatch` if one has shown another key.
        """
        self._ring.pin(label, public_key)

    async def generate_key(self, label: str, algorithm: KeyAlgorithm) -> SigningPublicKey:
        """Make a key pair in the token of one ready lane and show it to all lanes.

        Raises `KeyExists`, `SigningFailed`, `PoolUnavailable` (in which case it may exist nevertheless: look
        at `labels()` after the lane is back), ValueError for a label outside `[A-Za-z0-9 ._-]{1,64}`.
        """
        if not _LABEL.fullmatch(label):
            raise ValueError(f"key label {label!r}: 1 to 64 letters, digits, blanks or ._-")
        async with self._generating:
            if label in self._ring.labels():
                raise KeyExists(f"key {label!r} exists already")
            keeper = next((keeper for keeper in self._keepers if keeper.lane), None)
            if keeper is None:
                raise PoolUnavailable("no lane is ready")
            async with self._doorman.alone(keeper.config.token):
                if keeper.lane is None:
                    raise PoolUnavailable("the lane was lost before it could generate the key")
                reply = await keeper.lane.ask(Generate(label, algorithm), deadline_s=self._start_deadline_s)
            self._ring.learn(label, cast("Generated", reply).public_key)
            await self._relist()
        return self._ring.public_key(label)

    def health(self) -> PoolHealth:
        """Say what works and why the rest does not."""
        return PoolHealth(
            lanes=tuple(
                LaneHealth(
                    name=keeper.name,
                    token=keeper.config.token,
                    state=keeper.state,
                    pid=keeper.lane.pid if keeper.lane else None,
                    last_error=keeper.last_error,
                )
                for keeper in self._keepers
            ),
            queue_depth=len(self._backlog),
        )

    async def _relist(self) -> None:
        """Let every ready lane look for keys again. One that is lost meanwhile looks when it is back."""
        for keeper in self._keepers:
            lane = keeper.lane
            if lane is None:
                continue
            try:
                await lane.ask(Relist(), deadline_s=self._start_deadline_s)
                keeper.keys = self._ring.adopt(lane)
            except SignerPoolError as error:
                self._logger.error("lane cannot list its keys", lane=keeper.name, cause=str(error))
                keeper.set_aside()
                lane.kill("relist")

    def _on_ready(self, _: LaneKeeper) -> None:
        self._count_lanes()
        if not self._started.done():
            self._started.set_result(None)
        self._dispatcher.schedule()

    def _on_down(self, keeper: LaneKeeper, cause: Exception | str) -> None:
        self._count_lanes()
        if isinstance(cause, str):
            self._metrics.restarted(cause)
            return
        self._metrics.restarted("not_started")
        self._start_errors.setdefault(keeper.name, cause)
        if len(self._start_errors) == len(self._keepers) and not self._started.done():
            self._started.set_exception(next(iter(self._start_errors.values())))

    def _on_keeper_ended(self, keeper: LaneKeeper, task: asyncio.Task[None]) -> None:
        """Tell of a bug: a keeper ends because it is cancelled, or with its PIN refused."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            keeper.set_aside()
            keeper.state, keeper.last_error = LaneState.FAILED, f"bug: {type(error).__name__}"
            self._logger.error("lane keeper crashed", lane=keeper.name, exc_info=error)
            self._on_down(keeper, LaneStartError(keeper.last_error))

    def _count_lanes(self) -> None:
        for state, gauge in self._metrics.lanes.items():
            gauge.set(sum(keeper.state == state for keeper in self._keepers))
