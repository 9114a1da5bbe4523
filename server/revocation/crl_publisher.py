"""Full CRLs: numbered in the database, signed in the pool, read back, then published as a file.

The number is durable before the key is asked, so no two CRLs ever share one, whatever crashes. Where authorities
share a database, number and view are taken under a lock on the issuer's row, so a higher number never has an older
view; the leader publishes what is due, whoever revokes publishes for that, and all serve the latest.
"""

import asyncio
import contextlib
import datetime as dt
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import ParamSpec, TypeVar

from sqlalchemy import func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from pkix.crl import RevocationReason, RevokedEntry, check_crl, prepare_crl
from pkix.errors import PkixError
from pkix.issuer import Issuer
from pkix.names import SerialNumber
from pkix.unsigned import assemble
from server.audit.log import AuditEntry, append
from server.clock import APART_S, epoch, from_epoch
from server.errors import ServerError, StorageError
from server.ground import Ground
from server.milestones import Step
from server.revocation.crl_file import older_than_published, publish_file, published_number
from server.storage.schema import State, certificates, crls, issuers
from signer_pool.errors import SignerPoolError
from signer_pool.pool import Priority, SignerPool

P = ParamSpec("P")
R = TypeVar("R")
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
        self._leadership = ground.leadership
        self._reached = ground.reached
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
        query = select(c.id).where(c.issuer == self._label, c.revoked_at >= this_update - APART_S).limit(1)
        async with self._database.read() as connection:
            return (await connection.execute(query)).first() is not None

    def _failed(self, error: Exception) -> None:
        self._metrics.crl_failures.labels(self._label).inc()
        self._logger.error("CRL not published", issuer=self._label, error=str(error))

    async def _wait(self) -> None:
        """Wait until a CRL is asked for or due; the clock is looked at again and again, for it may jump."""
        due_at = await self.due_at()
        while not self._requested.is_set() and (self._clock() < due_at or not self._leadership.leads):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._requested.wait()
            due_at = await self.due_at()
        if self._requested.is_set():
            await asyncio.sleep(self._debounce_s)

    async def due_at(self) -> dt.datetime:
        """Return when the next CRL is due: the interval after the last one.

        Now, if file or CRL is missing, or it was made while the clock was wrong: nobody takes a CRL of tomorrow.
        """
        latest = await self._latest()
        published = await self._on_disk(published_number, self._path)
        if latest is not None and published < latest[0] and self._database.shared:
            published = await self._follow(latest[0])
        if latest is None or not published or published > latest[0]:
            return self._clock()  # published > latest: the database is an older one, and `_reserve` says so
        number, this_update, next_update, entries = latest
        self._measure(number, next_update, entries)
        if this_update > epoch(self._clock()) + APART_S:
            return self._clock()
        return from_epoch(this_update) + self._interval

    async def _follow(self, number: int) -> int:
        """Serve the CRL that another authority published; returns the number that is served then."""
        query = select(crls.c.der).where(crls.c.issuer == self._label, crls.c.number == number)
        async with self._database.read() as connection:
            der = (await connection.execute(query)).scalar_one_or_none()
        if der is not None:
            await self._on_disk(publish_file, self._path, number, der)
        return await self._on_disk(published_number, self._path)

    async def _on_disk(self, work: Callable[P, R], *arguments: P.args, **_: P.kwargs) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._files, work, *arguments)

    async def publish(self) -> int:
        """Publish a CRL now; returns its number. Raises `ServerError`, `SignerPoolError` or OSError."""
        this_update = self._clock().replace(microsecond=0)
        next_update = min(this_update + self._validity, self._issuer.certificate.not_valid_after_utc)
        number, entries = await self._reserve(epoch(this_update), epoch(next_update))
        self._reached(Step.CRL_NUMBER_DURABLE)
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
        self._reached(Step.CRL_SIGNED)
        crl_der = assemble(tbs, self._issuer.algorithm, signature)
        check_crl(crl_der, issuer=self._issuer, number=number, entries=len(entries))
        await self._record(number, crl_der, len(entries), epoch(this_update))
        self._reached(Step.CRL_RECORDED)
        await self._on_disk(publish_file, self._path, number, crl_der)
        self._reached(Step.CRL_WRITTEN)
        self._measure(number, epoch(next_update), len(entries))
        self._logger.info("CRL published", issuer=self._label, number=number, entries=len(entries))
        return number

    async def _reserve(self, this_update: int, next_update: int) -> tuple[int, list[RevokedEntry]]:
        """Take the next number, and then what is revoked: together, where others publish too."""
        published = await self._on_disk(published_number, self._path)
        async with self._database.write() as connection:
            await connection.execute(
                select(issuers.c.label).where(issuers.c.label == self._label).with_for_update()
            )
            highest = select(func.coalesce(func.max(crls.c.number), 0)).where(crls.c.issuer == self._label)
            known = int((await connection.execute(highest)).scalar_one())
            if published > known:  # one without its last transactions took its place while we run
                raise StorageError(older_than_published(self._database.place, self._label, published, known))
            number = known + 1
            row = {
                "issuer": self._label,
                "number": number,
                "this_update": this_update,
                "next_update": next_update,
                "entries": 0,
            }
            await connection.execute(insert(crls), row)
            self._reached(Step.CRL_NUMBER_BEFORE_COMMIT)
            if self._database.shared:
                return number, await self._entries(connection)
        async with self._database.read() as connection:
            return number, await self._entries(connection)

    async def _entries(self, connection: AsyncConnection) -> list[RevokedEntry]:
        """Return what is revoked; an expired certificate stays until one CRL after its expiry (BR 4.10.1)."""
        latest = await self._latest_in(connection)
        # The latest may be of a clock that was wrong: what has not expired by now stays all the same.
        previous = 0 if latest is None else min(latest[1], epoch(self._clock()))
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
            self._reached(Step.CRL_BEFORE_COMMIT)

    async def _latest(self) -> tuple[int, int, int, int] | None:
        """Return (number, thisUpdate, nextUpdate, entries) of the latest finished CRL."""
        async with self._database.read() as connection:
            return await self._latest_in(connection)

    async def _latest_in(self, connection: AsyncConnection) -> tuple[int, int, int, int] | None:
        c = crls.c
        query = (
            select(c.number, c.this_update, c.next_update, c.entries)
            .where(c.issuer == self._label, c.der.is_not(None))
            .order_by(c.number.desc())
            .limit(1)
        )
        row = (await connection.execute(query)).one_or_none()
        return None if row is None else (row.number, row.this_update, row.next_update, row.entries)

    def _measure(self, number: int, next_update: int, entries: int) -> None:
        self._metrics.crl_number.labels(self._label).set(number)
        self._metrics.crl_next_update.labels(self._label).set(next_update)
        self._metrics.crl_entries.labels(self._label).set(entries)
