"""Around every request: an id, a deadline, a log line, two metrics, and errors turned into problems."""

import asyncio
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web
from structlog.typing import FilteringBoundLogger

from server.metrics import AuthorityMetrics
from server.web.problem import kind_of, problem_response

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
REQUEST_ID: web.RequestKey[str] = web.RequestKey("request_id", str)
ADDED_HEADERS: web.RequestKey[Mapping[str, str]] = web.RequestKey("added_headers", dict)
"""What a handler wants on its answer, also where that is a problem."""
_ACCEPTABLE_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")
_SERVER_FAULT = 500
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}


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
        try:
            async with asyncio.timeout(deadline_s):
                response = await handler(request)
        except Exception as error:
            failure = error
            response = problem_response(error, request_id)
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
    elif response.status >= _SERVER_FAULT:
        bug = kind_of(failure).slug == "internal"
        logger.error(
            "request failed",
            error=str(failure) or kind_of(failure).title,
            exc_info=failure if bug else None,
            **fields,
        )
    else:
        logger.info("request refused", error=str(failure), **fields)
