"""Compares *all* issued certificates in the database with the response store, and mends what differs.

It does not look at the refresher's own list (Let's Encrypt 2020: the job skipped rows it could not see).
It runs before the API accepts its first call, which finishes step 8 of issuing after a crash, and then
periodically.
"""

import asyncio
from collections.abc import Sequence

from sqlalchemy import select

from ocsp.store import MENDED_CLOCK_S, ResponseStore, Status, StoredResponse
from pkix.ocsp_response import HashName
from server.clock import epoch
from server.ground import Ground
from server.status.publisher import FAULTS, Answer, StatusPublisher, certificate_status
from server.storage.database import AnyRow
from server.storage.schema import certificates, ocsp_responses
from signer_pool.pool import Priority

CHUNK = 512
INTERVAL_S = 600.0
FAILED_INTERVAL_S = 10.0


class Reconciler:
    """Walks the certificates by row id, in chunks, so that memory stays bounded."""

    def __init__(
        self,
        *,
        publisher: StatusPublisher,
        store: ResponseStore,
        ground: Ground,
    ) -> None:
        self._publisher = publisher
        self.store = store
        self._database = ground.database
        self._clock = ground.clock
        self._metrics = ground.metrics
        self._logger = ground.logger
        self._leadership = ground.leadership

    async def run(self) -> None:
        """Compare and mend until cancelled."""
        pause = INTERVAL_S
        while True:
            await asyncio.sleep(pause)
            if not self._leadership.leads:
                continue
            try:
                await self.reconcile()
                pause = INTERVAL_S
            except FAULTS as error:
                self._metrics.ocsp_comparison_failures.inc()
                self._logger.error("comparison of responses with the database failed", error=str(error))
                pause = FAILED_INTERVAL_S

    async def reconcile(self) -> int:
        """Compare once; returns how many responses had to be signed anew."""
        repaired = 0
        last = 0
        while rows := await self._chunk(last):
            last = rows[-1].id
            wrong = [answer for row in rows for answer in await self._wrong(row)]
            await self._publisher.answer(wrong, Priority.NEW_OCSP)
            repaired += len(wrong)
        if repaired:
            self._metrics.ocsp_repaired.inc(repaired)
            self._logger.warning("published answers mended", responses=repaired)
        return repaired

    async def _chunk(self, after: int) -> Sequence[AnyRow]:
        c = certificates.c
        also_sha256 = (
            select(ocsp_responses.c.serial)
            .where(
                ocsp_responses.c.issuer == c.issuer,
                ocsp_responses.c.serial == c.serial,
                ocsp_responses.c.hash_name == "sha256",
            )
            .exists()
        )
        query = (
            select(c.id, c.serial, c.not_after, c.revoked_at, c.reason, also_sha256.label("also_sha256"))
            .where(
                c.issuer == self._publisher.issuer_label,
                c.state == "issued",
                c.not_after >= epoch(self._clock()),
                c.id > after,
            )
            .order_by(c.id)
            .limit(CHUNK)
        )
        async with self._database.read() as connection:
            return (await connection.execute(query)).all()

    async def _wrong(self, row: AnyRow) -> list[Answer]:
        """Return the answers for one certificate that the store lacks, or has wrong."""
        status = certificate_status(int(row.serial, 16), row.revoked_at, row.reason)
        wanted = Status.GOOD if status.revoked_at is None else Status.REVOKED
        names: tuple[HashName, ...] = ("sha1", "sha256") if row.also_sha256 else ("sha1",)
        answers = []
        for name in names:
            stored = await self.store.get(self._publisher.presigner.key(status.serial, name))
            if not self._right(stored, wanted):
                answers.append(Answer(status=status, hash_name=name, not_after=row.not_after))
        return answers

    def _right(self, stored: StoredResponse | None, wanted: Status) -> bool:
        now = epoch(self._clock())
        if stored is None or stored.status is not wanted:
            return False
        # One from the future was made while the clock was wrong: nobody takes it (RFC 6960 §4.2.2.1).
        return stored.next_update > now and stored.this_update - now <= MENDED_CLOCK_S
