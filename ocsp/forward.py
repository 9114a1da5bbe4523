"""Asks the authority to sign an answer that the store lacks: coalesced, bounded, with a deadline."""

import asyncio
import functools
from pathlib import Path

import aiohttp

from ocsp.errors import AuthorityUnavailable
from ocsp.store import ResponseKey

_OK = 200


class Forwarder:
    """Client of the authority's signing socket; an answer it returns is also in the store by then."""

    def __init__(
        self, socket_path: Path, *, at_once: int = 32, waiting: int = 256, deadline_s: float = 2.0
    ) -> None:
        self._socket_path = socket_path
        self._places = asyncio.Semaphore(at_once)
        self._waiting = waiting
        self._deadline_s = deadline_s
        self._running: dict[ResponseKey, asyncio.Task[bytes]] = {}
        self.succeeded = 0
        self.failed = 0

    async def sign(self, key: ResponseKey, request_der: bytes) -> bytes:
        """Return the response (DER); raises `AuthorityUnavailable`. Askers of one key share one call."""
        task = self._running.get(key)
        if task is None:
            if len(self._running) >= self._waiting:
                self.failed += 1
                raise AuthorityUnavailable("too many answers are waiting to be signed")
            task = asyncio.get_running_loop().create_task(self._ask(request_der))
            self._running[key] = task
            task.add_done_callback(functools.partial(self._ended, key))
        return await asyncio.shield(task)

    def _ended(self, key: ResponseKey, task: asyncio.Task[bytes]) -> None:
        self._running.pop(key, None)
        if not task.cancelled():
            task.exception()  # looked at, even when every asker has gone

    async def _ask(self, request_der: bytes) -> bytes:
        try:
            async with (
                asyncio.timeout(self._deadline_s),
                self._places,
                aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(self._socket_path))) as session,
                session.post("http://authority/ocsp/sign", data=request_der) as response,
            ):
                status, body = response.status, await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            self.failed += 1
            raise AuthorityUnavailable(f"the authority does not answer: {error}") from error
        if status != _OK or not body:
            self.failed += 1
            raise AuthorityUnavailable(f"the authority answered {status}")
        self.succeeded += 1
        return body

    async def close(self) -> None:
        """End what still runs."""
        for task in list(self._running.values()):
            task.cancel()
        if self._running:
            await asyncio.wait(list(self._running.values()))
