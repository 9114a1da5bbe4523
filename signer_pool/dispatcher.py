"""Takes batches from the backlog to the lanes, and verified signatures from the lanes to the calls.

Invariants: a lane has at most two batches in its pipe; an item is in the backlog or in one batch; nothing
reaches a call that was not verified with the public half of the key it asked for.
"""

import asyncio
from collections.abc import Sequence

from pkix.algorithms import verify_signature
from pkix.errors import SignatureMismatch
from signer_pool.backlog import Backlog, Call, Item, Priority
from signer_pool.errors import PoolUnavailable, SigningFailed
from signer_pool.key_ring import KeyRing
from signer_pool.lane import Lane, Signed
from signer_pool.lane_keeper import LaneKeeper, Logger
from signer_pool.metrics import PoolMetrics

BATCHES_PER_LANE = 2
MAX_REFUSALS = 3


class Dispatcher:
    """Belongs to one pool; all of it runs in the pool's loop."""

    def __init__(
        self,
        *,
        loop: asyncio.AbstractEventLoop,
        backlog: Backlog,
        ring: KeyRing,
        keepers: Sequence[LaneKeeper],
        metrics: PoolMetrics,
        logger: Logger,
    ) -> None:
        self._loop = loop
        self._backlog = backlog
        self._ring = ring
        self._keepers = keepers
        self._metrics = metrics
        self._logger = logger
        self._wait_s = [metrics.wait_s[priority.name.lower()] for priority in Priority]
        self._timer: asyncio.TimerHandle | None = None
        self._is_due = False
        self._closed: Exception | None = None

    def submit(
        self, key: str, tbs_list: Sequence[bytes], priority: Priority, deadline_s: float
    ) -> asyncio.Future[list[bytes]]:
        """Queue one call and return its future, which is settled by the deadline; raises `PoolFull`."""
        now = self._loop.time()
        future: asyncio.Future[list[bytes]] = self._loop.create_future()
        call = Call(future, key=key, count=len(tbs_list), priority=priority, queued_at=now)
        self._backlog.accept([Item(call, index, tbs) for index, tbs in enumerate(tbs_list)])
        expiry = self._loop.call_at(now + deadline_s, self._expire, call, deadline_s)
        future.add_done_callback(lambda _: expiry.cancel())
        self.schedule()
        return future

    def schedule(self) -> None:
        """Dispatch at the end of the loop's iteration, so that calls made in one iteration go together."""
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._dispatch)

    def close(self, error: Exception) -> None:
        """Send nothing more and fail every call that waits."""
        self._closed = error
        self._cancel_timer()
        self._backlog.fail_all(error)

    def _dispatch(self) -> None:
        self._is_due = False
        self._cancel_timer()
        if self._closed is not None or not len(self._backlog):
            return
        # First places before second places: no lane idles while another one has two batches.
        for place in range(BATCHES_PER_LANE):
            for keeper in self._keepers:
                lane = keeper.lane
                if lane is not None and lane.in_flight == place:
                    self._fill(keeper, lane, at_once=place == 0)

    def _fill(self, keeper: LaneKeeper, lane: Lane, *, at_once: bool) -> None:
        """Send one batch: to an idle lane what there is, to a busy one what is large or old enough."""
        if not at_once:
            ripe_at = self._backlog.ripe_at(keeper.keys)
            if ripe_at is None:
                return
            if ripe_at > self._loop.time():
                if self._timer is None:
                    self._timer = self._loop.call_at(ripe_at, self._dispatch)
                return
        batch = self._backlog.take(keeper.keys)
        if not batch:
            return
        now = self._loop.time()
        observe = self._wait_s[batch[0].call.priority].observe
        for item in batch:
            observe(now - item.call.queued_at)
        self._metrics.batch_size.observe(len(batch))
        lane.send(
            batch[0].call.key,
            [item.tbs for item in batch],
            lambda reply: self._on_reply(keeper, lane, batch, reply),
        )

    def _on_reply(self, keeper: LaneKeeper, lane: Lane, batch: list[Item], reply: Signed | None) -> None:
        if reply is None:
            if keeper.lane is lane:
                keeper.set_aside()
            self._queue_again(batch)
            return
        self._metrics.service_s.observe(reply.service_s)
        # The lane first: it works on while we verify.
        self._dispatch()
        refused = self._deliver(batch, reply)
        if not refused:
            keeper.proved_good()
            return
        # Broken hardware, a fault attack, a session gone stale: the next one may be no better. (Issue 3
        # will tell them apart by their CKR code; until then the lane is replaced.)
        self._logger.error("signatures refused or wrong", lane=keeper.name, count=len(refused))
        if keeper.lane is lane:
            keeper.set_aside()
        lane.kill("refused" if reply.errors else "wrong_signature")
        self._queue_again(refused)

    def _deliver(self, batch: list[Item], reply: Signed) -> list[Item]:
        """Hand out what verifies and return the items to try again."""
        key = batch[0].call.key
        public_key = self._ring.public_key(key)
        again: list[Item] = []
        for index, (item, signature) in enumerate(zip(batch, reply.signatures, strict=True)):
            reason = reply.errors.get(index)
            if reason is None:
                try:
                    verify_signature(public_key, item.tbs, signature)
                except SignatureMismatch:
                    reason = "the signature does not verify"
                    self._metrics.rejected.inc()
                    self._metrics.failed(key, "wrong")
                else:
                    item.call.deliver(item.index, signature)
                    continue
            else:
                self._metrics.failed(key, "refused")
            item.refusals += 1
            if item.refusals >= MAX_REFUSALS:
                item.call.fail(SigningFailed(f"key {key!r}: {reason}, {MAX_REFUSALS} times"))
            again.append(item)
        self._metrics.signed(key, len(batch) - len(again))
        return again

    def _queue_again(self, items: list[Item]) -> None:
        if self._closed is not None:
            for item in items:
                item.call.fail(self._closed)
            return
        self._backlog.give_back(items)
        self.schedule()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self, call: Call, deadline_s: float) -> None:
        call.fail(PoolUnavailable(f"no signature within {deadline_s:g} s; the pool's health says why"))
