"""A real worker over real sockets: every answer of RFC 9919 that needs no authority."""

import base64
import email.utils
import itertools
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from ocsp.lmdb_store import LmdbStore
from ocsp.store import Status
from pkix.ocsp_request import MALFORMED_REQUEST, TRY_LATER, UNAUTHORIZED
from tests.support.ocsp_worker import (
    HOST,
    MAX_CONNECTIONS,
    SERIALS,
    Worker,
    get,
    one,
    path_of,
    post,
    publish,
    question,
    read_answer,
    running_worker,
    stored,
)  # fmt: skip
from tests.unit.ocsp.stores import SHA1, fill, key, with_store

DAY = 86_400
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
OCSP = "application/ocsp-response"


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    home = tmp_path_factory.mktemp("worker")
    fill(home / "store", [])
    with running_worker(home) as started:
        yield started


def test_fast_and_slow_path_say_the_same(worker: Worker) -> None:
    serial = publish(worker, stored())
    while True:  # within one second, so that Date is the same
        second = int(time.time())
        fast = one(worker, get(path_of(serial)))
        answers = [
            one(worker, get(path_of(serial), "Connection: close")),
            one(worker, post(question(serial))),
            one(worker, post(question(serial), "Content-Type: application/ocsp-request", "X: \x01y")),
            one(worker, post(question(serial), "Accept: */*")),
            one(worker, get(quote(path_of(serial)))),
        ]
        if int(time.time()) == second:
            break
    assert (fast.status, fast.body) == (200, b"good")
    assert fast.headers["Content-Type"] == OCSP
    assert set(fast.headers) == {
        "Content-Type", "Content-Length", "ETag", "Last-Modified", "Date", "Cache-Control", "Expires",
    }  # fmt: skip
    for answer in [answers[0], *answers[1:2], *answers[3:]]:
        same = {name: value for name, value in answer.headers.items() if name != "Connection"}
        assert (answer.status, answer.body, same) == (200, b"good", fast.headers)
    assert answers[2].status == 400, "control characters in a header"


def test_validators_are_honoured(worker: Worker) -> None:
    serial = publish(worker, stored())
    path = path_of(serial)
    fresh = one(worker, get(path))
    tag, modified = fresh.headers["ETag"], fresh.headers["Last-Modified"]
    earlier = email.utils.formatdate(time.time() - 3600, usegmt=True)
    for header, status in [
        (f"If-None-Match: {tag}", 304),
        (f'If-None-Match: "other", W/{tag}', 304),
        ("If-None-Match: *", 304),
        ('If-None-Match: "other"', 200),
        (f"If-Modified-Since: {modified}", 304),
        (f"If-Modified-Since: {earlier}", 200),
        ("If-Modified-Since: nonsense", 200),
    ]:
        answer = one(worker, get(path, header))
        assert (answer.status, header) == (status, header)
        assert answer.headers["ETag"] == tag
        assert answer.headers["Cache-Control"] == fresh.headers["Cache-Control"]
        assert answer.body == (b"good" if status == 200 else b"")
    two_lines = one(worker, get(path, 'If-None-Match: "other"', f"If-None-Match: {tag}"))
    assert two_lines.status == 304, "they are one list (RFC 9110 §5.3)"
    both = one(worker, get(path, 'If-None-Match: "other"', f"If-Modified-Since: {modified}"))
    assert both.status == 200, "If-None-Match alone decides (RFC 9110 §13.2.2)"
    unknown = one(worker, get(path_of(next(SERIALS)), "If-None-Match: *"))
    assert (unknown.status, unknown.body) == (200, UNAUTHORIZED)


