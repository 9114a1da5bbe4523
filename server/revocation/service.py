"""Revocation: "good" is gone before the call returns, "revoked" is there as soon as a key can sign it."""

from dataclasses import dataclass

from sqlalchemy import select, update

from pkix.crl import RevocationReason
from pkix.names import SerialNumber, serial_hex
from server.audit.log import AuditEntry, append
from server.clock import epoch
from server.errors import Conflict, NotFound
from server.ground import Ground
from server.milestones import Step
from server.revocation.crl_publisher import CrlPublisher
from server.status import schedule
from server.status.publisher import FAULTS, HASH_NAMES, Answer, StatusPublisher, certificate_status
from server.storage.key_locks import hold_keys
from server.storage.schema import State, certificates
from signer_pool.pool import Priority

SIGN_DEADLINE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation:
    """A revocation that is durable. `answer_published`: the responder says "revoked", not yet: tryLater."""

    serial: SerialNumber
    revoked_at: int
    reason: RevocationReason
    answer_published: bool


class RevocationService:
    """Revokes certificates of one issuer, for ever."""

    def __init__(
        self,
        *,
        publisher: StatusPublisher,
        crl_publisher: CrlPublisher,
        ground: Ground,
    ) -> None:
        self._publisher = publisher
        self._crl_publisher = crl_publisher
        self._database = ground.database
        self._clock = ground.clock
        self._metrics = ground.metrics
        self._logger = ground.logger
        self._reached = ground.reached

    async def revoke(
        self, serial: SerialNumber, reason: RevocationReason, *, client: str, request_id: str
    ) -> Revocation:
        """Revoke a certificate of `client`; repeating the call is harmless.

        Raises `NotFound`, `Conflict` (revoked before for another reason) or `StorageError`.
        """
        with self._metrics.revocation_seconds.time():
            # Step 1: durable in the database, with its audit entry, and due for a new answer.
            revoked_at, not_after = await self._record(serial, reason, client, request_id)
            self._reached(Step.REVOKED_DURABLE)
            # Step 2: the CRL follows within the debounce time, whatever becomes of the rest.
            self._crl_publisher.request()
            self._reached(Step.CRL_REQUESTED)
            # Step 3: "good" leaves the responder, with or without an HSM.
            # Step 4: the revoked answers, under every CertID hash.
            published = await self._publish(serial, revoked_at, reason, not_after)
            self._reached(Step.REVOKED_PUBLISHED)
        return Revocation(serial=serial, revoked_at=revoked_at, reason=reason, answer_published=published)

    async def _record(
        self, serial: SerialNumber, reason: RevocationReason, client: str, request_id: str
    ) -> tuple[int, int]:
        c, text, label = certificates.c, serial_hex(serial), self._publisher.issuer_label
        here = (c.issuer == label, c.serial == text, c.client == client, c.state == State.ISSUED)
        now = epoch(self._clock())
        async with self._database.write() as connection:
            found = select(c.not_after, c.revoked_at, c.reason, c.spki_sha256).where(*here)
            row = (await connection.execute(found.with_for_update())).one_or_none()
            if row is None:
                raise NotFound(
                    f"no certificate {text} of yours",
                    remedy="check the serial number; a certificate is revoked by the client that asked for it",
                )
            if row.revoked_at is not None:
                if row.reason != reason:
                    raise Conflict(
                        f"the certificate was revoked before for another reason: {row.reason}",
                        field="reason",
                        remedy="nothing is left to do: a revocation cannot be changed or taken back",
                    )
                return row.revoked_at, row.not_after
            if reason is RevocationReason.KEY_COMPROMISE:  # nobody certifies the key meanwhile
                await hold_keys(connection, [row.spki_sha256], alone=True)
            await connection.execute(update(certificates).where(*here).values(revoked_at=now, reason=reason.value))
            await schedule.hurry(connection, label, [text])
            entry = AuditEntry(
                actor=client,
                action="certificate.revoked",
                object=text,
                request_id=request_id,
                detail={"reason": reason.value},
            )
            await append(connection, now, [entry])
            self._reached(Step.REVOKE_BEFORE_COMMIT)
        self._metrics.revocations.labels(reason.value).inc()
        return now, row.not_after

    async def _publish(
        self, serial: SerialNumber, revoked_at: int, reason: RevocationReason, not_after: int
    ) -> bool:
        """Publish the revoked answers; False if that must wait for the refresher."""
        status = certificate_status(serial, revoked_at, reason)
        answers = [Answer(status=status, hash_name=name, not_after=not_after) for name in HASH_NAMES]
        try:
            await self._publisher.withdraw_good(serial)
            self._reached(Step.GOOD_WITHDRAWN)
            await self._publisher.answer(answers, Priority.REVOCATION, deadline_s=SIGN_DEADLINE_S)
        except FAULTS as error:
            # The revocation stands in the database; the refresher signs the answer as soon as it can.
            self._logger.error("revoked answer is late", serial=serial_hex(serial), error=str(error))
            return False
        return True
