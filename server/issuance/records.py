"""The two transactions of issuing, and what recovery does with intents that were never finished."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import bindparam, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from pkix.names import CertificateDer, serial_hex
from server.audit.log import AuditEntry, append
from server.clock import epoch
from server.errors import StorageError
from server.issuance.admission import Check, refusals
from server.issuance.key_checks import refused_keys
from server.issuance.order import PreparedOrder
from server.issuance.quota import charge, refund
from server.status import schedule
from server.storage.database import AnyRow, Database
from server.storage.schema import RowState, State, certificates, idempotency_keys, job_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A signed certificate and the schedule row of its OCSP response."""

    prepared: PreparedOrder
    certificate_der: CertificateDer
    ocsp_row: dict[str, object]


class IssuanceRecords:
    """Reads and writes the rows of one issuer's certificates. `checks` refuse single orders; so does the quota."""

    def __init__(self, database: Database, issuer_label: str, checks: Sequence[Check]) -> None:
        self._database = database
        self._issuer = issuer_label
        self._checks = (refused_keys, *checks, charge)

    async def record_intents(self, batch: Sequence[PreparedOrder], now: int) -> Mapping[int, Exception]:
        """Step 4: serials, TBS digests, profile versions, clients, audit entries: all durable, or nothing.

        Returns the orders that were refused, by their place in the batch: of those nothing is recorded. Raises
        `StorageError`, also if a serial or an idempotency key exists already.
        """
        async with self._database.write() as connection:
            refused = await refusals(connection, self._checks, batch, now)
            admitted = [p for index, p in enumerate(batch) if index not in refused]
            if admitted:
                await self._insert_intents(connection, admitted, now)
        return refused

    async def _insert_intents(self, connection: AsyncConnection, batch: Sequence[PreparedOrder], now: int) -> None:
        await connection.execute(insert(certificates), [self._intent_row(p, now) for p in batch])
        keys = [self._key_row(p, now) for p in batch if p.order.idempotency_key is not None]
        if keys:
            await connection.execute(insert(idempotency_keys), keys)
        await append(connection, now, [_audit(p, "certificate.intent") for p in batch])

    async def record_issued(self, batch: Sequence[Finished], now: int) -> None:
        """Step 7: certificates, OCSP due dates and audit entries: all durable, or nothing."""
        c = certificates.c
        statement = (
            update(certificates)
            .where(c.issuer == self._issuer, c.serial == bindparam("the_serial"), c.state == State.INTENT)
            .values(state=State.ISSUED, der=bindparam("the_der"))
        )
        rows = [
            {"the_serial": serial_hex(f.prepared.certificate.serial), "the_der": f.certificate_der} for f in batch
        ]
        async with self._database.write() as connection:
            result = await connection.execute(statement, rows)
            if result.rowcount != len(rows):
                raise StorageError("an intent of this batch is gone: nothing of it is released")
            await _finish_rows(connection, batch)
            await schedule.record(connection, [f.ocsp_row for f in batch])
            await append(connection, now, [_audit(f.prepared, "certificate.issued") for f in batch])

    async def abandon(self, batch: Sequence[PreparedOrder], now: int) -> None:
        """Close the intents of a failed batch, free their idempotency keys; rows that were issued stay."""
        serials = [serial_hex(p.certificate.serial) for p in batch]
        async with self._database.write() as connection:
            await _abandon(connection, self._issuer, serials, now)

    async def abandon_left_over(self, now: int) -> int:
        """Close every open intent: at start, before the first call, nobody else can be working on one."""
        c = certificates.c
        query = select(c.serial).where(c.issuer == self._issuer, c.state == State.INTENT)
        async with self._database.write() as connection:
            serials = list((await connection.execute(query)).scalars())
            await _abandon(connection, self._issuer, serials, now)
        return len(serials)

    async def find_key(self, client: str, key: str) -> AnyRow | None:
        """Return what an idempotency key was used for: request digest, serial, state and certificate."""
        c, k = certificates.c, idempotency_keys.c
        query = (
            select(k.request_sha256, c.serial, c.state, c.der, c.profile, c.not_before, c.not_after)
            .join(certificates, (c.issuer == k.issuer) & (c.serial == k.serial))
            .where(k.client == client, k.key == key)
        )
        async with self._database.read() as connection:
            return (await connection.execute(query)).one_or_none()

    async def abandon_serial(self, serial: str, now: int) -> None:
        """Close one open intent."""
        async with self._database.write() as connection:
            await _abandon(connection, self._issuer, [serial], now)

    def _intent_row(self, prepared: PreparedOrder, now: int) -> dict[str, object]:
        certificate, order = prepared.certificate, prepared.order
        return {
            "issuer": self._issuer,
            "serial": serial_hex(certificate.serial),
            "state": State.INTENT,
            "profile": certificate.profile.identity,
            "client": order.client.name,
            "request_id": order.request_id,
            "subject": certificate.subject,
            "dns_names": list(certificate.dns_names),
            "tbs_sha256": certificate.tbs_sha256,
            "spki_sha256": certificate.spki_sha256,
            "not_before": epoch(certificate.not_before),
            "not_after": epoch(certificate.not_after),
            "created_at": now,
            "csr": prepared.csr_der,
            "asked": None if order.asked is None else order.asked.as_json,
            "renews": order.renews,
        }

    def _key_row(self, prepared: PreparedOrder, now: int) -> dict[str, object]:
        order = prepared.order
        return {
            "client": order.client.name,
            "key": order.idempotency_key,
            "request_sha256": order.fingerprint(),
            "issuer": self._issuer,
            "serial": serial_hex(prepared.certificate.serial),
            "created_at": now,
        }