@pytest.mark.parametrize(
    "encode",
    [
        lambda path: path,
        lambda path: quote(path, safe=""),
        lambda path: quote(path).replace("%2F", "%2f").replace("%3D", "%3d"),
        lambda path: path.replace("=", "%3D"),
        lambda path: path.rstrip("="),
        lambda path: quote(path.rstrip("="), safe=""),
        lambda path: "/" + path.replace("+", "%2b"),
        lambda path: "//" + path,
        lambda path: "%2F" + path.rstrip("="),
    ],
    ids=[
        "raw", "all", "lower case", "padding", "no padding", "all, no padding", "two slashes", "three slashes",
        "encoded slash, no padding",
    ],
)  # fmt: skip
def test_get_in_every_encoding(worker: Worker, encode: Callable[[str], str]) -> None:
    serial = publish(worker, stored(), int.from_bytes(b"\xff\xef\xbe\xfb" * 4 + b"\0") + next(SERIALS))
    path = base64.b64encode(question(serial)).decode()
    assert "/" in path
    assert path.endswith("=")
    answer, canonical = one(worker, get("/ocsp/" + encode(path))), one(worker, get("/ocsp/" + path))
    assert (answer.status, answer.body) == (canonical.status, canonical.body) == (200, b"good")
    assert answer.headers["ETag"] == canonical.headers["ETag"]


def test_target_may_be_a_whole_uri(worker: Worker) -> None:
    serial = publish(worker, stored())
    path = path_of(serial)
    for target in (
        "http://ocsp.test" + path,
        "HTTP://ocsp.test:80" + path,
        "https://[::1]" + path,
        "/%6Fcs%70" + path[5:],
    ):
        assert one(worker, get(target)).body == b"good", target
    absolute = post(question(serial)).replace(b"/ocsp", b"http://ocsp.test/ocsp", 1)
    assert one(worker, absolute).body == b"good"
    assert one(worker, get("http://ocsp.test")).status == 404
    assert one(worker, get("http://ocsp.test?/ocsp/AAAA")).status == 404


def test_double_slash_inside_the_request_is_kept(worker: Worker) -> None:
    for _ in range(3000):
        serial = int.from_bytes(b"\xff\xff\xff\xff\xff" + next(SERIALS).to_bytes(4, "big") + b"\xff\xff\xff\xff")
        if "//" in path_of(serial).removeprefix("/ocsp/"):
            break
    publish(worker, stored(), serial)
    assert "//" in path_of(serial)
    assert one(worker, get(path_of(serial))).body == b"good"
    assert one(worker, get(path_of(serial), "Connection: close")).body == b"good"


def test_states(worker: Worker) -> None:
    revoked = publish(worker, stored(Status.REVOKED, b"revoked"))
    pending = publish(worker, stored(Status.REVOCATION_PENDING, b""))
    stale = publish(worker, stored(left_s=0))
    too_old = publish(worker, stored(age_s=7 * DAY + 2, left_s=3 * DAY))
    sha1_only = publish(worker, stored())
    expected = [b"revoked", TRY_LATER, TRY_LATER, TRY_LATER, UNAUTHORIZED]
    for headers in ((), ("Connection: close",)):
        serials = (revoked, pending, stale, too_old, next(SERIALS))
        answers = [one(worker, get(path_of(serial), *headers)) for serial in serials]
        assert [answer.body for answer in answers] == expected
        assert [answer.headers["Cache-Control"] for answer in answers[1:]] == ["no-store"] * 4
        assert {answer.status for answer in answers} == {200}
    assert one(worker, post(question(sha1_only, "sha256"))).body == TRY_LATER, "nobody is there to sign it"
    metrics = worker.metrics()
    assert 'certmill_ocsp_forwards_total{result="failed"} 1.0' in metrics
    assert 'certmill_ocsp_responses_total{path="slow",result="unauthorized"}' in metrics


def test_nonces(worker: Worker) -> None:
    serial = publish(worker, stored())
    for octets in (1, 15, 16, 32, 33, 128):
        assert one(worker, post(question(serial, nonce=b"n" * octets))).body == b"good"
    for octets in (0, 129):
        assert one(worker, post(question(serial, nonce=b"n" * octets))).body == MALFORMED_REQUEST


