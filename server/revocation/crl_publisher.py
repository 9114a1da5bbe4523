"""Full CRLs: numbered in the database, signed in the pool, read back, then published as a file.

The number is durable before the key is asked, so no two CRLs ever share one, whatever crashes.
"""

import asyncio
import contextlib
import datetime as dt
from concurrent.futures import Executor
from pathlib import Path

from sqlalchemy import func, insert, select, update

from pkix.crl import RevocationReason, RevokedEntry, check_crl, prepare_crl
from pkix.errors import PkixError
from pkix.issuer import Issuer
from pkix.names import SerialNumber
from pkix.unsigned import assemble
from server.audit.log import AuditEntry, append
from server.clock import epoch, from_epoch
from server.errors import ServerError
from server.ground import Ground
from server.home import write_file
from server.storage.schema import State, certificates, crls
from signer_pool.errors import SignerPoolError
from signer_pool.pool import Priority, SignerPool

LOOK_S = 10.0
RETRY_S = 5.0
KEPT = 10
"""CRLs whose bytes stay in the database; of older ones the number, the times and the audit entry stay."""
_FAILURES = (ServerError, SignerPoolError, PkixError, OSError)


class CrlPublisher:
    """Publishes the CRL of one issuer: on request (debounced), on schedule, and again until it succeeds."""

    def __init__(
        self,
        *,
        issuer: Issuer,
        issuer_label: str,
        key_label: str,
        path: Path,
        files: Executor,
        pool: SignerPool,
        validity: dt.timedelta,
        interval: dt.timedelta,
        debounce_s: float,
        ground: Ground,
    ) -> None:
        self._issuer = issuer
        self._label = issuer_label
        self._key_label = key_label
        self._path = path
        self._files = files
        self._pool = pool
        self._database = ground.database
        self._validity = validity
        self._interval = interval
        self._debounce_s = debounce_s
        self._clock = ground.clock
        self._metrics = ground.metrics
        self._logger = ground.logger
        self._requested = asyncio.Event()

    def request(self) -> None:
        """Ask for a new CRL soon."""
        self._requested.set()

    async def run(self) -> None:
        """Publish until cancelled."""
        while True:
            try:
                await self._wait()
                self._requested.clear()
                await self.publish()
            except _FAILURES as error:
                self._failed(error)
                self._requested.set()
                await asyncio.sleep(RETRY_S)

    async def ensure(self) -> None:
        """Publish now if a CRL is due, or if a crash came between a revocation and its CRL. Call before `run`.

        A failure is counted and logged; `run` will try again.
        """
        try:
            if await self.due_at() <= self._clock() or await self._may_lack_a_revocation():
                await self.publish()
        except _FAILURES as error:
            self._failed(error)
            self._requested.set()

    async def _may_lack_a_revocation(self) -> bool:
        """Tell whether something was revoked when the latest CRL was made, or after that."""
        latest = await self._latest()
        this_update = 0 if latest is None else latest[1]
        c = certificates.c
        query = select(c.id).where(c.issuer == self._label, c.revoked_at >= this_update).limit(1)
        async with self._database.read() as connection:
            return (await connection.execute(query)).first() is not None

    def _failed(self, error: Exception) -> None:
        self._metrics.crl_failures.labels(self._label).inc()
        self._logger.error("CRL not published", issuer=self._label, error=str(error))

    async def _wait(self) -> None:
        """Wait until a CRL is asked for or due; the clock is looked at again and again, for it may jump."""
        due_at = await self.due_at()
        while not self._requested.is_set() and self._clock() < due_at:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._requested.wait()
        if self._requested.is_set():
            await asyncio.sleep(self._debounce_s)

    async def due_at(self) -> dt.datetime:
        """Return when the next CRL is due: the interval after the last one, now if file or CRL is missing."""
        latest = await self._latest()
        there = await asyncio.get_running_loop().run_in_executor(self._files, self._path.exists)
        if latest is None or not there:
            return self._clock()
        number, this_update, next_update, entries = latest
        self._measure(number, next_update, entries)
        return from_epoch(this_update) + self._interval

    async def publish(self) -> int:
        """Publish a CRL now; returns its number. Raises `ServerError`, `SignerPoolError` or OSError."""
        this_update = self._clock().replace(microsecond=0)
        next_update = min(this_update + self._validity, self._issuer.certificate.not_valid_after_utc)
        number = await self._reserve(epoch(this_update), epoch(next_update))
        entries = await self._entries()
        tbs = prepare_crl(
            issuer=self._issuer,
            number=number,
            this_update=this_update,
            next_update=next_update,
            entries=entries,
        )
        signature = await self._pool.sign(
            self._key_label, tbs, Priority.CRL, algorithm=self._issuer.algorithm.name
        )
        crl_der = assemble(tbs, self._issuer.algorithm, signature)
        check_crl(crl_der, issuer=self._issuer, number=number, entries=len(entries))
        await self._record(number, crl_der, len(entries), epoch(this_update))
        await asyncio.get_running_loop().run_in_executor(self._files, write_file, self._path, crl_der)
        self._measure(number, epoch(next_update), len(entries))
        self._logger.info("CRL published", issuer=self._label, number=number, entries=len(entries))
        return number

    async def _reserve(self, this_update: int, next_update: int) -> int:
        async with self._database.write() as connection:
            highest = select(func.coalesce(func.max(crls.c.number), 0)).where(crls.c.issuer == self._label)
            number = int((await connection.execute(highest)).scalar_one()) + 1
            row = {
                "issuer": self._label,
                "number": number,
                "this_update": this_update,
                "next_update": next_update,
                "entries": 0,
            }
            await connection.execute(insert(crls), row)
        return number

    async def _entries(self) -> list[RevokedEntry]:
        """Return what is revoked; an expired certificate stays until one CRL after its expiry (BR 4.10.1)."""
        latest = await self._latest()
        previous = 0 if latest is None else latest[1]
        c = certificates.c
        query = (
            select(c.serial, c.revoked_at, c.reason)
            .where(
                c.issuer == self._label,
                c.state == State.ISSUED,
                c.revoked_at.is_not(None),
                c.not_after >= previous,
            )
            .order_by(c.revoked_at, c.id)
        )
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        return [
            RevokedEntry(
                serial=SerialNumber(int(row.serial, 16)),
                revoked_at=from_epoch(row.revoked_at),
                reason=RevocationReason(row.reason),
            )
            for row in rows
        ]

    async def _record(self, number: int, crl_der: bytes, entries: int, now: int) -> None:
        entry = AuditEntry(
            actor="certmill",
            action="crl.issued",
            object=f"{self._label}/{number}",
            request_id="-",
            detail={"entries": entries},
        )
        async with self._database.write() as connection:
            await connection.execute(
                update(crls)
                .where(crls.c.issuer == self._label, crls.c.number == number)
                .values(der=crl_der, entries=entries)
            )
            old = (crls.c.issuer == self._label, crls.c.number <= number - KEPT, crls.c.der.is_not(None))
            await connection.execute(update(crls).where(*old).values(der=None))
            await append(connection, now, [entry])

    async def _latest(self) -> tuple[int, int, int, int] | None:
        """Return (number, thisUpdate, nextUpdate, entries) of the latest finished CRL."""
        c = crls.c
        query = (
            select(c.number, c.this_update, c.next_update, c.entries)
            .where(c.issuer == self._label, c.der.is_not(None))
            .order_by(c.number.desc())
            .limit(1)
        )
        async with self._database.read() as connection:
            row = (await connection.execute(query)).one_or_none()
        return None if row is None else (row.number, row.this_update, row.next_update, row.entries)

    def _measure(self, number: int, next_update: int, entries: int) -> None:
        self._metrics.crl_number.labels(self._label).set(number)
        self._metrics.crl_next_update.labels(self._label).set(next_update)
        self._metrics.crl_entries.labels(self._label).set(entries)