async def _finish_rows(connection: AsyncConnection, batch: Sequence[Finished]) -> None:
    """Give rows of batches their certificates, each once: a row that is not pending any more refuses all."""
    r = job_rows.c
    rows = [
        {
            "the_job": f.prepared.order.row.job,
            "the_number": f.prepared.order.row.number,
            "the_serial": serial_hex(f.prepared.certificate.serial),
        }
        for f in batch
        if f.prepared.order.row is not None
    ]
    if not rows:
        return
    statement = (
        update(job_rows)
        .where(r.job == bindparam("the_job"), r.number == bindparam("the_number"), r.state == RowState.PENDING)
        .values(state=RowState.ISSUED, serial=bindparam("the_serial"))
    )
    if (await connection.execute(statement, rows)).rowcount != len(rows):
        raise StorageError("a row of this batch is finished already: nothing of it is released")


async def _abandon(connection: AsyncConnection, issuer: str, serials: Sequence[str], now: int) -> None:
    c, k = certificates.c, idempotency_keys.c
    abandoned: list[tuple[str, int]] = []
    for serial in serials:
        closing = (
            update(certificates)
            .where(c.issuer == issuer, c.serial == serial, c.state == State.INTENT)
            .values(state=State.ABANDONED)
            .returning(c.client, c.created_at)
        )
        closed = (await connection.execute(closing)).one_or_none()
        if closed is not None:
            abandoned.append((closed.client, closed.created_at))
            await connection.execute(delete(idempotency_keys).where(k.issuer == issuer, k.serial == serial))
            entry = AuditEntry(actor="certmill", action="certificate.abandoned", object=serial, request_id="-")
            await append(connection, now, [entry])
    await refund(connection, abandoned)


def _audit(prepared: PreparedOrder, action: str) -> AuditEntry:
    certificate = prepared.certificate
    return AuditEntry(
        actor=prepared.order.client.name,
        action=action,
        object=serial_hex(certificate.serial),
        request_id=prepared.order.request_id,
        detail={"profile": certificate.profile.identity, "tbs_sha256": certificate.tbs_sha256.hex()},
    )
