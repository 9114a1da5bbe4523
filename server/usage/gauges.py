"""Shows each client's quota and its use as metrics."""

import asyncio

from sqlalchemy import func, select
from structlog.typing import FilteringBoundLogger

from server.clock import Clock
from server.errors import StorageError
from server.metrics import AuthorityMetrics
from server.storage.database import Database
from server.storage.schema import client_usage, clients

INTERVAL_S = 30.0


class UsageGauges:
    """Reads the counters of this year at intervals. Cost: one query over the clients."""

    def __init__(
        self, database: Database, clock: Clock, metrics: AuthorityMetrics, logger: FilteringBoundLogger
    ) -> None:
        self._database = database
        self._clock = clock
        self._metrics = metrics
        self._logger = logger

    async def run(self) -> None:
        """Refresh for ever; what the database does not say now, it says later."""
        while True:
            try:
                await self.refresh()
            except StorageError as error:
                self._logger.error("usage of clients not read, will try again", error=str(error))
            await asyncio.sleep(INTERVAL_S)

    async def refresh(self) -> None:
        """Set the gauges of all clients; one whose limit was lifted has no quota any more."""
        u = client_usage.c
        query = select(
            clients.c.name, clients.c.yearly_quota, func.coalesce(u.issued, 0).label("issued")
        ).outerjoin(client_usage, (u.client == clients.c.name) & (u.year == self._clock().year))
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        self._metrics.client_quota.clear()
        self._metrics.client_used.clear()
        for row in rows:
            self._metrics.client_used.labels(row.name).set(row.issued)
            if row.yearly_quota is not None:
                self._metrics.client_quota.labels(row.name).set(row.yearly_quota)
