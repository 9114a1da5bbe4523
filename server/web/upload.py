"""Large request bodies, in pieces: bounded in time as a whole, and never slower than a minimum pace."""

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web

from server.errors import InvalidRequest

PACE_BYTES_PER_S = 4096


def body_pieces(request: web.Request, *, deadline_s: float, patience_s: float) -> Callable[[], Awaitable[bytes]]:
    """Return a function that returns the next piece of the body, empty at its end.

    Raises 408 after `deadline_s`, and when the sender lags `patience_s` behind 4 KiB/s; only the time in which we
    wait for it counts for that. Raises `InvalidRequest` for a body that ends early.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + deadline_s
    waited = 0.0
    received = 0

    async def piece() -> bytes:
        nonlocal waited, received
        begin = loop.time()
        latest = begin + patience_s + received / PACE_BYTES_PER_S - waited
        try:
            async with asyncio.timeout_at(min(end, latest)):
                data = await request.content.readany()
        except TimeoutError:
            late = (
                f"within {deadline_s:g} s" if end <= latest else f"at {PACE_BYTES_PER_S // 1024} KiB/s or faster"
            )
            raise web.HTTPRequestTimeout(text=f"the body did not arrive {late}") from None
        except (web.RequestPayloadError, ConnectionError):
            raise InvalidRequest(
                "the body ended early or is not in the encoding that its header names",
                remedy="send the whole body, as Content-Length, Transfer-Encoding and Content-Encoding say",
            ) from None
        waited += loop.time() - begin
        received += len(data)
        return data

    return piece
