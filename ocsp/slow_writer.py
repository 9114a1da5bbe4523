"""What aiohttp writes its answers through, those included that it gives to broken HTTP without asking anybody.

Neither middlewares nor signals see all of these; a writer is made for each request when its turn comes, and is
told when its answer has been written. So this is the place to say nothing about the software that answers, and
to tell the connection (`handover.py`) whether it still owes an answer.
"""

import asyncio

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import RawRequestMessage, StreamWriter
from aiohttp.streams import StreamReader
from multidict import CIMultiDict

from ocsp.handover import HandedOver


class SlowWriter(StreamWriter):
    """Writes one answer."""

    def __init__(self, protocol: web.RequestHandler, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(protocol, loop)
        holder = None if self.transport is None else self.transport.get_protocol()
        self._connection = holder if isinstance(holder, HandedOver) else None
        if self._connection is not None:
            self._connection.begin_answer()

    async def write_headers(self, status_line: str, headers: "CIMultiDict[str]") -> None:
        """Write the head, without `Server`."""
        headers.popall("Server", None)
        await super().write_headers(status_line, headers)

    async def write_eof(self, chunk: bytes = b"") -> None:
        """Write the end; returns when the peer has taken all of it but what the transport buffers."""
        await super().write_eof(chunk)
        if self._connection is not None:
            self._connection.end_answer()


def write_slowly(server: web.Server) -> None:
    """Let a server answer through `SlowWriter`."""
    make_request = server.request_factory
    loop = asyncio.get_running_loop()

    def make(
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: web.RequestHandler,
        _writer: AbstractStreamWriter,
        task: "asyncio.Task[None]",
    ) -> web.BaseRequest:
        return make_request(message, payload, protocol, SlowWriter(protocol, loop), task)

    server.request_factory = make
