"""The fast path's connection, with a transport that the test plays and a real store behind it."""

import asyncio
import base64
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from ocsp.answers import Answers, Result
from ocsp.deadlines import Deadlines
from ocsp.protocol import REMEMBERED_REQUESTS, Listener
from ocsp.store import ResponseKey, Status
from ocsp.wire import MAX_HEAD_BYTES, Scanner
from pkix.ocsp_request import TRY_LATER, UNAUTHORIZED
from tests.unit.ocsp.stores import NOW, SHA1, SHA256, Clock, fill, key, response
from tests.unit.ocsp.transports import Successor, Transport

GOOD, REVOKED, SHA1_ONLY, PENDING = 1, 2, 3, 4
HOST = b" HTTP/1.1\r\nHost: a\r\n"


def question(serial: int, algorithm: hashes.HashAlgorithm | None = None) -> bytes:
    chosen = algorithm or hashes.SHA1()
    names = SHA1 if chosen.digest_size == 20 else SHA256
    builder = ocsp.OCSPRequestBuilder().add_certificate_by_hash(*names, serial, chosen)
    return builder.build().public_bytes(Encoding.DER)


def get(serial: int, extra: bytes = b"", algorithm: hashes.HashAlgorithm | None = None) -> bytes:
    return b"GET /ocsp/" + base64.b64encode(question(serial, algorithm)) + HOST + extra + b"\r\n"


def post(serial: int) -> bytes:
    body = question(serial)
    return (
        b"POST /ocsp"
        + HOST
        + b"Content-Type: application/ocsp-request\r\nContent-Length: %d\r\n\r\n%b"
        % (
            len(body),
            body,
        )
    )


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def successors() -> list[Successor]:
    """All that were made."""
    return []


@pytest.fixture
def listener(tmp_path: Path, clock: Clock, successors: list[Successor]) -> Iterator[Listener]:
    fill(
        tmp_path,
        [
            (key(GOOD), response()),
            (key(REVOKED), response(Status.REVOKED, b"revoked")),
            (key(SHA1_ONLY), response()),
            (key(PENDING), response(Status.REVOCATION_PENDING)),
        ],
    )
    answers = Answers(tmp_path, max_age_cap_s=3600, clock=clock)
    answers.tick()

    def make_successor() -> Successor:
        successors.append(Successor())
        return successors[-1]

    yield Listener(
        answers=answers,
        scanner=Scanner("/ocsp"),
        successor=make_successor,
        max_connections=2,
        deadlines=Deadlines(),
    )
    answers.close()


def connect(listener: Listener) -> tuple[asyncio.Protocol, Transport]:
    protocol, transport = listener.connect(), Transport()
    protocol.connection_made(transport)
    return protocol, transport


def test_answers_come_in_order_however_the_questions_arrive(listener: Listener) -> None:
    stream = get(GOOD) + post(REVOKED) + get(99) + get(PENDING) + post(GOOD)
    expected = [b"good", b"revoked", UNAUTHORIZED, TRY_LATER, b"good"]
    for size in (1, 2, 7, 50, len(stream)):
        protocol, transport = connect(listener)
        for start in range(0, len(stream), size):
            protocol.data_received(stream[start : start + size])
        assert transport.bodies == expected
        assert transport.done == []
        protocol.connection_lost(None)
    assert listener.open_connections() == 0
    assert listener.answers.fast[Result.GOOD] == 10


