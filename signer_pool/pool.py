"""The signer pool: one primitive, `await pool.sign(key, tbs, priority)`, over any number of tokens and lanes.

How it works: calls put items into the backlog. Whenever a lane has a free place (two batches in the pipe,
so that the token never idles) the next batch leaves. Its answer wakes the loop once; every signature is
verified with the key's public half before its caller sees it. Items of a lane that dies, hangs or lies go
back to the front of the backlog, the same TBS, and a keeper starts the lane again. A token that is gone is
latched and probed; its work moves to the others. A call ends with its signatures or one typed error, at its
own deadline at the latest.
"""

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self, cast

from prometheus_client import CollectorRegistry

from pkix.algorithms import KeyAlgorithm, SigningPublicKey, algorithm_for
from signer_pool.backlog import MAX_BATCH_BYTES, Backlog, Priority
from signer_pool.budget import SigningBudget
from signer_pool.budget_metrics import BudgetCollector
from signer_pool.calibration import calibrate
from signer_pool.ckr import Action
from signer_pool.dispatcher import Dispatcher
from signer_pool.errors import (
    LaneStartError,
    PinRejected,
    PoolClosed,
    PoolFull,
)
from signer_pool.health import LaneHealth, PoolHealth, TokenHealth
from signer_pool.key_maker import KeyMaker
from signer_pool.key_ring import KeyRing
from signer_pool.lane import MAX_FRAME_BYTES, Lane, LaneOpener, Refusal
from signer_pool.lane_config import LaneConfig
from signer_pool.lane_keeper import LaneKeeper, LaneState, Logger
from signer_pool.lane_link import open_lane
from signer_pool.metrics import PoolMetrics
from signer_pool.pace import Capacity, Pace, capacities
from signer_pool.token import Token, TokenState

__all__ = ["LaneHealth", "LaneState", "PoolHealth", "Priority", "SignerPool", "TokenHealth", "TokenState"]

MAX_TBS_BYTES = MAX_FRAME_BYTES - 2 * MAX_BATCH_BYTES


def _nobody_listens(_token: str, _reason: str) -> None:
    """Stand in for who does not want to know."""


