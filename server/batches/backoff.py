"""What to do about a fault: which pass by themselves, and how long to wait for that."""

import asyncio
import random

from ocsp.errors import OcspError
from server.errors import Overloaded, StorageError
from signer_pool.errors import BudgetExceeded, PoolFull, SignerPoolError

PASSING = (Overloaded, StorageError, SignerPoolError, OcspError, TimeoutError)
"""Nobody's row is to blame: the same row is tried again, for as long as it takes."""

NOTHING_DONE = (Overloaded, PoolFull, BudgetExceeded)
"""Of those, what is raised before anything was written down."""

_FIRST_S = 0.1
_LONGEST_S = 10.0


class Backoff:
    """One patience for all rows of a job: they meet the same faults."""

    def __init__(self, stopping: asyncio.Event) -> None:
        self._stopping = stopping
        self._delay_s = _FIRST_S
        self._until = 0.0

    def succeeded(self) -> None:
        """Begin anew with short delays."""
        self._delay_s = _FIRST_S

    async def wait(self, error: Exception) -> bool:
        """Wait until it is worth trying again; False if the job stops meanwhile."""
        now = asyncio.get_running_loop().time()
        if now >= self._until:  # the first to meet this fault
            least = float(getattr(error, "retry_after_s", 0.0))
            self._until = now + max(self._delay_s, min(least, _LONGEST_S))
            self._delay_s = min(2 * self._delay_s, _LONGEST_S)
        spread = random.uniform(0, 0.05)  # noqa: S311 - no secret: not all of them in one moment
        try:
            async with asyncio.timeout(self._until - now + spread):
                await self._stopping.wait()
        except TimeoutError:
            return True
        return False