def test_unknown_serials_and_unknown_issuers_are_counted_apart(worker: Worker) -> None:
    def counted() -> tuple[float, ...]:
        return tuple(worker.counter(f"certmill_ocsp_unknown_{what}_total") for what in ("serial", "issuer"))

    def hashed(algorithm: hashes.HashAlgorithm) -> bytes:
        names = (b"n" * algorithm.digest_size, b"k" * algorithm.digest_size)
        builder = ocsp.OCSPRequestBuilder().add_certificate_by_hash(*names, serial, algorithm)
        return builder.build().public_bytes(Encoding.DER)

    serial = publish(worker, stored())
    negative, zero = (question(1).replace(b"\x02\x01\x01", b"\x02\x01" + octet) for octet in (b"\x80", b"\0"))
    for der, added in [
        (question(next(SERIALS)), (1, 0)),
        (question(next(SERIALS), "sha256"), (1, 0)),
        (question(next(SERIALS), nonce=b"n" * 16), (1, 0)),
        (question(1 << 8 * 2000), (1, 0)),
        (negative, (1, 0)),
        (zero, (1, 0)),
        (question(serial).replace(SHA1[1], b"x" * 20), (0, 1)),
        (negative.replace(SHA1[0], b"x" * 20), (0, 1)),
        (hashed(hashes.SHA384()), (0, 1)),
        (hashed(hashes.SHA512()), (0, 1)),
        (question(serial), (0, 0)),
        (b"nonsense", (0, 0)),
    ]:
        before = counted()
        answer = one(worker, post(der))
        assert tuple(b - a for a, b in zip(before, counted(), strict=True)) == added, der.hex()
        assert (answer.body == UNAUTHORIZED) == any(added)
    assert "certmill_ocsp_store_open 1.0" in worker.metrics(), "the store is not closed over a long serial number"


@pytest.mark.parametrize(
    "body", [b"", b"nonsense", b"\x30\x80" * 300, b"\x30" * 9_999, b"x" * 10_001, b"x" * 200_000]
)
def test_whatever_is_no_request_is_malformed(worker: Worker, body: bytes) -> None:
    answer = one(worker, post(body))
    assert (answer.status, answer.body, answer.headers["Content-Type"]) == (200, MALFORMED_REQUEST, OCSP)
    assert answer.headers["Cache-Control"] == "no-store"


def test_chunked_body_and_other_ways_to_speak_http(worker: Worker) -> None:
    serial = publish(worker, stored())
    body = question(serial)
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    chunked = b"POST /ocsp/ HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n" + chunks
    assert one(worker, chunked).body == b"good"
    assert one(worker, get(path_of(serial), version="1.0")).body == b"good"
    assert one(worker, get("/ocsp")).body == MALFORMED_REQUEST
    assert one(worker, get("/ocsp/")).body == one(worker, get("/ocsp/AA=A")).body == MALFORMED_REQUEST
    head = one(worker, get(path_of(serial), "Connection: close", method="PUT"))
    assert head.status == 405
    assert one(worker, get("/nothing")).status == 404
    assert one(worker, get("/nothing")).headers["Cache-Control"] == "no-store"
    assert one(worker, b"\x16\x03\x01\x02\r\n\r\n").status == 400


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br"])
@pytest.mark.parametrize("chunked", [False, True])
def test_body_that_is_not_encoded_as_it_says_is_malformed(worker: Worker, encoding: str, *, chunked: bool) -> None:
    body = question(1)
    request = post(body, "Content-Type: application/ocsp-request", f"Content-Encoding: {encoding}")
    if chunked:
        request = request.replace(b"Content-Length: %d\r\n\r\n" % len(body), CHUNKED + b"%x\r\n" % len(body))
        request += b"\r\n0\r\n\r\n"
    answer = one(worker, request)
    assert (answer.status, answer.body) == (200, MALFORMED_REQUEST)


