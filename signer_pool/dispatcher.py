"""Takes batches from the backlog to the lanes, and verified signatures from the lanes to the calls.

Invariants: a lane has at most two batches in its pipe; an item is in the backlog or in one batch; nothing
reaches a call that was not verified with the public half of the key it asked for.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from pkix.algorithms import SignatureAlgorithm
from signer_pool.backlog import Backlog, Call, Item, Priority
from signer_pool.ckr import USER_NOT_LOGGED_IN, Action
from signer_pool.errors import PoolClosed, PoolUnavailable, SigningFailed, Unsignable
from signer_pool.key_ring import KeyRing
from signer_pool.lane import Lane, Refusal, Signed
from signer_pool.lane_keeper import WRONG_SIGNATURE, LaneKeeper, Logger
from signer_pool.metrics import PoolMetrics
from signer_pool.verifier import SignedBatch, Verifier

BATCHES_PER_LANE = 2
MAX_REFUSALS = 3
MAX_LOSSES = 4


class Dispatcher:
    """Belongs to one pool; all of it runs in the pool's loop. `verify` is off in benchmarks alone."""

    def __init__(
        self,
        *,
        loop: asyncio.AbstractEventLoop,
        backlog: Backlog,
        ring: KeyRing,
        keepers: Sequence[LaneKeeper],
        on_token_down: Callable[[LaneKeeper, Refusal], None],
        metrics: PoolMetrics,
        logger: Logger,
        verify: bool,
    ) -> None:
        self._loop = loop
        self._backlog = backlog
        self._keepers = keepers
        self._on_token_down = on_token_down
        self._metrics = metrics
        self._logger = logger
        self._verifier = Verifier(loop=loop, ring=ring, on_verified=self._on_verified, verify=verify)
        self._timer: asyncio.TimerHandle | None = None
        self._is_due = False
        self._closed: Exception | None = None

    def submit(
        self,
        key: str,
        tbs_list: Sequence[bytes],
        priority: Priority,
        *,
        algorithm: SignatureAlgorithm,
        client: str,
        began: float,
        deadline_s: float,
    ) -> asyncio.Future[list[bytes]]:
        """Queue one call and return its future, which is settled `deadline_s` after `began`, the loop's time.

        Raises `PoolFull`, and `PoolClosed` if the pool was closed meanwhile.
        """
        if self._closed is not None:
            raise PoolClosed(str(self._closed))
        now = self._loop.time()
        future: asyncio.Future[list[bytes]] = self._loop.create_future()
        call = Call(
            future,
            key=key,
            algorithm=algorithm,
            count=len(tbs_list),
            priority=priority,
            client=client,
            queued_at=now,
        )
        self._backlog.accept([Item(call, index, tbs) for index, tbs in enumerate(tbs_list)])
        expiry = self._loop.call_at(began + deadline_s, self._expire, call, deadline_s)

        def settled(_: asyncio.Future[list[bytes]]) -> None:
            expiry.cancel()
            self._backlog.forget(call)

        future.add_done_callback(settled)
        self.schedule()
        return future

    def schedule(self) -> None:
        """Dispatch at the end of the loop's iteration, so that calls made in one iteration go together."""
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._dispatch)

    def judge(self, keeper: LaneKeeper, lane: Lane, refusals: Mapping[int, Refusal]) -> None:
        """Do to lane and token what the refusals ask for."""
        for refusal in refusals.values():
            self._metrics.refused(keeper.token.name, refusal.code)
            self._logger.error(
                "token refused to sign",
                lane=keeper.name,
                token=keeper.token.name,
                action=refusal.action.value,
                cause=refusal.message,
            )
            if refusal.action in {Action.TOKEN_DOWN, Action.NEVER}:
                self._on_token_down(keeper, refusal)
            elif refusal.action is not Action.CALLER:
                keeper.dismiss(lane, "refused")

    def close(self, error: Exception) -> None:
        """Send nothing more and fail every call that waits."""
        self._closed = error
        self._cancel_timer()
        self._backlog.fail_all(error)
        self._verifier.fail_all(error)

    def _dispatch(self) -> None:
        self._is_due = False
        self._cancel_timer()
        if self._closed is not None:
            return
        # First places before second places: no lane idles while another one has two batches.
        for place in range(BATCHES_PER_LANE):
            for keeper in self._keepers:
                lane = keeper.lane
                if lane is not None and lane.in_flight == place and not lane.is_asked:
                    self._fill(keeper, lane, place)

    def _fill(self, keeper: LaneKeeper, lane: Lane, place: int) -> None:
        """Send one batch: to an idle lane what there is, to a busy one what is large or old enough.

        What is not verified yet takes up places too, but for urgent work: a lane that answers faster than we can
        verify needs no second batch in its pipe, where a revocation would have to wait for it.
        """
        pace, now = keeper.pace, self._loop.time()
        least = Priority.REFRESH if place + keeper.unverified < BATCHES_PER_LANE else Priority.INTERACTIVE
        if place:
            if keeper.in_doubt:
                return
            ripe_at = self._backlog.ripe_at(keeper.keys, pace.size, least)
            if ripe_at is None:
                return
            if ripe_at > now:
                if self._timer is None:
                    self._timer = self._loop.call_at(ripe_at, self._dispatch)
                return
        batch = self._backlog.take(keeper.keys, pace.size, now, partial(self._suits, keeper), least)
        if not batch:
            return
        call = batch[0].call
        keeper.batches += 1
        keeper.in_doubt = bool(batch[0].losses)
        self._metrics.sent(call.priority, [now - item.call.queued_at for item in batch])
        lane.send(
            call.key,
            call.algorithm.name,
            [item.tbs for item in batch],
            partial(self._on_reply, keeper, lane, batch),
            deadline_s=pace.deadline_s((call.key, call.algorithm.name), len(batch)),
        )

    def _suits(self, keeper: LaneKeeper, item: Item) -> bool:
        """Leave an item that this lane's token has refused to a token that has refused it less often."""
        mine = item.refusals.get(keeper.token.name, 0) if item.refusals else 0
        return not mine or not any(
            other.lane is not None
            and item.call.key in other.keys
            and (item.refusals or {}).get(other.token.name, 0) < mine
            for other in self._keepers
        )

    def _on_reply(self, keeper: LaneKeeper, lane: Lane, batch: list[Item], reply: Signed | None) -> None:
        if reply is None:
            self._on_lost(keeper, lane, batch)
            return
        keeper.in_doubt = False
        call = batch[0].call
        signed: Sequence[int] = range(len(batch))
        if reply.refusals:
            signed = [index for index in signed if self._is_signed(reply, index)]
        self._metrics.answered(keeper.token.name, call.priority, reply.service_s, reply.healed)
        if len(signed) == len(batch):
            keeper.pace.measured((call.key, call.algorithm.name), len(batch), reply.service_s)
        else:
            again = self._take_refusals(keeper, batch, reply)
            self.judge(keeper, lane, reply.refusals)
            self._queue_again(again)
        if signed:
            self._take_signatures(keeper, lane, batch, reply, signed)

    @staticmethod
    def _is_signed(reply: Signed, index: int) -> bool:
        """Tell whether there is a signature to verify. An empty one is a wrong one, unless it was not tried."""
        return index not in reply.refusals and bool(reply.signatures[index] or not reply.spoils_lane)

    def _take_signatures(
        self, keeper: LaneKeeper, lane: Lane, batch: list[Item], reply: Signed, signed: Sequence[int]
    ) -> None:
        if self._closed is not None:
            self._queue_again(batch)
            return
        items = [batch[index] for index in signed]
        signatures = [reply.signatures[index] for index in signed]
        keeper.unverified += 1
        self._dispatch()  # the lane works on while we verify
        self._verifier.add(SignedBatch(keeper, lane, items, signatures, is_whole=len(items) == len(batch)))

    def _on_verified(self, answer: SignedBatch) -> None:
        keeper, wrong = answer.keeper, answer.wrong
        key = answer.items[0].call.key
        keeper.unverified -= 1
        self._metrics.delivered(key, verified=len(answer.items) - len(wrong), wrong=len(wrong), refused=0)
        if wrong:
            # Broken hardware, or a fault attack on the key: whatever else this lane says is not believed.
            self._logger.error(
                "wrong signature: the lane is quarantined", lane=keeper.name, token=keeper.token.name, key=key
            )
            keeper.dismiss(answer.lane, WRONG_SIGNATURE)
            for item in wrong:
                self._refused(keeper, item, "the signature does not verify")
            self._metrics.retried("refused", len(wrong))
            self._queue_again(wrong)
        elif answer.is_whole:
            keeper.proved_good()
        self.schedule()  # its lane may have been held back

    def _on_lost(self, keeper: LaneKeeper, lane: Lane, batch: list[Item]) -> None:
        """Take the items back. Those that the lane was working at may be why it died: they travel alone now."""
        if keeper.lane is lane:
            keeper.set_aside()
        # The newest come back first, so the last one is what the lane was working at.
        if lane is not keeper.dismissed and not lane.in_flight:
            for item in batch:
                self._blame(item, alone=len(batch) == 1)
            keeper.pace.forget((batch[0].call.key, batch[0].call.algorithm.name))
        self._metrics.retried("lane_lost", len(batch))
        self._queue_again(batch)

    @staticmethod
    def _blame(item: Item, *, alone: bool) -> None:
        item.losses += 1
        if alone and item.losses >= MAX_LOSSES:
            item.call.fail(
                SigningFailed(f"key {item.call.key!r}: {item.losses} lanes were lost over one signature")
            )

    def _take_refusals(self, keeper: LaneKeeper, batch: list[Item], reply: Signed) -> list[Item]:
        """Deal with what has no signature and return the items to try again."""
        again: list[Item] = []
        for index, item in enumerate(batch):
            if self._is_signed(reply, index):
                continue
            refusal = reply.refusals.get(index)
            if refusal is not None and refusal.action is Action.CALLER:
                item.call.fail(Unsignable(f"key {item.call.key!r}: {refusal.message}"))
                continue
            # A login that ended with its session says nothing about the item; a new process logs in.
            if refusal and refusal.action is Action.REPLACE and refusal.code != USER_NOT_LOGGED_IN:
                self._refused(keeper, item, refusal.message)
            again.append(item)
        self._metrics.delivered(batch[0].call.key, verified=0, wrong=0, refused=len(reply.refusals))
        if again and self._closed is None:
            self._metrics.retried("refused", len(again))
        return again

    def _refused(self, keeper: LaneKeeper, item: Item, reason: str) -> None:
        """Count a refusal; the call fails when every token that could sign has refused, one of them often."""
        refusals = item.refusals = item.refusals or {}
        refusals[keeper.token.name] = refusals.get(keeper.token.name, 0) + 1
        able = {k.token.name for k in self._keepers if k.token.may_have(item.call.key)}
        if max(refusals.values()) >= MAX_REFUSALS and able <= refusals.keys():
            item.call.fail(SigningFailed(f"key {item.call.key!r}: {reason}, {MAX_REFUSALS} times"))

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
