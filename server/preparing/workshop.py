"""Bulk orders prepared on other cores: the authority's loop is kept for what only it can do.

Preparing is a third of what a certificate costs and needs nothing but the request. Orders are gathered and given
to processes, which start with the first of them. Until one is ready, and whenever none can answer, the authority
prepares them itself: a process that is gone costs time and nothing else. So does one that is confused: a result is
compared with its order, and is prepared anew here if it is another's.
"""

import datetime as dt
import hashlib
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from types import TracebackType
from typing import Self

from structlog.typing import FilteringBoundLogger

from pkix.certificate import PreparedCertificate
from pkix.csr import request_der
from pkix.errors import LintError
from pkix.issuer import Issuer
from pkix.lint import lint_fields
from pkix.names import SerialNumber, TbsDer
from pkix.profile import Profile
from pkix.unsigned import assemble
from server.clock import Clock, from_epoch
from server.errors import NotPermitted, Overloaded
from server.issuance.order import Order, PreparedOrder
from server.metrics import AuthorityMetrics
from server.preparing.frames import Begin, Made, Prepare, Prepared, Refused, Wanted
from server.preparing.preparer import Preparer
from server.preparing.refusals import raised
from server.preparing.worker import MODULE
from server.renewal.names import names_of
from server.workers.pool import PoolMetrics, PoolSettings, WorkerPool
from server.workers.process import WorkerProcess
from signer_pool.batcher import Batcher
from signer_pool.errors import PoolFull

_AT_ONCE = 32
"""Orders in a frame: some 10 ms of work, so that several processes share even a small batch."""
_AGE_S = 0.005
_DEADLINE_S = 10.0
_START_DEADLINE_S = 30.0


class NoWorkshop(Exception):
    """No process could answer. The authority prepares the orders itself."""


class Workshop:
    """Prepares orders of one issuer. An async context manager. `profile_text` is that of a profile's version."""

    def __init__(
        self,
        *,
        preparer: Preparer,
        issuer: Issuer,
        begin: Begin,
        profile_text: Callable[[Profile], str],
        processes: int,
        queue_limit: int,
        clock: Clock,
        metrics: AuthorityMetrics,
        logger: FilteringBoundLogger,
    ) -> None:
        self._preparer = preparer
        self._issuer = issuer
        self._profile_text = profile_text
        self._clock = clock
        self._prepared = metrics.orders_prepared
        self._pool: WorkerPool[WorkerProcess, Prepare, Prepared] = WorkerPool(
            "the workshop",
            PoolSettings(
                processes=processes,
                deadline_s=_DEADLINE_S,
                start_deadline_s=_START_DEADLINE_S,
                queue_limit=queue_limit,
                lazy=True,
            ),
            start=partial(WorkerProcess.start, MODULE, begin),
            ask=lambda process, request: process.ask(request, Prepared),
            refusal=NoWorkshop,
            metrics=PoolMetrics(
                ready=metrics.preparing_workers,
                restarts=metrics.preparing_worker_restarts,
                waiting=metrics.preparing_queue_depth,
            ),
            logger=logger,
        )
        self._batcher: Batcher[Order, PreparedOrder] = Batcher(
            self._prepare_some,
            size=_AT_ONCE,
            age_s=_AGE_S,
            in_flight=2 * processes,  # one at work, one under way
            queue_limit=queue_limit,
        )
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self._pool)
        await self._stack.enter_async_context(self._batcher)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(kind, error, trace)

    async def prepare(self, order: Order) -> PreparedOrder:
        """Do what `Preparer.prepare` does, and raise what it raises; `Overloaded` if too much waits."""
        if not self._pool.ready:
            self._pool.wanted()
            self._prepared.labels("authority").inc()
            return self._preparer.prepare(order, self._clock())
        try:
            waiting = self._batcher.submit(order, client=order.client.name)
        except PoolFull as error:
            raise Overloaded("too many requests are waiting to be prepared") from error
        return await waiting

    async def _prepare_some(self, orders: Sequence[Order]) -> list[PreparedOrder | Exception]:
        now = self._clock()
        try:
            answer = await self._pool.request(self._frame(orders, now))
        except NoWorkshop:
            return [self._here(order, now) for order in orders]
        if len(answer.results) != len(orders):
            return [self._here(order, now) for order in orders]
        return [self._taken(order, result, now) for order, result in zip(orders, answer.results, strict=True)]

    def _frame(self, orders: Sequence[Order], now: dt.datetime) -> Prepare:
        profiles = list(dict.fromkeys(order.profile.identity for order in orders))
        of_identity = {order.profile.identity: order.profile for order in orders}
        clients = list(dict.fromkeys(order.client for order in orders))
        return Prepare(
            now=now,
            profiles=[self._profile_text(of_identity[identity]) for identity in profiles],
            clients=clients,
            orders=[
                Wanted(
                    profile=profiles.index(order.profile.identity),
                    client=clients.index(order.client),
                    csr=order.csr,
                    lifetime_s=None if order.lifetime is None else int(order.lifetime.total_seconds()),
                    asked=order.asked,
                )
                for order in orders
            ],
        )

    def _taken(self, order: Order, made: Made | Refused, now: dt.datetime) -> PreparedOrder | Exception:
        """Take a result over: of a certificate only what was linted, and if it is the one for this order."""
        if made.fingerprint != order.fingerprint():
            return self._here(order, now)
        if isinstance(made, Refused):
            return raised(made) or self._here(order, now)
        try:
            prepared = self._read(order, made)
        except (ValueError, LintError, NotPermitted):
            return self._here(order, now)
        self._prepared.labels("workshop").inc()
        return prepared

    def _read(self, order: Order, made: Made) -> PreparedOrder:
        """Bind the result to its order: the request, its key, and names that this client may have.

        Raises `ValueError`, `LintError` or `NotPermitted` where it is another's. Cost: about 45 µs.
        """
        tbs = TbsDer(made.tbs)
        _require(hashlib.sha256(tbs).digest() == made.tbs_sha256)
        _require(made.profile == order.profile.identity)
        _require(made.csr_der == request_der(order.csr))
        names = names_of(assemble(tbs, self._issuer.algorithm, b""))
        order.client.require_names(names)
        certificate = PreparedCertificate(
            serial=SerialNumber(int.from_bytes(made.serial, "big")),
            profile=order.profile,
            tbs=tbs,
            tbs_sha256=made.tbs_sha256,
            spki_sha256=made.spki_sha256,
            subject=made.subject,
            names=names,
            not_before=from_epoch(made.not_before),
            not_after=from_epoch(made.not_after),
        )
        spki = lint_fields(certificate, self._issuer)
        _require(made.csr_der.find(spki) >= 0)  # else it is written in another way there: rare, and prepared here
        return PreparedOrder(order=order, certificate=certificate, csr_der=made.csr_der)

    def _here(self, order: Order, now: dt.datetime) -> PreparedOrder | Exception:
        self._prepared.labels("authority").inc()
        try:
            return self._preparer.prepare(order, now)
        except Exception as error:
            return error


def _require(condition: bool) -> None:
    if not condition:
        raise ValueError
