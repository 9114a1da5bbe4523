"""One HTTP call until it has an answer: the same request again, after what certmill asks for, until the deadline.

Only requests that may be repeated come here: reads, and writes that certmill does once however often it hears them
(by their Idempotency-Key, or because the second does nothing).
"""

import datetime as dt
import email.utils
import random
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, TypeGuard
from urllib.parse import urlsplit

import urllib3
from urllib3.exceptions import HTTPError

from client.errors import CertmillError, CertmillProblem, CertmillUnreachable, CertmillUntrusted

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.25, 8.0
_CONNECT_S, _LEAST_S = 10.0, 0.1
_PIECE_BYTES = 64 * 1024
_OK = range(200, 300)
_OVER_A_LIMIT = 429
_DROPPED = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
_PERHAPS = "; if this goes on: is the client certificate of this CA, and not expired?"  # servers may just hang up
_WHOSE = "; is the root that of this CA, and the host of the URL one that its API's certificate names?"

Tell = Callable[[CertmillError, float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is sent. A file as `body` must be seekable: each attempt sends it from where it stands now."""

    method: str
    path: str  # with the query
    headers: Mapping[str, str]
    body: bytes | BinaryIO | None = None


class Transport:
    """TLS connections to one certmill, with the client's certificate. Threads may share it.

    `timeout_s`: how long one attempt may be without a sign of life. `tell` hears of each failed attempt and how
    long (s) it is until the next one.
    """

    def __init__(
        self,
        url: str,
        tls: ssl.SSLContext,
        *,
        timeout_s: float,
        tell: Tell,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        where = urlsplit(url)
        self._pool = urllib3.HTTPSConnectionPool(
            where.hostname or "", where.port or 443, ssl_context=tls, retries=False, maxsize=8
        )
        self._prefix, self._timeout_s, self._tell = where.path.rstrip("/"), timeout_s, tell
        self._clock, self._chance, self.sleep = clock, chance, sleep

    def close(self) -> None:
        """Close all connections."""
        self._pool.close()

    def call(self, request: Request, *, deadline_s: float) -> bytes:
        """Return the body of the answer.

        Raises `CertmillProblem` and `CertmillUntrusted` at once for what repeating cannot mend. What may pass is
        raised (`CertmillProblem`, `CertmillUnreachable`) when `deadline_s` leaves no time for another attempt.
        """
        return self._until_answered(request, deadline_s, whole=True).data

    @contextmanager
    def stream(self, request: Request, *, deadline_s: float) -> Iterator[tuple[str, Iterator[bytes]]]:
        """Give the content type and the pieces of an answer's body; reading them raises `CertmillUnreachable`."""
        response = self._until_answered(request, deadline_s, whole=False)
        try:
            yield response.headers.get("Content-Type", ""), _pieces(response)
        finally:
            response.close()

    def _until_answered(self, request: Request, deadline_s: float, *, whole: bool) -> urllib3.BaseHTTPResponse:
        end, wait_s = self._clock() + deadline_s, _FIRST_WAIT_S
        start = request.body.tell() if _is_file(request.body) else 0
        heard = False
        while True:
            try:
                if _is_file(request.body):
                    request.body.seek(start)
                return self._once(request, end - self._clock(), whole=whole)
            except CertmillError as error:
                error.idempotency_key, error.repeated = request.headers.get("Idempotency-Key"), heard
                asked_s = error.retry_after_s if isinstance(error, CertmillProblem) else None
                pause_s = wait_s * (1 + self._chance()) / 2 if asked_s is None else asked_s
                if not _may_pass(error) or self._clock() + pause_s >= end:
                    raise
                self._tell(error, pause_s)
                # What was over a limit was turned away before anything could come of it.
                heard |= not (isinstance(error, CertmillProblem) and error.status == _OVER_A_LIMIT)
            self.sleep(pause_s)
            wait_s = min(wait_s * 2, _LONGEST_WAIT_S)

    def _once(self, request: Request, left_s: float, *, whole: bool) -> urllib3.BaseHTTPResponse:
        silence_s = max(_LEAST_S, min(self._timeout_s, left_s))
        connect_s = silence_s if _is_file(request.body) else min(_CONNECT_S, silence_s)  # it rules sending, too
        try:
            response = self._pool.request(
                request.method,
                self._prefix + request.path,
                body=request.body,
                headers=dict(request.headers),
                timeout=urllib3.Timeout(connect=connect_s, read=silence_s),
                redirect=False,
                preload_content=whole,
            )
            if response.status not in _OK:
                raise CertmillProblem(response.status, response.data, _retry_after_s(response.headers))
        except HTTPError as error:
            raise _classified(error) from error
        return response


def _pieces(response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    try:
        while piece := response.read1(_PIECE_BYTES):
            yield piece
    except HTTPError as error:
        raise _classified(error) from error


def _is_file(body: bytes | BinaryIO | None) -> TypeGuard[BinaryIO]:
    return body is not None and not isinstance(body, bytes)


def _may_pass(error: CertmillError) -> bool:
    return isinstance(error, CertmillUnreachable) or (isinstance(error, CertmillProblem) and error.temporary)


def _classified(error: HTTPError) -> CertmillError:
    """Tell a connection that was lost from one that TLS does not allow."""
    if isinstance(error, urllib3.exceptions.SSLError) and not isinstance(error.args[0], _DROPPED):
        unknown = isinstance(error.args[0], ssl.SSLCertVerificationError)
        return CertmillUntrusted(f"TLS failed: {error}{_WHOSE if unknown else ''}")
    hung_up = isinstance(error, urllib3.exceptions.SSLError) or "RemoteDisconnected" in str(error)
    return CertmillUnreachable(f"no answer: {error}{_PERHAPS if hung_up else ''}")


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Read Retry-After (RFC 9110 §10.2.3): seconds or a date; None if it is neither."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)
    return max(0.0, (moment - dt.datetime.now(dt.UTC)).total_seconds())
