"""How a response lies in the store, and how it becomes the bytes of an HTTP answer.

An entry is laid out for the reader: status and times in a fixed struct, then the part of the HTTP header that
never changes, then the body. A worker adds the lines that depend on the second, and is done.
"""

import hashlib
import struct
import time
from collections.abc import Callable
from email.utils import formatdate

from ocsp.store import Status, StoredResponse

_HEADER = struct.Struct("<BQQH")
OLDEST_SERVED_S = 7 * 86400  # Chromium's verifier takes nothing older
CONTENT_TYPE = b"application/ocsp-response"


def pack(response: StoredResponse) -> bytes:
    """Lay a response out for the store."""
    lines = b"Content-Type: %b\r\nContent-Length: %d\r\nETag: %b\r\nLast-Modified: %b\r\n" % (
        CONTENT_TYPE,
        len(response.der),
        etag(response.der),
        http_date(response.this_update),
    )
    head = _HEADER.pack(response.status, response.this_update, response.next_update, len(lines))
    return head + lines + response.der


def unpack(entry: bytes) -> StoredResponse:
    """Read an entry back."""
    status, this_update, next_update, lines = _HEADER.unpack_from(entry)
    return StoredResponse(
        status=Status(status),
        this_update=this_update,
        next_update=next_update,
        der=entry[_HEADER.size + lines :],
    )


def etag(der: bytes) -> bytes:
    """Return a strong validator (RFC 9110 §8.8.3)."""
    return b'"' + hashlib.sha256(der).hexdigest()[:32].encode() + b'"'


def http_date(seconds: int) -> bytes:
    """Return an IMF-fixdate in GMT (RFC 9110 §5.6.7)."""
    return formatdate(seconds, usegmt=True).encode()


def is_fresh(response: StoredResponse, now: int) -> bool:
    """Say whether a response may be served: before nextUpdate and not older than seven days."""
    return now < response.next_update and now - response.this_update <= OLDEST_SERVED_S


class Finisher:
    """Turns entries into HTTP answers of the present second.

    What depends on the second alone (Date, and Cache-Control and Expires where the cap binds) is made once
    for each second, not for each answer.
    """

    def __init__(self, *, max_age_cap_s: int, clock: Callable[[], float] = time.time) -> None:
        self._cap = max_age_cap_s
        self._clock = clock
        self.now = 0
        self._usual = b""
        self._error = b""

    def tick(self) -> int:
        """Look at the clock; returns whole seconds since 1970."""
        now = int(self._clock())
        if now != self.now:
            self.set_second(now)
        return now

    def set_second(self, now: int) -> None:
        """Prepare for the second `now`."""
        self.now = now
        self._usual = self._dynamic(self._cap)
        self._error = (
            b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: 5\r\nCache-Control: no-store\r\n"
            b"Date: %b\r\n\r\n" % (CONTENT_TYPE, http_date(now))
        )

    def cache_headers(self, next_update: int) -> tuple[int, int]:
        """Return max-age and the moment of Expires; max-age < time to nextUpdate (RFC 9919)."""
        max_age = max(0, min(self._cap, next_update - self.now - 1))
        return max_age, self.now + max_age

    def finish(self, entry: bytes) -> tuple[Status, bytes] | None:
        """Return status and whole HTTP answer; None if the entry may not be served any more (tryLater)."""
        status, this_update, next_update, lines = _HEADER.unpack_from(entry)
        now = self.now
        if status == Status.REVOCATION_PENDING or now >= next_update or now - this_update > OLDEST_SERVED_S:
            return None
        left = next_update - now - 1
        dynamic = self._usual if left >= self._cap else self._dynamic(left)
        start = _HEADER.size
        body = start + lines
        return Status(status), b"HTTP/1.1 200 OK\r\n" + entry[start:body] + dynamic + entry[body:]

    def error(self, body: bytes) -> bytes:
        """Return the HTTP answer for a five-octet error response; it is never cached (RFC 9919 §6)."""
        return self._error + body

    def _dynamic(self, max_age: int) -> bytes:
        return (
            b"Date: %b\r\nCache-Control: max-age=%d, public, no-transform, must-revalidate\r\nExpires: %b\r\n\r\n"
            % (http_date(self.now), max_age, http_date(self.now + max_age))
        )
