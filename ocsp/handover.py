"""A connection after its hand-over: served by another protocol, counted and bounded by us until it ends.

The successor closes what idles and bounds each of its handlers. Left to us are a peer that takes its answer
slowly or never, and one that has closed its half. That peer may be gone, or wait for its answers: they are
owed, and then the connection ends at once, since it can bring nothing more.
"""

import asyncio
from collections.abc import Callable

from ocsp.deadlines import Deadlines

_TURNS = 4
"""Of the event loop, in which the successor begins with a request that it has: it needs one, or two if it has
just answered another. No time is waited for: most peers that close their half have closed all of it.
"""


class HandedOver(asyncio.Protocol):
    """Passes everything on to `successor`; calls `forget` when the connection is gone.

    Whoever answers calls `begin_answer` and `end_answer`. `clock` tells whole seconds.
    """

    __slots__ = (
        "_answering_since", "_clock", "_forget", "_half_closed", "_moved_at", "_successor", "_transport",
    )  # fmt: skip

    def __init__(
        self,
        transport: asyncio.Transport,
        successor: asyncio.Protocol,
        *,
        clock: Callable[[], int],
        forget: "Callable[[HandedOver], None]",
    ) -> None:
        self._transport = transport
        self._successor = successor
        self._clock = clock
        self._forget = forget
        self._moved_at = clock()
        self._answering_since: int | None = None
        self._half_closed = False

    def take_over(self, unconsumed: bytes) -> None:
        """Become the transport's protocol and pass on what was received but not answered."""
        self._transport.set_protocol(self)
        self._successor.connection_made(self._transport)
        self._successor.data_received(unconsumed)

    def begin_answer(self) -> None:
        """Note that an answer is owed from now on."""
        self._moved_at = self._answering_since = self._clock()

    def end_answer(self) -> None:
        """Note that it has been written."""
        self._moved_at, self._answering_since = self._clock(), None
        if self._half_closed:
            self._close_if_nothing_follows()

    def cut_if_late(self, now: int, deadlines: Deadlines) -> None:
        """Abort when nothing has moved for long, or when one answer takes too long to be written."""
        since = self._answering_since
        if now - self._moved_at > deadlines.handed_over_s or (
            since is not None and now - since > deadlines.answer_s
        ):
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Pass on."""
        self._moved_at = self._clock()
        self._successor.data_received(data)

    def eof_received(self) -> bool:
        """Pass on, and keep our half open until all is answered, whatever the successor says."""
        self._half_closed = True
        self._successor.eof_received()
        self._close_if_nothing_follows()
        return True

    def pause_writing(self) -> None:
        """Pass on."""
        self._successor.pause_writing()

    def resume_writing(self) -> None:
        """Pass on: the peer takes what was written."""
        self._moved_at = self._clock()
        self._successor.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass on, and be counted no more."""
        self._forget(self)
        self._successor.connection_lost(exc)

    def _close_if_nothing_follows(self, turns: int = _TURNS) -> None:
        if self._answering_since is not None:
            return
        if turns:
            asyncio.get_running_loop().call_soon(self._close_if_nothing_follows, turns - 1)
        else:
            self._transport.close()
