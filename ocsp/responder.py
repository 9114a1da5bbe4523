"""The slow path: everything that is not one of the two usual requests, answered by aiohttp on the same socket.

Other encodings, nonces, conditional requests, wrong methods, large and slow bodies, and answers that the
authority has to sign first. The decisions are those of `answers.py`; only the HTTP differs.
"""

import asyncio
import binascii
import email.utils
import time
from urllib.parse import unquote_to_bytes

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from ocsp.answers import Answers, Need, Result
from ocsp.errors import AuthorityUnavailable
from ocsp.forward import Forwarder
from ocsp.metrics import WorkerMetrics
from ocsp.store import ResponseKey
from pkix.errors import MalformedOcspRequest
from pkix.ocsp_request import UnknownCertIdHash, decode_request

MAX_REQUEST_BYTES = 10_000
_COPIED = ("ETag", "Last-Modified", "Cache-Control", "Expires", "Date")


class Responder:
    """Handlers under the OCSP path."""

    def __init__(
        self,
        *,
        prefix: str,
        answers: Answers,
        forwarder: Forwarder,
        metrics: WorkerMetrics,
        body_deadline_s: float,
    ) -> None:
        self._prefix = prefix
        self._answers = answers
        self._forwarder = forwarder
        self._metrics = metrics
        self._body_deadline_s = body_deadline_s

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        return [
            web.get(self._prefix, self.get),
            web.get(self._prefix + "/{request:.*}", self.get),
            web.post(self._prefix, self.post),
            web.post(self._prefix + "/", self.post),
        ]

    async def get(self, request: web.Request) -> web.Response:
        """Answer a request in the path (RFC 6960 A.1.1)."""
        start = time.perf_counter()
        depth = self._prefix.count("/") + 1  # counted, not compared: the prefix may be percent-encoded
        encoded = "".join(_path(request).split("/", depth)[depth:])
        return await self._respond(request, _decode_base64(encoded), start)

    async def post(self, request: web.Request) -> web.Response:
        """Answer a request in the body; 408 if the whole of it is not there in time."""
        start = time.perf_counter()
        try:
            async with asyncio.timeout(self._body_deadline_s):
                body = await _read_at_most(request, MAX_REQUEST_BYTES)
        except TimeoutError:
            raise web.HTTPRequestTimeout(text="the body did not arrive in time\n") from None
        return await self._respond(request, body, start)

    async def _respond(self, request: web.Request, der: bytes | None, start: float) -> web.Response:
        self._answers.finisher.tick()
        result, answer = await self._answer(der)
        response = _as_response(answer)
        if result <= Result.REVOKED and request.method in {"GET", "HEAD"} and _not_modified(request, response):
            result = Result.NOT_MODIFIED
            response = web.Response(status=304, headers={k: response.headers[k] for k in _COPIED})
        self._answers.slow[result] += 1
        self._metrics.slow_seconds.observe(time.perf_counter() - start)
        return response

    async def _answer(self, der: bytes | None) -> tuple[Result, bytes]:
        answers = self._answers
        if der is None:
            return answers.malformed()
        try:
            cert_id = decode_request(der).cert_id
        except UnknownCertIdHash:
            return answers.unknown_issuer()
        except MalformedOcspRequest:
            return answers.malformed()
        serial = cert_id.serial  # negative ones are asked for, too; no key in the store looks like theirs
        octets = serial.to_bytes(serial.bit_length() // 8 + 1, "big", signed=True)
        key = answers.key(cert_id.issuer_hashes, octets)
        answer = answers.answer(key)
        if isinstance(answer, Need) and key is not None:
            answer = await self._forward(key, der)
        return answers.try_later() if isinstance(answer, Need) else answer

    async def _forward(self, key: ResponseKey, der: bytes) -> tuple[Result, bytes] | Need:
        """Have the answer signed, then take it from the store as any other; tryLater if that fails."""
        try:
            await self._forwarder.sign(key, der)
        except AuthorityUnavailable:
            return self._answers.try_later()
        self._answers.finisher.tick()
        return self._answers.answer(key)


def _path(request: web.Request) -> str:
    """Return the path as it was sent; the target may be a whole URI (RFC 9112 §3.2.2)."""
    target = request.raw_path.partition("?")[0]
    return target if target.startswith("/") else "/" + target.partition("://")[2].partition("/")[2]


def _decode_base64(encoded: str) -> bytes | None:
    """Decode what follows the prefix: as clients really send it, after one slash too many or without padding."""
    try:
        text = unquote_to_bytes(encoded).lstrip(b"/")  # the base64 of a SEQUENCE begins with M
        if not text.endswith(b"="):
            text += b"=" * (-len(text) % 4)
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        return None


async def _read_at_most(request: web.Request, limit: int) -> bytes | None:
    """Read the body; None if it is larger than `limit` or cannot be decoded."""
    body = bytearray()
    try:
        async for chunk in request.content.iter_any():
            body += chunk
            if len(body) > limit:
                return None
    except (web.RequestPayloadError, HttpProcessingError):
        return None  # not encoded as its header says, or not chunked as it should be
    return bytes(body)


def _as_response(answer: bytes) -> web.Response:
    """Take a finished HTTP answer apart for aiohttp: both paths send the same header and body."""
    head, _, body = answer.partition(b"\r\n\r\n")
    headers = [line.split(": ", 1) for line in head.decode("ascii").split("\r\n")[1:]]
    kept = {name: value for name, value in headers if name != "Content-Length"}
    return web.Response(body=body, headers=kept)


def _not_modified(request: web.Request, response: web.Response) -> bool:
    """Evaluate If-None-Match, else If-Modified-Since (RFC 9110 §13.2.2)."""
    tags = request.headers.getall("If-None-Match", None)
    if tags is not None:  # several lines are one list (RFC 9110 §5.3)
        known = {tag.strip().removeprefix("W/") for tag in ",".join(tags).split(",")}
        return "*" in known or response.headers["ETag"] in known
    since = request.if_modified_since
    modified = email.utils.parsedate_to_datetime(response.headers["Last-Modified"])
    return since is not None and modified <= since
