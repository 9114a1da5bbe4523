"""Asking the authority: one question for many askers, bounded, with a deadline."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from ocsp.errors import AuthorityUnavailable
from ocsp.forward import Forwarder
from tests.unit.ocsp.stores import key

Handler = Callable[[web.Request], Awaitable[web.Response]]


@asynccontextmanager
async def signing_at(path: Path, handler: Handler) -> AsyncIterator[None]:
    app = web.Application()
    app.add_routes([web.post("/ocsp/sign", handler)])
    runner = web.AppRunner(app, shutdown_timeout=0.01)
    await runner.setup()
    await web.UnixSite(runner, str(path)).start()
    yield
    await runner.cleanup()


async def test_askers_of_one_certificate_share_one_question(tmp_path: Path) -> None:
    asked: list[bytes] = []
    go = asyncio.Event()

    async def handler(request: web.Request) -> web.Response:
        asked.append(await request.read())
        await go.wait()
        return web.Response(body=b"signed " + asked[-1])

    forwarder = Forwarder(tmp_path / "s")
    async with signing_at(tmp_path / "s", handler):
        tasks = [asyncio.ensure_future(forwarder.sign(key(1), b"one")) for _ in range(5)]
        tasks.append(asyncio.ensure_future(forwarder.sign(key(2), b"two")))
        await asyncio.sleep(0)
        tasks[0].cancel()
        go.set()
        done = await asyncio.wait(tasks)
        assert len(done[0]) == 6
        assert [task.result() for task in tasks[1:]] == [b"signed one"] * 4 + [b"signed two"]
        assert sorted(asked) == [b"one", b"two"]
        assert await forwarder.sign(key(1), b"again") == b"signed again"
    assert (forwarder.succeeded, forwarder.failed) == (3, 0)


@pytest.mark.parametrize(("status", "body"), [(503, b"later"), (200, b"")])
async def test_refusal_is_a_typed_error(tmp_path: Path, status: int, body: bytes) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(status=status, body=body)

    forwarder = Forwarder(tmp_path / "s")
    async with signing_at(tmp_path / "s", handler):
        with pytest.raises(AuthorityUnavailable, match=str(status)):
            await forwarder.sign(key(1), b"")
    assert forwarder.failed == 1


async def test_absent_authority_is_a_typed_error(tmp_path: Path) -> None:
    forwarder = Forwarder(tmp_path / "nobody")
    with pytest.raises(AuthorityUnavailable, match="does not answer"):
        await forwarder.sign(key(1), b"")
    (tmp_path / "file").write_text("")
    with pytest.raises(AuthorityUnavailable):
        await Forwarder(tmp_path / "file").sign(key(1), b"")


async def test_silent_authority_is_left_at_the_deadline_and_askers_are_bounded(tmp_path: Path) -> None:
    async def silent(_: web.Request) -> web.Response:
        await asyncio.sleep(60)
        raise AssertionError

    forwarder = Forwarder(tmp_path / "s", waiting=2, deadline_s=0.2)
    async with signing_at(tmp_path / "s", silent):
        tasks = [asyncio.ensure_future(forwarder.sign(key(serial), b"")) for serial in (1, 2)]
        await asyncio.sleep(0)
        with pytest.raises(AuthorityUnavailable, match="too many"):
            await forwarder.sign(key(3), b"")
        for task in tasks:
            with pytest.raises(AuthorityUnavailable):
                await task
    assert forwarder.failed == 3


async def test_failure_that_nobody_waits_for_is_quiet(tmp_path: Path) -> None:
    forwarder = Forwarder(tmp_path / "nobody")
    asker = asyncio.ensure_future(forwarder.sign(key(1), b""))
    await asyncio.sleep(0)
    asker.cancel()
    await asyncio.wait([asker, *forwarder._running.values()])
    assert forwarder.failed == 1
    await forwarder.close()


async def test_closing_ends_what_runs(tmp_path: Path) -> None:
    async def silent(_: web.Request) -> web.Response:
        await asyncio.sleep(60)
        raise AssertionError

    forwarder = Forwarder(tmp_path / "s")
    async with signing_at(tmp_path / "s", silent):
        asker = asyncio.ensure_future(forwarder.sign(key(1), b""))
        await asyncio.sleep(0.05)
        await forwarder.close()
        with pytest.raises(asyncio.CancelledError):
            await asker
