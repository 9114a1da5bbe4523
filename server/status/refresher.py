"""Keeps every published response fresh: signs what is due, oldest first, and drops what has run out."""

import asyncio

from ocsp.store import ResponseStore
from pkix.names import SerialNumber
from server.clock import epoch
from server.ground import Ground
from server.status import schedule
from server.status.publisher import FAULTS, Answer, StatusPublisher, certificate_status
from signer_pool.pool import Priority

BATCH = 256
INTERVAL_S = 5.0


class Refresher:
    """A loop that never gives up: what fails stays due, is counted, and is tried again."""

    def __init__(
        self,
        *,
        publisher: StatusPublisher,
        store: ResponseStore,
        ground: Ground,
    ) -> None:
        self._publisher = publisher
        self._store = store
        self._database = ground.database
        self._clock = ground.clock
        self._metrics = ground.metrics
        self._logger = ground.logger
        self._leadership = ground.leadership

    async def run(self) -> None:
        """Refresh until cancelled."""
        while True:
            try:
                while self._leadership.leads and await self.refresh_once() == BATCH:
                    pass
                if self._leadership.leads:
                    await self.drop_expired()
                await self.measure()
            except FAULTS as error:
                self._metrics.ocsp_refresh_failures.inc()
                self._logger.error("ocsp refresh failed", error=str(error))
            await asyncio.sleep(INTERVAL_S)

    async def refresh_once(self) -> int:
        """Sign up to `BATCH` due responses; returns how many there were."""
        label = self._publisher.issuer_label
        async with self._database.read() as connection:
            rows = await schedule.due(connection, label, epoch(self._clock()), BATCH)
        answers = [
            Answer(
                status=certificate_status(int(row.serial, 16), row.revoked_at, row.reason),
                hash_name=row.hash_name,
                not_after=row.not_after,
            )
            for row in rows
        ]
        # A revocation whose answer is still missing goes before all refreshing.
        urgent = [a for a in answers if a.status.revoked_at is not None]
        await self._publisher.answer(urgent, Priority.REVOCATION)
        await self._publisher.answer([a for a in answers if a.status.revoked_at is None], Priority.REFRESH)
        self._metrics.ocsp_refreshed.inc(len(answers))
        return len(answers)

    async def drop_expired(self) -> None:
        """Forget responses for certificates that expired and whose last response has run out."""
        label = self._publisher.issuer_label
        async with self._database.read() as connection:
            gone = await schedule.expired(connection, label, epoch(self._clock()), BATCH)
        if not gone:
            return
        key = self._publisher.presigner.key
        await self._store.remove_many(
            [key(SerialNumber(int(s, 16)), "sha256" if h == "sha256" else "sha1") for s, h in gone]
        )
        async with self._database.write() as connection:
            await schedule.forget(connection, label, gone)

    async def measure(self) -> None:
        """Export how fresh the oldest response is."""
        now = epoch(self._clock())
        async with self._database.read() as connection:
            total, overdue, oldest, nearest = await schedule.freshness(
                connection, self._publisher.issuer_label, now
            )
        self._metrics.ocsp_live_responses.set(total)
        self._metrics.ocsp_overdue_responses.set(overdue)
        self._metrics.ocsp_oldest_this_update.set(oldest)
        self._metrics.ocsp_nearest_next_update.set(nearest)
