"""The issuing engine. `issue` and `_issue_batch` read as the procedure, step by step.

1-3 happen for each call: authorise, parse and prove, prepare and lint. 4-8 happen for a micro-batch of them:
intent, sign, assemble and compare, issued, publish. Nothing is signed before its intent is durable (4), and
nothing is released before it is durable as issued (7) and answered for (8).
"""

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Protocol, Self

from ocsp.presigner import SignedResponse
from pkix.certificate import PreparedCertificate, assemble_certificate
from pkix.issuer import Issuer
from pkix.lint import check_released
from pkix.names import SerialNumber
from pkix.ocsp_response import CertificateStatus
from server.clock import epoch
from server.config import IssuanceSection
from server.errors import CommitInDoubt, NotPermitted, Overloaded, QuotaExhausted, ServerError
from server.ground import Ground
from server.issuance.admission import Check
from server.issuance.idempotency import IdempotencyKeys
from server.issuance.order import IssuedCertificate, Order, PreparedOrder
from server.issuance.records import Finished, IssuanceRecords
from server.milestones import Step
from server.preparing.preparer import Preparer
from server.preparing.workshop import Workshop
from server.status import schedule
from server.status.publisher import StatusPublisher
from signer_pool.batcher import Batcher
from signer_pool.errors import PoolFull
from signer_pool.pool import Priority, SignerPool

LEFT_OPEN_S = 5.0


class Linter(Protocol):
    """Another opinion on a certificate that is about to be signed."""

    async def check(self, prepared: PreparedCertificate, issuer: Issuer, *, bulk: bool = False) -> None:
        """Return if it may be signed; raises `LintError`, `LintUnavailable`."""
        ...