class SignerPool:
    """Signs with keys that stay in tokens. An async context manager; belongs to one event loop.

    `lanes`: one configuration for each session; those of one `token_name` share a token. `expected`: SHA-256 of
    the SubjectPublicKeyInfo that must stand behind a name; a token that shows another key is not used.
    `refused_tokens`: name to reason of tokens whose PIN is known to be refused: they are not opened at all;
    `on_token_failed` is told (name, reason) when that comes to light. Entering returns when the first lane is
    ready, and raises `LaneStartError` or `PinRejected` when no token can start. Leaving fails what waits with
    `PoolClosed` and reaps every child.
    """

    def __init__(
        self,
        *,
        lanes: Sequence[LaneConfig],
        registry: CollectorRegistry,
        logger: Logger,
        batch_size: int = 256,
        batch_age_s: float = 0.002,
        target_batch_s: float = 0.025,
        queue_limit: int = 20_000,
        batch_deadline_s: float = 10.0,
        start_deadline_s: float = 30.0,
        keep_alive_s: float = 60.0,
        weights: Mapping[str, int] | None = None,
        bulk_reserve: float = 0.05,
        expected: Mapping[str, bytes] | None = None,
        refused_tokens: Mapping[str, str] | None = None,
        on_token_failed: Callable[[str, str], None] = _nobody_listens,
        lane_opener: LaneOpener = open_lane,
        verify: bool = True,
    ) -> None:
        if not lanes:
            raise ValueError("a pool needs a lane")
        self._logger = logger
        self._start_deadline_s = start_deadline_s
        self._verify = verify
        self._ring = KeyRing(expected)
        self._backlog = Backlog(limit=queue_limit, batch_age_s=batch_age_s, weights=weights)
        self._metrics = PoolMetrics(
            registry,
            priorities=[priority.name.lower() for priority in Priority],
            queue_depth=lambda number: self._backlog.depth(Priority(number)),
        )
        names = dict.fromkeys(config.token_name for config in lanes)
        self._tokens = {
            name: Token(name, lane_opener, start_deadline_s=start_deadline_s, on_failed=on_token_failed)
            for name in names
        }
        for name, reason in (refused_tokens or {}).items():
            if name in self._tokens:
                self._tokens[name].refuse(reason)
        self._keepers = [
            LaneKeeper(
                f"lane-{number}",
                config,
                token=self._tokens[config.token_name],
                pace=Pace(target_s=target_batch_s, max_size=batch_size, deadline_s=batch_deadline_s),
                keep_alive_s=keep_alive_s,
                adopt=self._ring.adopt,
                on_ready=self._on_ready,
                on_down=self._on_down,
                on_free=self._on_free,
                logger=logger,
            )
            for number, config in enumerate(lanes)
        ]
        self.budget = SigningBudget(self.capacities, clock=time.monotonic, reserve=bulk_reserve)
        BudgetCollector(self.budget, registry)
        self._tasks: list[asyncio.Task[None]] = []
        self._start_errors: dict[str, Exception] = {}
        self._closed = True

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._started: asyncio.Future[None] = loop.create_future()
        self._dispatcher = Dispatcher(
            loop=loop,
            backlog=self._backlog,
            ring=self._ring,
            keepers=self._keepers,
            on_token_down=self._on_token_down,
            metrics=self._metrics,
            logger=self._logger,
            verify=self._verify,
        )
        self._key_maker = KeyMaker(
            keepers=self._keepers,
            ring=self._ring,
            on_free=self._dispatcher.schedule,
            deadline_s=self._start_deadline_s,
            logger=self._logger,
        )
        self._closed = False
        self._count_lanes()
        for keeper in self._keepers:
            self._tasks.append(loop.create_task(keeper.run(), name=keeper.name))
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

    async def sign(
        self,
        key: str,
        tbs: bytes,
        priority: Priority,
        *,
        algorithm: str | None = None,
        client: str = "",
        deadline_s: float = 30.0,
    ) -> bytes:
        """Return the verified signature over `tbs` by the key of this name. See `sign_many`."""
        signatures = await self.sign_many(
            key, (tbs,), priority, algorithm=algorithm, client=client, deadline_s=deadline_s
        )
        return signatures[0]

    async def sign_many(
        self,
        key: str,
        tbs_list: Sequence[bytes],
        priority: Priority,
        *,
        algorithm: str | None = None,
        client: str = "",
        deadline_s: float = 30.0,
    ) -> list[bytes]:
        """Return verified signatures in the order of `tbs_list` (ECDSA: DER Ecdsa-Sig-Value); all or nothing.

        `algorithm` names a row of `pkix.algorithms.SIGNATURE_ALGORITHMS`, None the key's usual one. Clients of
        one class take turns; bulk waits for its share of the signing budget. Cancelling drops what has not left
        yet and disturbs nobody else.

        Raises at once `UnknownKey`, `UnsupportedKey` for an algorithm that is not the key's, `PoolFull`,
        `PoolClosed`, `BudgetExceeded` for bulk, TypeError for a TBS that is not bytes, ValueError for one beyond
        `MAX_TBS_BYTES`, for more of them than can ever wait, and for a deadline that is no number; later
        `PoolUnavailable` when `deadline_s` has passed, `SigningFailed` when the tokens refused, `Unsignable`
        when none ever could.
        """
        if self._closed:
            raise PoolClosed("the signer pool is closed")
        row = self._ring.algorithm(key) if algorithm is None else algorithm_for(self.public_key(key), algorithm)
        if not tbs_list:
            return []
        if any(type(tbs) is not bytes for tbs in tbs_list):
            raise TypeError("a TBS is bytes")
        if max(map(len, tbs_list)) > MAX_TBS_BYTES:
            raise ValueError(f"a TBS of more than {MAX_TBS_BYTES} bytes")
        if math.isnan(deadline_s):
            raise ValueError("a deadline that is no number")
        self._backlog.require_room(priority, len(tbs_list))
        began = asyncio.get_running_loop().time()
        paid = len(tbs_list) if priority is Priority.BULK and self.budget.plans else 0
        if paid:
            await asyncio.sleep(min(deadline_s, self.budget.delay_bulk(key, paid)))
        try:
            future = self._dispatcher.submit(
                key, tbs_list, priority, algorithm=row, client=client, began=began, deadline_s=deadline_s
            )
        except PoolFull:
            self.budget.give_back(key, paid)
            raise
        return await future

    def public_key(self, label: str) -> SigningPublicKey:
        """Return the public half of a key; raises `UnknownKey`."""
        return self._ring.public_key(label)

    def labels(self) -> frozenset[str]:
        """Return the names of all keys that some token has shown."""
        return self._ring.labels()

    def pin_key(self, label: str, public_key: SigningPublicKey) -> None:
        """From now on accept only this key under this name; lanes that show another are not used.

        Raises `UnknownKey` if no token has shown the name, `KeyMismatch` if one has shown another key.
        """
        self._ring.pin(label, public_key)

    def capacities(self) -> list[Capacity]:
        """Return what each token could sign per second with each of its keys, as measured on its ready lanes."""
        return capacities((k.token.name, k.keys, k.pace) for k in self._keepers if k.lane is not None)

    async def calibrate(self, keys: Sequence[str], *, signs: int = 32) -> None:
        """Measure the pace of every ready lane with these keys now."""
        await calibrate(
            self._keepers,
            self._ring,
            keys,
            signs=signs,
            judge=self._dispatcher.judge,
            schedule=self._dispatcher.schedule,
        )

    async def all_tokens_seen(self, *, deadline_s: float) -> None:
        """Wait until every token has a ready lane; raises `PoolUnavailable` naming those that have not in time."""
        await self._key_maker.all_tokens_seen(deadline_s=deadline_s)

    async def generate_key(self, label: str, algorithm: KeyAlgorithm) -> SigningPublicKey:
        """Make a key pair in the first token and show it to all lanes; see `KeyMaker.generate`."""
        try:
            return await self._key_maker.generate(label, algorithm)
        finally:
            self._count_lanes()
            self._dispatcher.schedule()  # its questions freed places for the work that came meanwhile

    def health(self) -> PoolHealth:
        """Say what works and why the rest does not."""
        return PoolHealth(
            lanes=tuple(
                LaneHealth(
                    name=keeper.name,
                    token=keeper.config.token,
                    token_name=keeper.token.name,
                    state=keeper.state,
                    pid=keeper.lane.pid if keeper.lane else None,
                    last_error=keeper.last_error,
                )
                for keeper in self._keepers
            ),
            tokens=tuple(self._token_health(token) for token in self._tokens.values()),
            queue_depth=len(self._backlog),
        )

    def _token_health(self, token: Token) -> TokenHealth:
        keys = [keeper.keys for keeper in self._keepers if keeper.token is token and keeper.lane is not None]
        missing = self._ring.labels().difference(*keys) if keys else frozenset[str]()
        return TokenHealth(
            name=token.name, state=token.state, reason=token.reason, missing_keys=tuple(sorted(missing))
        )

    def _on_token_down(self, keeper: LaneKeeper, refusal: Refusal) -> None:
        """End every lane of a token that is gone, or whose login the token took back."""
        token = keeper.token
        if refusal.action is Action.NEVER:
            token.fail(refusal.message)
        else:
            token.latch(refusal.message)
        for each in self._keepers:
            if each.token is token and each.lane is not None:
                each.dismiss(each.lane, "token_down")

    def _on_ready(self, keeper: LaneKeeper) -> None:
        self._tell_notes(keeper, cast("Lane", keeper.lane))
        self._count_lanes()
        if not self._started.done():
            self._started.set_result(None)
        self._dispatcher.schedule()

    def _tell_notes(self, keeper: LaneKeeper, lane: Lane) -> None:
        for note in lane.notes:
            self._logger.warning("key cannot be used", lane=keeper.name, cause=note)
        missing = self._ring.labels() - keeper.keys
        if missing:
            self._logger.warning(
                "token lacks keys that another token has; clone them with the vendor's tool",
                token=keeper.token.name,
                keys=sorted(missing),
            )

        twins = {
            other.token.name
            for other in self._keepers
            if other.token is not keeper.token and other.lane is not None and _place(other) == _place(keeper)
        }
        if twins:
            self._logger.error(
                "one token goes by two names: if it fails, both do; name each HSM once",
                token=keeper.token.name,
                also=sorted(twins),
            )

    def _on_down(self, keeper: LaneKeeper, cause: Exception | str) -> None:
        self._count_lanes()
        if isinstance(cause, str):
            self._metrics.restarted(keeper.token.name, cause)
            return
        self._metrics.restarted(keeper.token.name, "not_started")
        self._metrics.refused(keeper.token.name, cause.code if isinstance(cause, LaneStartError) else 0)
        self._start_errors.setdefault(keeper.token.name, cause)
        if len(self._start_errors) == len(self._tokens) and not self._started.done():
            errors = list(self._start_errors.values())
            # What may heal is worth another start, and a token whose PIN was refused is not opened by it.
            self._started.set_exception(next((e for e in errors if not isinstance(e, PinRejected)), errors[0]))

    def _on_free(self) -> None:
        self._dispatcher.schedule()

    def _count_lanes(self) -> None:
        counts = {(name, state.value): 0 for name in self._tokens for state in LaneState}
        for keeper in self._keepers:
            counts[keeper.token.name, keeper.state.value] += 1
        self._metrics.count_lanes(
            counts,
            {token.name: token.state is not TokenState.UP for token in self._tokens.values()},
            {token.name: len(self._token_health(token).missing_keys) for token in self._tokens.values()},
        )


def _place(keeper: LaneKeeper) -> tuple[object, ...]:
    """Return what tells one physical token from another: its own description, its slot, where its module looks."""
    lane = keeper.lane
    return () if lane is None else (lane.token, lane.facts.slot_id, keeper.config.env)
