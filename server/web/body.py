"""Request bodies: bounded in size, and in time as a whole (aiohttp bounds neither the time nor slow senders)."""

import asyncio
from typing import TypeVar

import msgspec
from aiohttp import web

from server.errors import InvalidRequest

T = TypeVar("T")


async def read_body(request: web.Request, *, deadline_s: float) -> bytes:
    """Return the whole body; raises 408 after `deadline_s`, 413 beyond the limit, `InvalidRequest`."""
    try:
        async with asyncio.timeout(deadline_s):
            return await request.read()
    except TimeoutError:
        raise web.HTTPRequestTimeout(text=f"the body did not arrive within {deadline_s:g} s") from None
    except (web.RequestPayloadError, ConnectionError):
        raise InvalidRequest(
            "the body ended early or is not in the encoding that its header names",
            remedy="send a body of Content-Length octets, without Content-Encoding",
        ) from None


def decode_json(body: bytes, kind: type[T]) -> T:
    """Decode a JSON body strictly; raises `InvalidRequest` that names the field."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        reason, _, where = str(error).partition(" - at `$.")
        raise InvalidRequest(
            reason,
            field=where.rstrip("`") or None,
            remedy="send the fields that /docs describes, and no others",
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(
            f"the body is not JSON: {error}", remedy="send a JSON object (RFC 8259) in UTF-8"
        ) from None
