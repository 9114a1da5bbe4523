"""A connection after its hand-over: served by another protocol, still counted by us until it ends."""

import asyncio
from collections.abc import Callable


class HandedOver(asyncio.Protocol):
    """Passes everything on to `successor`; calls `forget` when the connection is gone."""

    __slots__ = ("_forget", "_successor", "_transport", "since")

    def __init__(
        self,
        transport: asyncio.Transport,
        successor: asyncio.Protocol,
        *,
        since: int,
        forget: "Callable[[HandedOver], None]",
    ) -> None:
        self.since = since
        self._transport = transport
        self._successor = successor
        self._forget = forget

    def take_over(self, unconsumed: bytes) -> None:
        """Become the transport's protocol and pass on what was received but not answered."""
        self._transport.set_protocol(self)
        self._successor.connection_made(self._transport)
        self._successor.data_received(unconsumed)

    def abort(self) -> None:
        """Cut the connection at once."""
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Pass on."""
        self._successor.data_received(data)

    def eof_received(self) -> bool | None:
        """Pass on."""
        return self._successor.eof_received()

    def pause_writing(self) -> None:
        """Pass on."""
        self._successor.pause_writing()

    def resume_writing(self) -> None:
        """Pass on."""
        self._successor.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass on, and be counted no more."""
        self._forget(self)
        self._successor.connection_lost(exc)