BROKEN_BODIES = {
    "size": b"zz\r\nabc\r\n0\r\n\r\n",
    "no line end": b"3\r\nabcX0\r\n\r\n",
    "bare line feeds": b"3\nabc\n0\n\n",
    "long extension": b"3;" + b"x" * 20_000 + b"\r\nabc\r\n0\r\n\r\n",
    "long trailer": b"3\r\nabc\r\n0\r\nX: " + b"x" * 20_000 + b"\r\n\r\n",
    "many trailers": b"3\r\nabc\r\n0\r\n" + b"X: y\r\n" * 500 + b"\r\n",
    "no trailer": b"3\r\nabc\r\n0\r\nno colon\r\n\r\n",
    "control character": b"3\r\nabc\r\n0\r\nX: \0\r\n\r\n",
}


@pytest.mark.parametrize("parser", ["in C", "in Python"])
def test_broken_body_is_the_fault_of_its_sender(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parser: str
) -> None:
    monkeypatch.setenv("AIOHTTP_NO_EXTENSIONS", "1" if parser == "in Python" else "")
    fill(tmp_path / "store", [])
    head = b"POST /ocsp HTTP/1.1\r\n" + HOST + CHUNKED
    with running_worker(tmp_path) as worker:
        for (name, body), pause_s in itertools.product(BROKEN_BODIES.items(), (0, 0.02)):
            with worker.connect() as connection:
                connection.sendall(head)
                time.sleep(pause_s)  # after a pause the body is being waited for
                connection.sendall(body)
                answer = read_answer(connection)
            assert answer.status in {400, 408} or (answer.status, answer.body) == (200, MALFORMED_REQUEST), name


def test_nobody_is_told_what_software_answers(worker: Worker) -> None:
    serial = publish(worker, stored())
    for message in (
        get(path_of(serial)),
        get(path_of(serial), "If-None-Match: *"),
        get(path_of(serial), "Connection: close"),
        get("/nothing"),
        get(path_of(serial), method="PUT"),
        b"no HTTP\r\n\r\n",
        b"POST /ocsp HTTP/1.1\r\n" + HOST + CHUNKED + b"zz\r\n",
        b"POST /ocsp HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\n",
        get("/ocsp/" + "A" * 5000),
    ):
        assert not {"server", "x-powered-by"} & {name.lower() for name in one(worker, message).headers}, message


def test_half_closed_connection_gets_its_answers_and_ends(worker: Worker) -> None:
    serial = publish(worker, stored())
    nonce = post(question(serial, nonce=b"n" * 16))
    for messages, rest in (
        ([nonce], b""),
        ([nonce], nonce[:30]),  # half a head is owed nothing
        ([nonce.replace(b"HTTP/1.1", b"HTTP/1.0")], b""),
        ([post(question(serial)).replace(b"HTTP/1.1", b"HTTP/1.0")], b""),
        ([get(path_of(serial)), get(path_of(serial), "Accept: */*"), nonce, get(path_of(serial))], b""),
        ([nonce] * 40, b""),  # more than aiohttp queues
    ):
        with worker.connect() as connection:
            connection.sendall(b"".join(messages) + rest)
            connection.shutdown(socket.SHUT_WR)
            assert [read_answer(connection).body for _ in messages] == [b"good"] * len(messages)
            assert connection.recv(1) == b"", "long before it would have idled for too long"


def test_bare_line_feeds_are_refused_at_once(worker: Worker) -> None:
    for message in (get("/ocsp/AAAA").replace(b"\r\n", b"\n"), get("/ocsp/AAAA")[:-2] + b"\n"):
        assert one(worker, message).status == 400, "without waiting for the sweep, which would not answer"


