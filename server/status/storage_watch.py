"""Looks after database and response store while they are in trouble, and ends the process when it must end.

Callers find trouble by failing; nobody may call any more when a load balancer has seen /readyz. So somebody tries
again here, every second. What is tried is written for good: the audit log tells of each trouble that is over.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from ocsp.errors import OcspError, StoreBroken
from ocsp.lmdb_store import LmdbStore
from server.audit.log import AuditEntry, append
from server.clock import epoch
from server.errors import DiskFailed, ServerError
from server.ground import Ground

INTERVAL_S = 1.0


class StorageWatch:
    """A loop beside the API. `touch_store` writes to the response store what is in it anyway."""

    def __init__(self, *, store: LmdbStore, touch_store: Callable[[], Awaitable[None]], ground: Ground) -> None:
        self._store = store
        self._touch_store = touch_store
        self._database = ground.database
        self._clock = ground.clock
        self._logger = ground.logger
        self._told: list[str] = []
        up = ground.metrics.storage_up
        up.labels("database").set_function(lambda: self._database.trouble is None)
        up.labels("responses").set_function(lambda: self._store.trouble is None)

    def reasons(self) -> list[str]:
        """Say why certificates cannot be issued now; empty if that is not storage's fault."""
        found = {"the database": self._database.trouble, "the OCSP response store": self._store.trouble}
        return [f"{name} does not work: {trouble}" for name, trouble in found.items() if trouble]

    async def run(self) -> None:
        """Watch until cancelled; raises `DiskFailed` or `StoreBroken` when this process can do nothing more."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(INTERVAL_S):
                    await self._database.failed.wait()
                    raise DiskFailed(f"stops, to start again from what is on the disk: {self._database.trouble}")
            await self.look()

    async def look(self) -> None:
        """Try what does not work, once, and tell what has changed."""
        trouble = self._database.trouble
        try:
            if trouble:
                async with self._database.write() as connection:
                    await append(connection, epoch(self._clock()), [_over(trouble)])
            if self._store.trouble:
                await self._touch_store()
        except StoreBroken:
            raise
        except (ServerError, OcspError):
            pass  # it is still so, and `reasons` says it
        reasons = self.reasons()
        if reasons != self._told:
            if reasons:
                self._logger.error("storage is in trouble, nothing can be issued", reasons=reasons)
            else:
                self._logger.warning("storage works again", was=self._told)
            self._told = reasons


def _over(trouble: str) -> AuditEntry:
    return AuditEntry(
        actor="certmill", action="storage.recovered", object="database", request_id="-", detail={"was": trouble}
    )
