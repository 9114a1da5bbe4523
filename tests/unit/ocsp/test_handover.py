"""A connection after its hand-over: bounded while it is answered, ended when its peer will not ask again."""

import asyncio
from pathlib import Path

import pytest
from aiohttp import web

from ocsp.deadlines import Deadlines
from ocsp.handover import HandedOver
from ocsp.slow_writer import write_slowly
from tests.unit.ocsp.stores import Clock
from tests.unit.ocsp.transports import Successor, Transport

DEADLINES = Deadlines(handed_over_s=600, answer_s=3600)
BEGINNING = 1000


class Connection:
    """One that was handed over at BEGINNING, with a clock of its own."""

    def __init__(self) -> None:
        self.clock = Clock(BEGINNING)
        self.transport = Transport()
        self.successor = Successor()
        self.gone: list[HandedOver] = []
        self.handed_over = HandedOver(
            self.transport, self.successor, clock=lambda: int(self.clock()), forget=self.gone.append
        )
        self.handed_over.take_over(b"GET /")

    def sweep(self, after_s: int) -> list[str]:
        self.clock.now = BEGINNING + after_s
        self.handed_over.cut_if_late(BEGINNING + after_s, DEADLINES)
        return self.transport.done


@pytest.fixture
def connection() -> Connection:
    return Connection()


async def settled() -> None:
    """Let the loop turn for longer than a half-closed connection is kept for an answer that may begin."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_everything_is_passed_on(connection: Connection) -> None:
    handed_over = connection.handed_over
    assert connection.transport.protocol is handed_over
    handed_over.data_received(b"more")
    handed_over.pause_writing()
    handed_over.resume_writing()
    assert handed_over.eof_received() is True
    handed_over.connection_lost(None)
    assert connection.successor.received == b"GET /more"
    assert connection.successor.calls == ["made", "pause", "resume", "eof", "lost"]
    assert connection.gone == [handed_over]


def test_connection_in_use_is_not_cut_however_old(connection: Connection) -> None:
    for after_s in range(0, 20_000, 500):
        assert connection.sweep(after_s) == []
        connection.handed_over.data_received(b"GET /")
        connection.handed_over.begin_answer()
        connection.handed_over.end_answer()


def test_silent_connection_is_cut(connection: Connection) -> None:
    assert connection.sweep(600) == []
    assert connection.sweep(601) == ["abort"]


@pytest.mark.parametrize("sign", ["data_received", "resume_writing", "begin_answer", "end_answer"])
def test_every_sign_of_life_counts(connection: Connection, sign: str) -> None:
    connection.clock.now = BEGINNING + 500
    getattr(connection.handed_over, sign)(*[b"x"] * (sign == "data_received"))
    assert connection.sweep(1100) == []
    assert connection.sweep(1101) == ["abort"]


def test_answer_that_is_taken_drop_by_drop_has_an_end(connection: Connection) -> None:
    connection.handed_over.begin_answer()
    for after_s in range(100, 3601, 100):
        connection.handed_over.pause_writing()
        connection.handed_over.resume_writing()
        assert connection.sweep(after_s) == []
    assert connection.sweep(3601) == ["abort"]


async def test_half_closed_peer_gets_every_answer_before_the_end(connection: Connection) -> None:
    handed_over = connection.handed_over
    handed_over.begin_answer()
    assert handed_over.eof_received() is True
    await settled()
    assert connection.transport.done == [], "the answer is still being made"
    handed_over.end_answer()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    handed_over.begin_answer()  # the next of a pipeline
    await settled()
    assert connection.transport.done == []
    handed_over.end_answer()
    await settled()
    assert connection.transport.done == ["close"]


async def test_half_closed_peer_that_is_owed_nothing_is_let_go(connection: Connection) -> None:
    connection.handed_over.begin_answer()
    connection.handed_over.end_answer()
    await settled()
    assert connection.transport.done == [], "it may ask again"
    connection.handed_over.eof_received()
    await settled()
    assert connection.transport.done == ["close"]


async def test_server_without_our_connections_is_as_anonymous(tmp_path: Path) -> None:
    runner = web.AppRunner(web.Application())
    await runner.setup()
    assert runner.server is not None
    write_slowly(runner.server)
    await web.UnixSite(runner, str(tmp_path / "s")).start()
    reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
    writer.write(b"GET / HTTP/1.0\r\n\r\n")
    answer = await reader.read()
    assert answer.startswith(b"HTTP/1.0 404 ")
    assert b"\nServer:" not in answer
    writer.close()
    await writer.wait_closed()
    await runner.cleanup()