def test_http_1_0_is_answered_on_the_fast_path(worker: Worker) -> None:
    serial = publish(worker, stored())
    before = worker.counter("certmill_ocsp_handovers_total")
    for message in (get(path_of(serial), version="1.0"), post(question(serial)).replace(b"HTTP/1.1", b"HTTP/1.0")):
        with worker.connect() as connection:
            connection.sendall(message)
            answer = read_answer(connection)
            assert (answer.body, answer.headers["Connection"]) == (b"good", "close")
            assert connection.recv(1) == b""
    assert worker.counter("certmill_ocsp_handovers_total") == before
    with worker.connect() as connection:
        for _ in range(2):
            connection.sendall(get(path_of(serial), "Connection: keep-alive", version="1.0"))
            answer = read_answer(connection)
            assert (answer.body, answer.headers["Connection"]) == (b"good", "keep-alive")


def test_head_is_the_header_of_get(worker: Worker) -> None:
    path = path_of(publish(worker, stored()))
    with worker.connect() as connection:
        connection.sendall(get(path, "Connection: close", method="HEAD"))
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    assert received.startswith(b"HTTP/1.1 200 ")
    assert b"ETag: " in received
    assert received.endswith(b"\r\n\r\n")


def test_pipelined_answers_stay_in_order_across_the_hand_over(worker: Worker) -> None:
    good, revoked = publish(worker, stored()), publish(worker, stored(Status.REVOKED, b"revoked"))
    requests = [
        get(path_of(good)),
        post(question(revoked)),
        get(path_of(good), "If-None-Match: *"),
        get(path_of(revoked)),
        post(question(good, nonce=b"n" * 16)),
        get("/"),
        post(question(revoked)),
    ]
    with worker.connect() as connection:
        connection.sendall(b"".join(requests))
        answers = [read_answer(connection) for _ in requests]
    assert [answer.status for answer in answers] == [200, 200, 304, 200, 200, 200, 200]
    assert [answer.body for answer in answers][:5] == [b"good", b"revoked", b"", b"revoked", b"good"]
    assert answers[6].body == b"revoked"


def test_byte_by_byte(worker: Worker) -> None:
    serial = publish(worker, stored())
    with worker.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in get(path_of(serial)) + post(question(serial), "Accept: */*"):
            connection.sendall(bytes((byte,)))
        assert [read_answer(connection).body for _ in range(2)] == [b"good", b"good"]


def test_revocation_is_in_the_very_next_answer_of_an_open_connection(worker: Worker) -> None:
    serial = publish(worker, stored())
    with worker.connect() as connection:
        for _ in range(2):
            connection.sendall(get(path_of(serial)))
            assert read_answer(connection).body == b"good"
        publish(worker, stored(Status.REVOKED, b"revoked"), serial)
        connection.sendall(get(path_of(serial)))
        assert read_answer(connection).body == b"revoked"


def test_slow_header_is_cut_and_slow_body_is_told(worker: Worker) -> None:
    with worker.connect() as slow_head, worker.connect() as slow_body:
        slow_head.sendall(b"GET /ocsp/AAAA HTTP/1.1\r\n")
        slow_body.sendall(b"POST /ocsp HTTP/1.1\r\n" + HOST + b"Content-Length: 5000\r\n\r\nxx")
        answer = read_answer(slow_body)
        assert answer.status == 408
        assert answer.headers["Cache-Control"] == "no-store"
        with pytest.raises(ConnectionError):
            read_answer(slow_head)


def test_connections_are_limited(worker: Worker) -> None:
    held = [worker.connect() for _ in range(MAX_CONNECTIONS)]
    try:
        with worker.connect() as extra:
            answer = read_answer(extra)
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
    finally:
        for connection in held:
            connection.close()
    while one(worker, get("/")).status == 503:  # until it has seen that they are closed
        time.sleep(0.01)


