"""Makes the responder say what the database says: sign, publish, and write down when it is due again.

Order matters. The store is written before the schedule, so a crash between the two repeats work and never
forgets it. The store itself never lets "good" replace "revoked" (see ocsp/store.py), so a refresh that read
the database just before a revocation does no harm.
"""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select

from ocsp.errors import OcspError
from ocsp.presigner import Presigner, SignedResponse
from ocsp.store import MENDED_CLOCK_S, ResponseStore, Status, StoredResponse
from pkix.crl import RevocationReason
from pkix.errors import PkixError
from pkix.names import SerialNumber, serial_hex
from pkix.ocsp_response import CertificateStatus, HashName
from server.clock import epoch, from_epoch
from server.errors import ServerError
from server.ground import Ground
from server.milestones import Step
from server.status import schedule
from server.storage.schema import certificates
from signer_pool.errors import SignerPoolError
from signer_pool.pool import Priority

FAULTS = (ServerError, SignerPoolError, OcspError, PkixError)
"""What may go wrong while answers are made: work for another try, never the end of a loop. (`PkixError`: an answer
that does not verify when it is read back.)"""
HASH_NAMES: tuple[HashName, ...] = ("sha1", "sha256")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One response to be signed: for which certificate, under which CertID hash."""

    status: CertificateStatus
    hash_name: HashName
    not_after: int


class StatusPublisher:
    """Publishes responses for the certificates of one issuer."""

    def __init__(
        self,
        *,
        issuer_label: str,
        presigner: Presigner,
        store: ResponseStore,
        ground: Ground,
    ) -> None:
        self.issuer_label = issuer_label
        self.presigner = presigner
        self._store = store
        self._database = ground.database
        self._clock = ground.clock
        self._reached = ground.reached

    async def answer(
        self, answers: Sequence[Answer], priority: Priority, *, deadline_s: float = 30.0
    ) -> list[SignedResponse]:
        """Sign, publish and schedule; raises the pool's, the store's or the database's errors."""
        if not answers:
            return []
        prepared = [self.presigner.prepare(a.status, a.hash_name) for a in answers]
        signed = await self.presigner.sign(prepared, priority, deadline_s=deadline_s)
        self._reached(Step.ANSWERS_SIGNED)
        await self.publish(signed)
        self._reached(Step.ANSWERS_PUBLISHED)
        rows = [
            schedule.schedule_row(self.issuer_label, one, a.not_after)
            for one, a in zip(signed, answers, strict=True)
        ]
        good = [serial_hex(a.status.serial) for a in answers if a.status.revoked_at is None]
        async with self._database.write() as connection:
            await schedule.record(connection, rows)
            # A revocation came between our reading and now: the store keeps its answer, and it stays due.
            await schedule.hurry(connection, self.issuer_label, good, if_revoked=True)
            self._reached(Step.ANSWERS_BEFORE_COMMIT)
        self._reached(Step.ANSWERS_SCHEDULED)
        return signed

    async def publish(self, signed: Sequence[SignedResponse]) -> None:
        """Put verified responses into the store, where every worker sees them at once.

        If the store fails, everything is made due at once, so that the refresher publishes it when the
        store works again; the error is raised all the same.
        """
        try:
            await self._store.publish([(one.key, one.stored) for one in signed])
        except OcspError:
            serials = [serial_hex(one.prepared.status.serial) for one in signed]
            async with self._database.write() as connection:
                await schedule.hurry(connection, self.issuer_label, serials)
            raise

    async def withdraw_good(self, serial: SerialNumber) -> None:
        """Take "good" out of the store at once, with or without an HSM; tryLater until "revoked" is there."""
        now = epoch(self._clock())
        tombstone = StoredResponse(status=Status.REVOCATION_PENDING, this_update=now, next_update=now, der=b"")
        await self._store.publish([(self.presigner.key(serial, name), tombstone) for name in HASH_NAMES])

    async def ensure_published(self, serial: SerialNumber, hash_name: HashName = "sha1") -> bool:
        """Sign and publish the answer unless a live one is there; False if there is no such certificate."""
        if await self.has_live_answer(serial, hash_name):
            return True
        found = await self.status_of(serial)
        if found is None:
            return False
        status, not_after = found
        await self.answer([Answer(status=status, hash_name=hash_name, not_after=not_after)], Priority.NEW_OCSP)
        return True

    async def has_live_answer(self, serial: SerialNumber, hash_name: HashName) -> bool:
        """Say whether the store has a signed response before its nextUpdate, and not from the future."""
        stored = await self._store.get(self.presigner.key(serial, hash_name))
        if stored is None or not stored.der:
            return False
        now = epoch(self._clock())
        return stored.next_update > now and stored.this_update - now <= MENDED_CLOCK_S

    async def stored_der(self, serial: SerialNumber, hash_name: HashName) -> bytes:
        """Return the response in the store, which is the one that may be given out; empty if none."""
        stored = await self._store.get(self.presigner.key(serial, hash_name))
        return b"" if stored is None else stored.der

    async def status_of(self, serial: SerialNumber) -> tuple[CertificateStatus, int] | None:
        """Return status and notAfter of an issued certificate; None if it was never issued."""
        c = certificates.c
        query = select(c.revoked_at, c.reason, c.not_after).where(
            c.issuer == self.issuer_label, c.serial == serial_hex(serial), c.state == "issued"
        )
        async with self._database.read() as connection:
            row = (await connection.execute(query)).one_or_none()
        if row is None:
            return None
        return certificate_status(serial, row.revoked_at, row.reason), row.not_after


def certificate_status(serial: int, revoked_at: int | None, reason: str | None) -> CertificateStatus:
    """Read a row's revocation columns."""
    moment: dt.datetime | None = None if revoked_at is None else from_epoch(revoked_at)
    return CertificateStatus(
        serial=SerialNumber(serial),
        revoked_at=moment,
        reason=None if reason is None else RevocationReason(reason),
    )