class IssuanceService:
    """Issues certificates under one CA. An async context manager: leaving it drains the batches."""

    def __init__(
        self,
        *,
        issuer: Issuer,
        issuer_label: str,
        key_label: str,
        pool: SignerPool,
        publisher: StatusPublisher,
        settings: IssuanceSection,
        weights: Mapping[str, int],
        preparer: Preparer,
        workshop: Workshop | None,
        linter: Linter,
        checks: Sequence[Check],
        ground: Ground,
    ) -> None:
        self._issuer = issuer
        self._key_label = key_label
        self._pool = pool
        self._publisher = publisher
        self._preparer = preparer
        self._workshop = workshop
        self._linter = linter
        self._sign_deadline_s = settings.sign_deadline_s
        self._clock = ground.clock
        self._metrics = ground.metrics
        self._logger = ground.logger
        self._reached = ground.reached
        self._records = IssuanceRecords(ground.database, issuer_label, checks, ground.authority, ground.reached)
        self._keys = IdempotencyKeys(self._records, ground.metrics, ground.clock)
        make = partial(
            Batcher[PreparedOrder, IssuedCertificate],
            size=settings.batch_size,
            age_s=settings.batch_age_ms / 1000,
            in_flight=settings.batches_in_flight,
            queue_limit=settings.queue_limit,
            weights=weights,
        )
        self._left_open: list[PreparedOrder] = []
        # Two queues, so that nobody who waits for an answer stands behind a bureau's whole list.
        self._interactive = make(partial(self._issue_batch, priority=Priority.INTERACTIVE))
        self._bulk = make(partial(self._issue_batch, priority=Priority.BULK))

    async def issue(self, order: Order) -> IssuedCertificate:
        """Issue one certificate; when this returns it is durable and OCSP says "good".

        Raises `RequesterError` or `RequestRefused` (the caller can mend it), `Overloaded`, `StorageError`
        or `SignerPoolError` (nothing was released; the same call may be repeated).
        """
        # Step 1: authorise (the caller is authenticated), and answer a repeated call from its first one.
        try:
            order.client.require_profile(order.profile.name)
            issued = await self._keys.once(order, self._issue_new)
        except (NotPermitted, QuotaExhausted) as error:
            self._metrics.client_refusals.labels(order.client.name, error.limit).inc()
            raise
        if issued.replayed:
            await self.ensure_answered(issued.serial)
        return issued

    async def ensure_answered(self, serial: SerialNumber) -> None:
        """See that OCSP knows a certificate that a fault after step 7 may have left without its answer (step 8).

        Whoever tells of a certificate that `issue` has not returned asks for this first. Raises as `issue` does.
        """
        await self._publisher.ensure_published(serial)

    async def prepare(self, order: Order) -> PreparedOrder:
        """Do steps 2 and 3: everything that can refuse the order, before anything is recorded or signed.

        Raises what `issue` raises of the requester's making; `LintUnavailable`, `LintError`.
        """
        if order.row is not None and self._workshop is not None:
            prepared = await self._workshop.prepare(order)
        else:
            prepared = self._preparer.prepare(order, self._clock())
        await self._linter.check(prepared.certificate, self._issuer, bulk=order.row is not None)
        return prepared

    async def _issue_new(self, order: Order) -> IssuedCertificate:
        prepared = await self.prepare(order)
        batcher = self._interactive if order.row is None else self._bulk
        try:
            waiting = batcher.submit(prepared, client=order.client.name)
        except PoolFull as error:
            raise Overloaded("too many requests are waiting to be issued") from error
        return await waiting

    async def _issue_batch(
        self, batch: Sequence[PreparedOrder], *, priority: Priority
    ) -> list[IssuedCertificate | Exception]:
        self._metrics.issuance_batch_size.observe(len(batch))
        with self._metrics.issuance_batch_seconds.time():
            # Step 4: one transaction; from here on the serials exist, whatever happens. An order that it
            # refuses fails alone.
            try:
                refused = await self._records.record_intents(batch, epoch(self._clock()))
            except CommitInDoubt:
                await self._abandon(batch)
                raise
            admitted = [prepared for index, prepared in enumerate(batch) if index not in refused]
            issued = iter(await self._issue_recorded(admitted, priority) if admitted else [])
        return [refused[index] if index in refused else next(issued) for index in range(len(batch))]

    async def _issue_recorded(self, batch: Sequence[PreparedOrder], priority: Priority) -> list[IssuedCertificate]:
        self._reached(Step.INTENTS_DURABLE)
        try:
            # Step 5: sign the certificates, then their OCSP responses.
            due = asyncio.get_running_loop().time() + self._sign_deadline_s
            signatures = await self._pool.sign_many(
                self._key_label,
                [p.certificate.tbs for p in batch],
                priority,
                algorithm=self._issuer.algorithm.name,
                deadline_s=self._sign_deadline_s,
            )
            self._reached(Step.CERTIFICATES_SIGNED)
            responses = await self._sign_responses(batch, due - asyncio.get_running_loop().time())
            self._reached(Step.RESPONSES_SIGNED)
            # Step 6: assemble, and compare with what was linted (the pool has verified the signatures).
            finished = [
                self._finish(p, signature, response)
                for p, signature, response in zip(batch, signatures, responses, strict=True)
            ]
            self._reached(Step.ASSEMBLED)
            # Step 7: one transaction; from here on the certificates are issued.
            await self._records.record_issued(finished, epoch(self._clock()))
            self._reached(Step.ISSUED_DURABLE)
        except BaseException:
            self._metrics.issuance_failed.inc()
            await self._abandon(batch)
            raise
        # Step 8: publish the answers, and only then answer the callers.
        await self._publisher.publish(responses)
        self._reached(Step.PUBLISHED)
        for p in batch:
            self._metrics.certificates_issued.labels(p.certificate.profile.identity).inc()
        self._reached(Step.ANSWERING)
        return [_issued(f) for f in finished]

    async def _sign_responses(self, batch: Sequence[PreparedOrder], deadline_s: float) -> list[SignedResponse]:
        presigner = self._publisher.presigner
        prepared = [presigner.prepare(CertificateStatus(serial=p.certificate.serial), "sha1") for p in batch]
        return await presigner.sign(prepared, Priority.NEW_OCSP, deadline_s=deadline_s)

    def _finish(self, prepared: PreparedOrder, signature: bytes, response: SignedResponse) -> Finished:
        certificate_der = assemble_certificate(prepared.certificate, self._issuer, signature)
        check_released(prepared.certificate, certificate_der)
        row = schedule.schedule_row(self._publisher.issuer_label, response, epoch(prepared.certificate.not_after))
        return Finished(prepared=prepared, certificate_der=certificate_der, ocsp_row=row)

    async def _abandon(self, batch: Sequence[PreparedOrder]) -> None:
        """Close the intents of a failed batch. If even that fails, `run` or the next start does it."""
        try:
            await self._records.abandon(batch, epoch(self._clock()))
        except ServerError as error:
            self._logger.error("intents stay open for now", error=str(error), intents=len(batch))
            self._left_open += batch
        else:
            self._metrics.intents_abandoned.inc(len(batch))
            self._reached(Step.ABANDONED)

    async def run(self) -> None:
        """Close what could not be closed when it failed, until cancelled."""
        while True:
            await asyncio.sleep(LEFT_OPEN_S)
            await self.close_left_open()

    async def close_left_open(self) -> None:
        """Try once to close what could not be closed when it failed."""
        left_open, self._left_open = self._left_open, []
        if left_open:
            await self._abandon(left_open)

    async def recover(self) -> None:
        """Close what a crash left open; call before the first `issue`. Raises `StorageError`."""
        left_over = await self._records.abandon_left_over(epoch(self._clock()))
        if left_over:
            self._metrics.intents_abandoned.inc(left_over)
            self._logger.warning("closed intents that a crash had left open", intents=left_over)

    async def __aenter__(self) -> Self:
        await self._keys.__aenter__()
        await self._interactive.__aenter__()
        await self._bulk.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._bulk.__aexit__(kind, error, trace)
        await self._interactive.__aexit__(kind, error, trace)
        await self._keys.__aexit__(kind, error, trace)


def _issued(finished: Finished) -> IssuedCertificate:
    certificate = finished.prepared.certificate
    return IssuedCertificate(
        serial=certificate.serial,
        certificate_der=finished.certificate_der,
        profile=certificate.profile.identity,
        subject=certificate.subject,
        dns_names=certificate.dns_names,
        not_before=certificate.not_before,
        not_after=certificate.not_after,
    )
