"""Around every request: an id, a deadline, a log line, two metrics, and errors turned into problems."""

import asyncio
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from aiohttp import web
from structlog.typing import FilteringBoundLogger

from server.metrics import AuthorityMetrics
from server.web.problem import kind_of, problem_response

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
H = TypeVar("H", bound=Callable[..., Awaitable[web.StreamResponse]])
REQUEST_ID: web.RequestKey[str] = web.RequestKey("request_id", str)
ADDED_HEADERS: web.RequestKey[Mapping[str, str]] = web.RequestKey("added_headers", dict)
"""What a handler wants on its answer, also where that is a problem."""
_STREAM: web.RequestKey[web.StreamResponse] = web.RequestKey("stream", web.StreamResponse)
_ACCEPTABLE_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")
_SERVER_FAULT = 500
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}


def own_deadline(handler: H) -> H:
    """Mark a handler that keeps deadlines of its own: it lasts as long as its client needs, within bounds."""
    handler.own_deadline = True  # type: ignore[attr-defined]
    return handler


async def begin_stream(request: web.Request, response: web.StreamResponse) -> None:
    """Send the head of a response whose body follows piece by piece.

    From now on an error cannot become a problem: the connection is cut, so that nobody takes what has arrived
    for the whole.
    """
    response.headers["X-Request-Id"] = request[REQUEST_ID]
    response.headers.update(_HEADERS)
    request[_STREAM] = response
    await response.prepare(request)


def observe(
    listener: str,
    *,
    deadline_s: float,
    metrics: AuthorityMetrics,
    logger: FilteringBoundLogger,
) -> Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]:
    """Make the middleware of one listener."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        start = time.perf_counter()
        request_id = _request_id(request)
        request[REQUEST_ID] = request_id
        failure: BaseException | None = None
        own = getattr(request.match_info.handler, "own_deadline", False)
        try:
            async with asyncio.timeout(None if own else deadline_s):
                response = await handler(request)
        except Exception as error:
            failure = error
            begun = request.get(_STREAM)
            response = problem_response(error, request_id) if begun is None else _cut(request, begun)
        response.headers["X-Request-Id"] = request_id
        response.headers.update(_HEADERS)
        response.headers.update(request.get(ADDED_HEADERS, {}))
        elapsed = time.perf_counter() - start
        route = _route(request)
        metrics.http_requests.labels(listener, route, request.method, str(response.status)).inc()
        metrics.http_request_seconds.labels(listener, route).observe(elapsed)
        _log(logger, request, response, failure, elapsed)
        return response

    return middleware


def _cut(request: web.Request, begun: web.StreamResponse) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.abort()
    return begun


def _request_id(request: web.Request) -> str:
    """Take the caller's id if it is harmless, else draw one."""
    given = request.headers.get("X-Request-Id", "")
    return given if _ACCEPTABLE_ID.fullmatch(given) else secrets.token_hex(8)


def _route(request: web.Request) -> str:
    """Return the route's template: paths themselves would make unbounded label values."""
    resource = request.match_info.route.resource
    return "none" if resource is None else resource.canonical


def _log(
    logger: FilteringBoundLogger,
    request: web.Request,
    response: web.StreamResponse,
    failure: BaseException | None,
    elapsed: float,
) -> None:
    fields: dict[str, object] = {
        "request_id": request[REQUEST_ID],
        "method": request.method,
        "path": request.path,
        "status": response.status,
        "ms": round(elapsed * 1000, 2),
    }
    if failure is None:
        logger.info("request", **fields)
    elif isinstance(failure, ConnectionError) and request.get(_STREAM) is not None:
        logger.info("request: the client went away", **fields)
    elif response.status >= _SERVER_FAULT or request.get(_STREAM) is not None:
        bug = kind_of(failure).slug == "internal"
        logger.error(
            "request failed",
            error=str(failure) or kind_of(failure).title,
            exc_info=failure if bug else None,
            **fields,
        )
    else:
        logger.info("request refused", error=str(failure), **fields)