def test_remembered_answer_lasts_for_its_second_and_generation(
    listener: Listener, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol, transport = connect(listener)
    reads: list[object] = []
    reader = listener.answers._reader
    assert reader is not None
    read = reader.read

    def counted_read(where: ResponseKey) -> bytes | None:
        reads.append(where)
        return read(where)

    monkeypatch.setattr(reader, "read", counted_read)
    generation = itertools.count(1)
    current = next(generation)
    monkeypatch.setattr(reader, "generation", lambda: current)
    for _ in range(3):
        protocol.data_received(get(GOOD))
    assert len(reads) == 1
    clock.now += 1
    protocol.data_received(get(GOOD))
    assert len(reads) == 2
    current = next(generation)
    protocol.data_received(get(GOOD))
    protocol.data_received(get(GOOD))
    assert len(reads) == 3
    assert transport.bodies == [b"good"] * 6
    assert transport.written[0] == transport.written[2]
    assert transport.written[2] != transport.written[3]
    assert listener.answers.fast[Result.GOOD] == 6


def test_remembered_answer_is_forgotten_when_it_may_not_be_served_any_more(
    listener: Listener, clock: Clock
) -> None:
    protocol, transport = connect(listener)
    protocol.data_received(get(GOOD))
    assert list(listener.remembered) == [get(GOOD)]
    clock.now += 10 * 86400
    protocol.data_received(get(GOOD))
    assert transport.bodies == [b"good", TRY_LATER]
    assert listener.remembered == {}


def test_what_is_remembered_is_bounded(listener: Listener) -> None:
    protocol, _ = connect(listener)
    protocol.data_received(get(GOOD, b"X: " + b"x" * 1000 + b"\r\n"))
    assert listener.remembered == {}, "long requests are not kept"
    other = (key(REVOKED), 0, 0, b"", 0)
    listener.remembered.update({number.to_bytes(2, "big"): other for number in range(REMEMBERED_REQUESTS)})
    protocol.data_received(get(GOOD))
    assert list(listener.remembered) == [get(GOOD)]


@pytest.mark.parametrize(
    "unknown",
    [
        get(GOOD, b"Connection: close\r\n"),
        get(SHA1_ONLY, algorithm=hashes.SHA256()),
        b"GET /crl/issuing.crl" + HOST + b"\r\n",
        b"\x16\x03\x01 not HTTP\r\n\r\n",
        b"GET /ocsp/AAAA" + HOST + b"\r\n",
    ],
    ids=["close", "needs the authority", "another path", "not HTTP", "no OCSP request"],
)
def test_first_request_that_is_not_known_takes_the_connection_with_it(
    listener: Listener, clock: Clock, successors: list[Successor], unknown: bytes
) -> None:
    protocol, transport = connect(listener)
    rest = unknown + get(REVOKED)
    protocol.data_received(get(GOOD) + rest)
    assert transport.bodies == [b"good"]
    (successor,) = successors
    assert successor.received == rest
    assert listener.handovers == 1
    assert listener.connections == set()
    assert listener.open_connections() == 1
    handed_over = cast("asyncio.Protocol", transport.protocol)
    handed_over.data_received(b"more")
    assert successor.received == rest + b"more"
    clock.now += 601
    listener.answers.finisher.tick()
    listener.sweep()
    assert transport.done == ["abort"], "nobody keeps a connection for ever"
    handed_over.connection_lost(None)
    assert listener.open_connections() == 0


def old(message: bytes) -> bytes:
    return message.replace(b"HTTP/1.1", b"HTTP/1.0")


@pytest.mark.parametrize(
    ("message", "body"), [(get(GOOD), b"good"), (post(GOOD), b"good"), (get(99), UNAUTHORIZED)]
)
def test_http_1_0_is_answered_and_closed(listener: Listener, message: bytes, body: bytes) -> None:
    for _ in range(2):
        protocol, transport = connect(listener)
        protocol.data_received(get(REVOKED) + old(message) + get(REVOKED))
        assert transport.bodies == [b"revoked", body], "nothing after it"
        assert transport.written[1].startswith(b"HTTP/1.1 200 OK\r\nConnection: close\r\n")
        assert transport.done == ["close"]
        protocol.connection_lost(None)
    assert list(listener.remembered) == [get(REVOKED)], "a remembered answer would not close"
    assert listener.handovers == 0
    assert sum(listener.answers.fast) == 4


def test_http_1_0_that_is_not_known_is_handed_over(listener: Listener, successors: list[Successor]) -> None:
    protocol, transport = connect(listener)
    message = old(get(SHA1_ONLY, algorithm=hashes.SHA256()))
    protocol.data_received(message)
    assert [successor.received for successor in successors] == [message]
    assert (transport.written, transport.done) == ([], [])


def test_remembered_request_finds_a_store_that_broke_again(listener: Listener) -> None:
    protocol, transport = connect(listener)
    protocol.data_received(get(GOOD))
    reader = listener.answers._reader
    assert reader is not None
    reader._env.close()
    listener.remembered[get(GOOD)] = (key(GOOD), -1, 0, b"", 0)  # as of another second
    protocol.data_received(get(GOOD))
    listener.remembered[get(GOOD)] = (key(GOOD), -1, 0, b"", 0)
    protocol.data_received(get(GOOD))
    assert transport.bodies == [b"good", TRY_LATER, b"good"]


def test_endless_head_is_refused(listener: Listener) -> None:
    protocol, transport = connect(listener)
    protocol.data_received(b"GET /ocsp/" + b"A" * MAX_HEAD_BYTES)
    assert transport.written[0].startswith(b"HTTP/1.1 431 ")
    assert transport.done == ["close"]


def test_one_connection_too_many_is_refused_in_words(listener: Listener) -> None:
    first, _ = connect(listener)
    connect(listener)
    assert listener.is_full()
    third, transport = connect(listener)
    assert transport.written[0].startswith(b"HTTP/1.1 503 ")
    assert transport.done == ["close"]
    assert listener.refused_connections == 1
    third.connection_lost(None)
    first.connection_lost(None)
    _, transport = connect(listener)
    assert transport.done == []


def test_peer_that_does_not_read_is_not_read_from(listener: Listener) -> None:
    protocol, transport = connect(listener)
    protocol.pause_writing()
    for _ in range(3):
        protocol.data_received(get(GOOD))
    assert transport.written == []
    protocol.resume_writing()
    assert transport.bodies == [b"good"] * 3
    assert transport.done == ["pause", "resume"]
    protocol.pause_writing()
    protocol.resume_writing()
    assert len(transport.written) == 3


def test_pipeline_stops_in_the_middle_when_the_peer_does_not_read(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol, transport = connect(listener)
    write = transport.write

    def write_and_fill(data: bytes) -> None:
        write(data)
        if len(transport.written) == 2:
            protocol.pause_writing()

    monkeypatch.setattr(transport, "write", write_and_fill)
    protocol.data_received(get(GOOD) + get(REVOKED) + get(GOOD) + b"PUT /")
    assert transport.bodies == [b"good", b"revoked"]
    protocol.resume_writing()
    assert transport.bodies == [b"good", b"revoked", b"good"]


def later(listener: Listener, clock: Clock, seconds: int) -> None:
    clock.now = NOW + seconds
    listener.answers.finisher.tick()
    listener.sweep()


def test_idle_connection_is_closed_after_its_time(listener: Listener, clock: Clock) -> None:
    protocol, transport = connect(listener)
    later(listener, clock, 70)
    protocol.data_received(get(GOOD))
    later(listener, clock, 145)
    assert transport.done == []
    later(listener, clock, 146)
    assert transport.done == ["close"]


def test_request_that_never_ends_is_cut_however_steadily_it_drips(listener: Listener, clock: Clock) -> None:
    protocol, transport = connect(listener)
    later(listener, clock, 60)
    message = get(GOOD)
    for second, byte in enumerate(message[:10]):
        later(listener, clock, 60 + second)
        protocol.data_received(bytes((byte,)))
    assert transport.done == []
    later(listener, clock, 71)
    assert transport.done == ["abort"]


def test_peer_that_never_reads_is_cut(listener: Listener, clock: Clock) -> None:
    protocol, transport = connect(listener)
    protocol.data_received(get(GOOD))
    protocol.pause_writing()
    later(listener, clock, 10)
    assert transport.done == ["pause"]
    later(listener, clock, 11)
    assert transport.done == ["pause", "abort"]


def test_draining_closes_what_is_open(listener: Listener) -> None:
    _, transport = connect(listener)
    listener.drain()
    assert transport.done == ["close"]