def test_repository(worker: Worker) -> None:
    (worker.home / "public/crl/a.crl").write_bytes(b"0123456789")
    (worker.home / "public/ca/a.cer").write_bytes(b"certificate")
    (worker.home / "secret.pem").write_bytes(b"secret")
    crl = one(worker, get("/crl/a.crl"))
    assert (crl.status, crl.body, crl.headers["Content-Type"]) == (200, b"0123456789", "application/pkix-crl")
    assert crl.headers["Cache-Control"] == "public, max-age=300, must-revalidate"
    assert one(worker, get("/crl/a.crl", f"If-None-Match: {crl.headers['Etag']}")).status == 304
    assert one(worker, get("/crl/a.crl", "Range: bytes=2-4")).body == b"234"
    assert one(worker, get("/ca/a.cer")).headers["Content-Type"] == "application/pkix-cert"
    assert b"/ocsp" in one(worker, get("/")).body
    for path in (
        "/crl/b.crl", "/ca/a.txt", "/ca/../secret.pem", "/ca/%2e%2e/secret.pem", "/ca/..%2fsecret.pem",
        "/crl//etc/passwd", "/ca/" + "a" * 5000 + ".pem"[:0],
    ):  # fmt: skip
        answer = one(worker, get(path))
        assert (answer.status in {404, 431}, path) == (True, path)
        assert b"secret" not in answer.body
        assert "max-age" not in answer.headers.get("Cache-Control", "")


def test_worker_without_a_store_says_try_later_until_there_is_one(tmp_path: Path) -> None:
    with running_worker(tmp_path) as worker:
        request = get(path_of(1))
        assert one(worker, request).body == TRY_LATER
        assert "certmill_ocsp_store_open 0.0" in worker.metrics()
        publish(worker, stored(), 1)
        with worker.connect() as connection:
            connection.sendall(request)
            assert read_answer(connection).body == b"good", "at once: it looks when it is asked"
            shutil.rmtree(tmp_path / "store")
            publish(worker, stored(der=b"second"), 1)
            deadline = time.monotonic() + 5
            while True:
                connection.sendall(request)
                body = read_answer(connection).body
                if body == b"second":
                    break
                assert body in {b"good", TRY_LATER}
                assert time.monotonic() < deadline
                time.sleep(0.05)


def test_store_that_grows_under_a_worker_is_read_to_its_end(tmp_path: Path) -> None:
    count = 3000  # of two pages each: 24 MB

    async def grow(store: LmdbStore) -> None:
        for first in range(1, count, 500):
            await store.publish([(key(n), stored(der=b"%d" % n + bytes(5000))) for n in range(first, first + 500)])

    fill(tmp_path / "store", [(key(count + 1), stored())])
    with running_worker(tmp_path) as worker, worker.connect() as connection:
        connection.sendall(get(path_of(count + 1)))
        assert read_answer(connection).body == b"good"
        with_store(tmp_path / "store", grow, max_bytes=2**27)
        for serial in range(1, count + 1, 100):
            connection.sendall(b"".join(get(path_of(n)) for n in range(serial, serial + 100)))
            for n in range(serial, serial + 100):
                assert read_answer(connection).body.rstrip(b"\0") == b"%d" % n
        connection.sendall(get(path_of(count + 1)))
        assert read_answer(connection).body == b"good"


def test_worker_told_to_stop_finishes_what_it_has(tmp_path: Path) -> None:
    fill(tmp_path / "store", [(key(1), stored())])
    with running_worker(tmp_path) as worker, worker.connect() as idle:
        idle.sendall(get(path_of(1)))
        assert read_answer(idle).body == b"good"
        assert worker.stop() == 0
        assert idle.recv(1) == b""


def test_taken_port_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "server", "ocsp"],
            env={**os.environ, "CERTMILL_HOME": str(tmp_path), "CERTMILL_LISTEN_PUBLIC": f"127.0.0.1:{port}"},
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
    assert done.returncode == 78
    assert done.stderr.count("\n") == 1
    assert f"listen.public: cannot listen on 127.0.0.1:{port}" in done.stderr
