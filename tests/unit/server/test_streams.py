"""Bodies that last: up in pieces and never too slowly, down in pieces and never half for whole."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from prometheus_client import CollectorRegistry

from server.errors import InvalidRequest, StorageError
from server.metrics import AuthorityMetrics
from server.web.listeners import application
from server.web.middleware import begin_stream, observe, own_deadline
from server.web.upload import body_pieces
from tests.support.authority import quiet_logger


class Sender:
    """A request whose body arrives in given pieces, each after a delay."""

    def __init__(self, *pieces: tuple[float, bytes | Exception]) -> None:
        self.content = self
        self._pieces = iter(pieces)

    async def readany(self) -> bytes:
        delay_s, piece = next(self._pieces, (0.0, b""))
        await asyncio.sleep(delay_s)
        if isinstance(piece, Exception):
            raise piece
        return piece


async def read_all(sender: Sender, *, deadline_s: float = 5, patience_s: float = 0.2) -> bytes:
    request: Any = sender
    piece = body_pieces(request, deadline_s=deadline_s, patience_s=patience_s)
    body = b""
    while data := await piece():
        body += data
    return body


async def test_a_body_is_read_to_its_end() -> None:
    assert await read_all(Sender((0, b"ab"), (0.01, b"c"))) == b"abc"


@pytest.mark.parametrize(
    ("sender", "limits", "words"),
    [
        (Sender((0, b"a"), (3, b"b")), {}, "4 KiB/s or faster"),
        (Sender(*[(0.05, b"a")] * 100), {}, "4 KiB/s or faster"),
        (Sender(*[(0.02, b"a" * 4096)] * 100), {"deadline_s": 0.2}, "within 0.2 s"),
    ],
)
async def test_a_slow_sender_is_refused(sender: Sender, limits: dict[str, float], words: str) -> None:
    with pytest.raises(web.HTTPRequestTimeout) as caught:
        await asyncio.wait_for(read_all(sender, **limits), 2)
    assert words in str(caught.value.text)


async def test_what_was_fast_may_pause_longer() -> None:
    assert len(await read_all(Sender((0, b"a" * 4096), (0.5, b"b")))) == 4097


@pytest.mark.parametrize("error", [ConnectionResetError(), web.RequestPayloadError()])
async def test_a_body_that_ends_early_is_refused(error: Exception) -> None:
    with pytest.raises(InvalidRequest, match="ended early"):
        await read_all(Sender((0, b"a"), (0, error)))


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@own_deadline
async def whole(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await begin_stream(request, response)
    await response.write(b"first ")
    await asyncio.sleep(0.3)
    await response.write(b"second")
    return response


@own_deadline
async def half(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await begin_stream(request, response)
    await response.write(b"first ")
    raise StorageError("the database went away")


async def slow(_request: web.Request) -> web.Response:
    await asyncio.sleep(5)
    return web.Response()


@pytest.fixture
async def url() -> AsyncIterator[str]:
    around = observe("api", deadline_s=0.1, metrics=AuthorityMetrics(CollectorRegistry()), logger=quiet_logger())
    routes = [web.get("/whole", whole), web.get("/half", half), web.get("/slow", slow)]
    async with TestServer(application(routes, around, max_body_bytes=100)) as server:
        yield str(server.make_url(""))


async def test_a_stream_outlasts_the_deadline_of_others_and_has_our_headers(url: str) -> None:
    async with aiohttp.ClientSession() as session, session.get(url + "/whole") as response:
        assert await response.read() == b"first second"
        assert response.headers["X-Request-Id"]
        assert response.headers["X-Content-Type-Options"] == "nosniff"
    async with aiohttp.ClientSession() as session, session.get(url + "/slow") as response:
        assert response.status == 503


async def test_a_stream_that_fails_is_cut_so_that_nobody_takes_it_for_whole(url: str) -> None:
    async with aiohttp.ClientSession() as session, session.get(url + "/half") as response:
        with pytest.raises(aiohttp.ClientError):
            await response.read()
