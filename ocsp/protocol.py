"""Socket, store, socket: nothing is awaited, no task is made, no line is logged.

A request that was seen before is answered from finished bytes, as long as the second and the store's
generation are the same; otherwise its entry is read again and finished for this second. Whatever the scanner
does not know is handed, with every byte of it, to aiohttp on the same socket; answers stay in order because
ours were written before.
"""

import asyncio
from collections.abc import Callable
from typing import cast

from ocsp.answers import Answers, Need, Result
from ocsp.deadlines import Deadlines
from ocsp.handover import HandedOver
from ocsp.store import ResponseKey
from ocsp.wire import Fast, Once, Scanner, Verdict
from pkix.ocsp_request import template_match

REMEMBERED_REQUESTS = 16_384
_REMEMBERED_BYTES = 1024
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_TOO_MANY = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_CLOSE = b"\r\nConnection: close\r\n"

# A remembered request: key, generation, second, answer, index of its counter.
Remembered = tuple[ResponseKey, int, int, bytes, int]


class Listener:
    """What the connections of one worker share."""

    def __init__(
        self,
        *,
        answers: Answers,
        scanner: Scanner,
        successor: Callable[[], asyncio.Protocol],
        max_connections: int,
        deadlines: Deadlines,
    ) -> None:
        self.answers = answers
        self.scanner = scanner
        self.successor = successor
        self.deadlines = deadlines
        self.remembered: dict[bytes, Remembered] = {}
        self.connections: set[OcspProtocol] = set()
        self.handed_over: set[HandedOver] = set()
        self.handovers = 0
        self.refused_connections = 0
        self._max_connections = max_connections

    def connect(self) -> asyncio.Protocol:
        """Make the protocol of a new connection."""
        return OcspProtocol(self)

    def now(self) -> int:
        """Return the present second."""
        return self.answers.finisher.now

    def open_connections(self) -> int:
        """Count the connections that are open now."""
        return len(self.connections) + len(self.handed_over)

    def is_full(self) -> bool:
        """Say whether another connection would be too many."""
        return self.open_connections() >= self._max_connections

    def sweep(self) -> None:
        """Once a second: cut connections that idle, or dawdle over a request or an answer."""
        now = self.answers.finisher.now
        for connection in list(self.connections):
            connection.cut_if_late(now, self.deadlines)
        for handed_over in list(self.handed_over):
            handed_over.cut_if_late(now, self.deadlines)

    def drain(self) -> None:
        """Stop serving: close what waits for a next request; what was written is still sent."""
        for connection in list(self.connections):
            connection.close()

    def respond(self, request: bytes) -> bytes | None:
        """Return the answer to the bytes of one or more whole requests if they are remembered and still true."""
        found = self.remembered.get(request)
        if found is None:
            return None
        key, generation, second, answer, counter = found
        answers = self.answers
        if second != answers.finisher.tick() or generation != answers.generation():
            return self._answer(request, key)
        answers.fast[counter] += 1
        return answer

    def respond_new(self, request: bytes | None, der: bytes) -> bytes | None:
        """Return the answer to a request seen for the first time; None if the slow path must have it.

        It is remembered under the bytes of `request`, if these are given.
        """
        match = template_match(der)
        if match is None:
            return None
        self.answers.finisher.tick()
        key = self.answers.key(*match)
        if key is None:
            result, data = self.answers.unknown_issuer()
            self.answers.fast[result] += 1
            return data
        return self._answer(request, key)

    def _answer(self, request: bytes | None, key: ResponseKey) -> bytes | None:
        generation = self.answers.generation()  # before the read: what changes after it makes ours old
        answer = self.answers.answer(key)
        if isinstance(answer, Need):
            return None
        result, data = answer
        self.answers.fast[result] += 1
        if request is None:
            return data
        if result <= Result.REVOKED and len(request) <= _REMEMBERED_BYTES:
            if len(self.remembered) >= REMEMBERED_REQUESTS:
                self.remembered.clear()
            self.remembered[request] = (key, generation, self.answers.finisher.now, data, result)
        else:
            self.remembered.pop(request, None)
        return data


class OcspProtocol(asyncio.Protocol):
    """One connection, until it is handed over or closed."""

    __slots__ = ("_buffer", "_listener", "_paused", "_since", "_transport")

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._buffer = b""
        self._paused = False
        self._since = listener.answers.finisher.now
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accept, or refuse when there are too many."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's transports are of no asyncio class
        if self._listener.is_full():
            self._listener.refused_connections += 1
            self._transport.write(_TOO_MANY)
            self._transport.close()
            return
        self._listener.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._listener.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        """Answer what is whole, keep what is not."""
        listener = self._listener
        if not self._buffer and not self._paused:
            answer = listener.respond(data)
            if answer is not None:
                self._since = listener.answers.finisher.now
                self._transport.write(answer)
                return
        else:
            data = self._buffer + data
            if self._paused:
                self._buffer = data
                return
        self._process(data)

    def _process(self, data: bytes) -> None:
        """Answer the requests in `data` one after the other, until it ends or must be handed over."""
        listener, start, length = self._listener, 0, len(data)
        while start < length:
            if self._paused:  # the peer does not read: neither do we (resume_writing goes on here)
                break
            scanned = listener.scanner.scan(data, start)
            if isinstance(scanned, Fast):
                request = data[start : scanned.end]
                answer = listener.respond(request) or listener.respond_new(request, scanned.body)
                if answer is None:
                    self._hand_over(data[start:])
                    return
                self._transport.write(answer)
                start = scanned.end
            elif scanned is Verdict.MORE:
                break
            elif scanned is Verdict.HAND_OVER:
                self._hand_over(data[start:])
                return
            elif isinstance(scanned, Once):
                self._answer_once(data[start:], scanned)
                return
            else:
                self._transport.write(_TOO_LARGE)
                self._transport.close()
                return
        if start or not self._buffer:  # a request was finished, or a new one began: its time counts from now
            self._since = listener.answers.finisher.now
        self._buffer = data[start:]

    def _answer_once(self, unconsumed: bytes, scanned: Once) -> None:
        """Answer HTTP/1.0 and close; whatever follows the request is nobody's."""
        answer = self._listener.respond_new(None, scanned.body)
        if answer is None:
            self._hand_over(unconsumed)
            return
        self._buffer = b""
        self._transport.write(answer.replace(b"\r\n", _CLOSE, 1))
        self._transport.close()

    def _hand_over(self, unconsumed: bytes) -> None:
        """Let aiohttp have the connection, beginning with the request that we do not know."""
        listener = self._listener
        listener.handovers += 1
        listener.connections.discard(self)
        handed_over = HandedOver(
            self._transport,
            listener.successor(),
            clock=listener.now,
            forget=listener.handed_over.discard,
        )
        listener.handed_over.add(handed_over)
        self._buffer = b""
        handed_over.take_over(unconsumed)

    def pause_writing(self) -> None:
        """Stop reading while the peer does not take our answers: memory stays bounded."""
        self._paused = True
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Go on where we stopped."""
        self._paused = False
        self._transport.resume_reading()
        if self._buffer:
            data, self._buffer = self._buffer, b""
            self._process(data)

    def cut_if_late(self, now: int, deadlines: Deadlines) -> None:
        """Close when nothing came for too long, abort when a request or its reader takes too long."""
        waited = now - self._since
        if self._buffer or self._paused:
            if waited > deadlines.request_s:
                self._transport.abort()
        elif waited > deadlines.idle_s:
            self._transport.close()

    def close(self) -> None:
        """Close after what was written."""
        self._transport.close()
