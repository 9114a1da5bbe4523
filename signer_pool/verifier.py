"""Verifies what lanes have signed: the urgent first, a slice at a time, so that the loop is never busy for long.

What has waited for `OVERDUE_S` goes before the urgent: there are at most two such batches for each lane, so this
costs little, and nothing starves behind a flood of revocations.

A batch of P-256 signatures costs 10 ms to verify. Done in one go, for every lane, that is what a revocation waited
for, and not the token. Whoever adds answers must hold back lanes that answer faster than can be verified
(`LaneKeeper.unverified`).
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable

from pkix.algorithms import verify_signature
from pkix.errors import SignatureMismatch
from signer_pool.backlog import OVERDUE_S, Item, Priority
from signer_pool.key_ring import KeyRing
from signer_pool.lane import Lane
from signer_pool.lane_keeper import LaneKeeper

SLICE_S = 0.001


class SignedBatch:
    """Signatures of one batch and the items they are for; `wrong` are those whose signature does not verify."""

    __slots__ = ("is_whole", "items", "keeper", "lane", "next", "signatures", "since", "wrong")

    def __init__(
        self, keeper: LaneKeeper, lane: Lane, items: list[Item], signatures: list[bytes], *, is_whole: bool
    ) -> None:
        self.keeper = keeper
        self.lane = lane
        self.items = items
        self.signatures = signatures
        self.is_whole = is_whole  # nothing of the batch was refused
        self.since = time.perf_counter()
        self.next = 0
        self.wrong: list[Item] = []


class Verifier:
    """Belongs to one loop. `on_verified` is called once for each answer, when all of it was looked at.

    Signatures that verify are delivered to their calls at once; `verify` is off in benchmarks alone.
    """

    def __init__(
        self,
        *,
        loop: asyncio.AbstractEventLoop,
        ring: KeyRing,
        on_verified: Callable[[SignedBatch], None],
        verify: bool,
    ) -> None:
        self._loop = loop
        self._ring = ring
        self._on_verified = on_verified
        self._verify = verify
        self._waiting: dict[Priority, deque[SignedBatch]] = {priority: deque() for priority in Priority}
        self._is_due = False

    def add(self, answer: SignedBatch) -> None:
        """Take an answer with at least one signature; verifies a slice of the most urgent work at once."""
        self._waiting[answer.items[0].call.priority].append(answer)
        self._work()

    def fail_all(self, error: Exception) -> None:
        """Fail the calls of everything that waits."""
        for answers in self._waiting.values():
            for answer in answers:
                for item in answer.items:
                    item.call.fail(error)
            answers.clear()

    def _run(self) -> None:
        self._is_due = False
        self._work()

    def _work(self) -> None:
        now = time.perf_counter()
        until = now + SLICE_S
        while (answers := self._next(now)) is not None:
            answer = answers[0]
            if not self._advance(answer, until):
                break
            answers.popleft()
            self._on_verified(answer)
        else:
            return
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._run)

    def _next(self, now: float) -> deque[SignedBatch] | None:
        """Find the queue that is first: of an overdue batch, else of the most urgent."""
        waiting = [answers for answers in self._waiting.values() if answers]
        oldest = min(waiting, key=lambda answers: answers[0].since, default=None)
        return oldest if oldest and now - oldest[0].since > OVERDUE_S else next(iter(waiting), None)

    def _advance(self, answer: SignedBatch, until: float) -> bool:
        """Verify up to the end of the slice; tell whether the answer is through."""
        call = answer.items[0].call
        public_key, algorithm = self._ring.public_key(call.key), call.algorithm
        while answer.next < len(answer.items):
            item, signature = answer.items[answer.next], answer.signatures[answer.next]
            answer.next += 1
            try:
                if self._verify:
                    verify_signature(public_key, item.tbs, signature, algorithm)
            except SignatureMismatch:
                answer.wrong.append(item)
            else:
                item.call.deliver(item.index, signature)
            if time.perf_counter() >= until:
                break
        return answer.next == len(answer.items)
