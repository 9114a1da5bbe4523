"""The two transactions of issuing, and what recovery does with intents that were never finished."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, delete, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from pkix.names import CertificateDer, serial_hex
from server.audit.log import AuditEntry, append
from server.clock import epoch
from server.errors import CommitInDoubt, DiskFailed, KeyInUse, StorageError
from server.issuance.admission import Check, refusals
from server.issuance.key_checks import refused_keys
from server.issuance.order import PreparedOrder
from server.issuance.quota import charge, refund
from server.milestones import Milestones, Step, unwatched
from server.status import schedule
from server.storage.claims import database_time
from server.storage.database import AnyRow, Database
from server.storage.schema import RowState, State, certificates, idempotency_keys, job_rows
from server.storage.upserts import insert_for, update_each

LONGEST_BATCH_S = 15 * 60
"""Longer than any batch is under way: its signatures have a deadline of 300 s at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A signed certificate and the schedule row of its OCSP response."""

    prepared: PreparedOrder
    certificate_der: CertificateDer
    ocsp_row: dict[str, object]


class IssuanceRecords:
    """Reads and writes the rows of one issuer's certificates. `checks` refuse single orders; so does the quota.

    `authority`: who we are, see the table `authorities`. `reached` is told of the steps inside the transactions.
    """

    def __init__(
        self,
        database: Database,
        issuer_label: str,
        checks: Sequence[Check] = (),
        authority: str = "",
        reached: Milestones = unwatched,
    ) -> None:
        self._database = database
        self._issuer = issuer_label
        self._authority = authority or None
        self._reached = reached
        self._checks = (refused_keys, *checks, charge)

    async def record_intents(self, batch: Sequence[PreparedOrder], now: int) -> Mapping[int, Exception]:
        """Step 4: serials, TBS digests, profile versions, clients, audit entries: all durable, or nothing.

        Returns the orders that were refused, by their place in the batch: of those nothing is recorded. `KeyInUse`
        is for one whose idempotency key another call has, perhaps of another authority. Raises `StorageError`,
        also if a serial exists already; `CommitInDoubt` if the intents may be recorded all the same.
        """
        written = False
        try:
            async with self._database.write() as connection:
                refused = await refusals(connection, self._checks, batch, now)
                admitted = {index: p for index, p in enumerate(batch) if index not in refused}
                late = await self._take_keys(connection, admitted, now)
                if late:  # they were counted by `charge`, which stands last among the checks
                    await refund(connection, [(batch[index].order.client.name, now) for index in late])
                    refused.update({index: KeyInUse() for index in late})
                first = [p for index, p in admitted.items() if index not in refused]
                if first:
                    await self._insert_intents(connection, first, now)
                    written = True
                    self._reached(Step.INTENTS_BEFORE_COMMIT)
        except DiskFailed:
            raise
        except StorageError as error:
            if written:
                raise CommitInDoubt(str(error)) from error
            raise
        return refused

    async def _take_keys(
        self, connection: AsyncConnection, batch: Mapping[int, PreparedOrder], now: int
    ) -> list[int]:
        """Insert the idempotency keys; the primary key decides who is first. Returns the places of the others."""
        slots = {(p.order.client.name, p.order.idempotency_key or ""): p for p in batch.values()}
        # In one order everywhere: two authorities never wait for each other in a circle.
        rows = [self._key_row(slots[slot], now) for slot in sorted(slots) if slot[1]]
        if not rows:
            return []
        k = idempotency_keys.c
        statement = insert_for(connection, idempotency_keys).on_conflict_do_nothing().returning(k.client, k.key)
        taken = {(row.client, row.key) for row in await connection.execute(statement, rows)}
        ours = {id(slots[slot]) for slot in taken}
        return [i for i, p in batch.items() if p.order.idempotency_key is not None and id(p) not in ours]

    async def _insert_intents(self, connection: AsyncConnection, batch: Sequence[PreparedOrder], now: int) -> None:
        await connection.execute(insert(certificates), [self._intent_row(p, now) for p in batch])
        await append(connection, now, [_audit(p, "certificate.intent") for p in batch])

    async def record_issued(self, batch: Sequence[Finished], now: int) -> None:
        """Step 7: certificates, OCSP due dates and audit entries: all durable, or nothing."""
        rows = [
            {"issuer": self._issuer, "serial": serial_hex(f.prepared.certificate.serial), "der": f.certificate_der}
            for f in batch
        ]
        async with self._database.write() as connection:
            changed = await update_each(
                connection,
                certificates,
                rows,
                match=("issuer", "serial"),
                where=certificates.c.state == State.INTENT,
                values={"state": State.ISSUED},
            )
            if changed != len(rows):
                raise StorageError("an intent of this batch is gone: nothing of it is released")
            await _finish_rows(connection, batch)
            await schedule.record(connection, [f.ocsp_row for f in batch])
            await append(connection, now, [_audit(f.prepared, "certificate.issued") for f in batch])
            self._reached(Step.ISSUED_BEFORE_COMMIT)

    async def abandon(self, batch: Sequence[PreparedOrder], now: int) -> None:
        """Close the intents of a failed batch, free their idempotency keys; rows that were issued stay."""
        serials = [serial_hex(p.certificate.serial) for p in batch]
        async with self._database.write() as connection:
            await _abandon(connection, self._issuer, serials, now)
            self._reached(Step.ABANDON_BEFORE_COMMIT)

    async def abandon_left_over(self, now: int) -> int:
        """Close what a crash left open, at start, before the first call: every intent of ours.

        And of others, on a shared database, what is older than any batch that still runs. (If one did run for so
        long, its step 7 would find no intent, and release nothing.) `now` is not asked there, but the database.
        """
        c = certificates.c
        async with self._database.write() as connection:
            query = select(c.serial).where(c.issuer == self._issuer, c.state == State.INTENT)
            if self._database.shared:
                query = query.where(self._closable(await database_time(connection, now)))
            serials = list((await connection.execute(query.order_by(c.serial).with_for_update())).scalars())
            await _abandon(connection, self._issuer, serials, now)
            self._reached(Step.RECOVERY_BEFORE_COMMIT)
        return len(serials)

    def _closable(self, now: int) -> ColumnElement[bool]:
        c = certificates.c
        return or_(c.authority == self._authority, c.created_at < now - LONGEST_BATCH_S)

    async def find_key(self, client: str, key: str) -> AnyRow | None:
        """Return what an idempotency key was used for: request digest, serial, state and certificate."""
        c, k = certificates.c, idempotency_keys.c
        query = (
            select(k.request_sha256, certificates)
            .join(certificates, (c.issuer == k.issuer) & (c.serial == k.serial))
            .where(k.client == client, k.key == key)
        )
        async with self._database.read() as connection:
            return (await connection.execute(query)).one_or_none()

    async def abandon_serial(self, serial: str, now: int) -> bool:
        """Close one open intent, unless another authority may still be at work on it; say whether it is closed."""
        c = certificates.c
        async with self._database.write() as connection:
            query = select(c.id).where(c.issuer == self._issuer, c.serial == serial, c.state == State.INTENT)
            if self._database.shared:
                query = query.where(self._closable(await database_time(connection, now)))
            if (await connection.execute(query.with_for_update())).first() is None:
                return False
            await _abandon(connection, self._issuer, [serial], now)
        return True

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
            "authority": self._authority,
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
    rows = [
        {
            "job": f.prepared.order.row.job,
            "number": f.prepared.order.row.number,
            "serial": serial_hex(f.prepared.certificate.serial),
        }
        for f in batch
        if f.prepared.order.row is not None
    ]
    if not rows:
        return
    pending = job_rows.c.state == RowState.PENDING
    values = {"state": RowState.ISSUED}
    if await update_each(connection, job_rows, rows, match=("job", "number"), where=pending, values=values) != len(
        rows
    ):
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
