"""One certificate for one idempotency key, whatever the number of calls, their timing and our crashes."""

import asyncio
import dataclasses
import hmac
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from server.clock import Clock, epoch
from server.errors import IdempotencyConflict, KeyInUse, Overloaded
from server.issuance.order import IssuedCertificate, Order, issued_before
from server.issuance.records import IssuanceRecords
from server.metrics import AuthorityMetrics
from server.storage.schema import State

PATIENCE_S, POLL_S, RETRY_AFTER_S = 10.0, 0.05, 5
"""How long a call waits for another authority that has its key; how often it looks; what its caller is told."""

Issue = Callable[[Order], Awaitable[IssuedCertificate]]
Slot = tuple[str, str]


class IdempotencyKeys:
    """Calls with the same key join the one in flight; later ones are answered from the database.

    The work for a key is a task of its own: a caller who gives up does not end it, so that nobody can slip
    in a second certificate between the first caller's patience and the first certificate.
    """

    def __init__(self, records: IssuanceRecords, metrics: AuthorityMetrics, clock: Clock) -> None:
        self._records = records
        self._metrics = metrics
        self._clock = clock
        self._tasks = asyncio.TaskGroup()
        self._in_flight: dict[Slot, tuple[bytes, asyncio.Future[IssuedCertificate]]] = {}

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._tasks.__aexit__(kind, error, trace)

    async def once(self, order: Order, issue: Issue) -> IssuedCertificate:
        """Return the certificate of this key, issuing it if there is none yet.

        Raises `IdempotencyConflict` if the key was used with another request, and what `issue` raises.
        """
        key = order.idempotency_key
        if key is None:
            return await issue(order)
        slot = (order.client.name, key)
        running = self._in_flight.get(slot)
        if running is not None:
            fingerprint, future = running
            _require_same(order, fingerprint)
            self._metrics.idempotent_replays.inc()
            return dataclasses.replace(await asyncio.shield(future), replayed=True)
        future = asyncio.get_running_loop().create_future()
        self._in_flight[slot] = (order.fingerprint(), future)
        self._tasks.create_task(self._work(slot, order, issue, future))
        return await asyncio.shield(future)

    async def _work(
        self, slot: Slot, order: Order, issue: Issue, future: asyncio.Future[IssuedCertificate]
    ) -> None:
        try:
            future.set_result(await self._first_or_found(order, slot[1], issue))
        except Exception as error:
            future.set_exception(error)
            future.exception()  # retrieved: every caller may have gone
        finally:
            future.cancel()  # no effect once it has a result; else the callers learn that we stop
            del self._in_flight[slot]

    async def _first_or_found(self, order: Order, key: str, issue: Issue) -> IssuedCertificate:
        """Issue, unless the key has a certificate; while another authority works on it, wait for that one."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    try:
                        found = await self._from_database(order, key)
                        if found is not None:
                            return found
                        break
                    except KeyInUse:
                        await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise Overloaded(
                "another authority is still working on this Idempotency-Key", retry_after_s=RETRY_AFTER_S
            ) from None
        try:
            return await issue(order)
        except KeyInUse:  # it was first by a moment
            return await self._first_or_found(order, key, issue)

    async def _from_database(self, order: Order, key: str) -> IssuedCertificate | None:
        row = await self._records.find_key(order.client.name, key)
        if row is None:
            return None
        _require_same(order, row.request_sha256)
        if row.state != State.ISSUED:
            # An intent of ours that failed and could not be closed then: it is not in flight, close it now.
            # Or one of another authority, which may be at work on it: wait.
            if await self._records.abandon_serial(row.serial, epoch(self._clock())):
                return None
            raise KeyInUse
        self._metrics.idempotent_replays.inc()
        return issued_before(row)


def _require_same(order: Order, fingerprint: bytes) -> None:
    if not hmac.compare_digest(order.fingerprint(), fingerprint):
        raise IdempotencyConflict(
            "this idempotency key was used before with another request",
            field="Idempotency-Key",
            remedy="use a new key for a new request; repeat a request with its key unchanged",
        )
