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
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from ocsp.store import Status, StoredResponse
from pkix.ocsp_request import MALFORMED_REQUEST, TRY_LATER, UNAUTHORIZED
from tests.support.ocsp_worker import MAX_CONNECTIONS, Answer, Worker, read_answer, running_worker
from tests.unit.ocsp.stores import SHA1, SHA256, fill, key

DAY = 86_400
SERIALS = itertools.count(1000)
HOST = b"Host: ocsp.test\r\n"
OCSP = "application/ocsp-response"


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    home = tmp_path_factory.mktemp("worker")
    fill(home / "store", [])
    with running_worker(home) as started:
        yield started


def stored(
    status: Status = Status.GOOD, der: bytes = b"good", *, age_s: int = 60, left_s: int = DAY
) -> StoredResponse:
    now = int(time.time())
    return StoredResponse(status=status, this_update=now - age_s, next_update=now + left_s, der=der)


def publish(worker: Worker, response: StoredResponse, serial: int | None = None, hash_name: str = "sha1") -> int:
    """Publish as an authority does that starts, publishes and ends; return the serial."""
    serial = serial or next(SERIALS)
    fill(worker.home / "store", [(key(serial, hash_name), response)])
    return serial


def question(serial: int, algorithm: str = "sha1", nonce: bytes | None = None) -> bytes:
    chosen, names = (hashes.SHA1(), SHA1) if algorithm == "sha1" else (hashes.SHA256(), SHA256)
    builder = ocsp.OCSPRequestBuilder().add_certificate_by_hash(*names, serial, chosen)
    if nonce is not None:
        builder = builder.add_extension(x509.OCSPNonce(nonce), critical=False)
    return builder.build().public_bytes(Encoding.DER)


def get(path: str, *headers: str, method: str = "GET", version: str = "1.1") -> bytes:
    lines = "".join(f"{header}\r\n" for header in headers)
    return f"{method} {path} HTTP/{version}\r\n".encode() + HOST + lines.encode() + b"\r\n"


def path_of(serial: int) -> str:
    return "/ocsp/" + base64.b64encode(question(serial)).decode()


def post(body: bytes, *headers: str) -> bytes:
    lines = "".join(f"{header}\r\n" for header in headers or ("Content-Type: application/ocsp-request",))
    return b"POST /ocsp HTTP/1.1\r\n" + HOST + lines.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body


def one(worker: Worker, request: bytes) -> Answer:
    return worker.ask(request)[0]


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
        same = {name: value for name, value in answer.headers.items() if name not in {"Connection", "Server"}}
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
        lambda path: "/" + path.replace("+", "%2b"),
    ],
    ids=["raw", "all", "lower case", "padding", "leading slash"],
)
def test_get_in_every_encoding(worker: Worker, encode: Callable[[str], str]) -> None:
    serial = publish(worker, stored(), int.from_bytes(b"\xff\xef\xbe\xfb" * 4) + next(SERIALS))
    path = base64.b64encode(question(serial)).decode()
    assert "/" in path
    assert one(worker, get("/ocsp/" + encode(path))).body == (
        b"good" if not encode(path).startswith("/") else MALFORMED_REQUEST
    )


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


def test_nonces_and_other_hashes(worker: Worker) -> None:
    serial = publish(worker, stored())
    for octets in (1, 15, 16, 32, 33, 128):
        assert one(worker, post(question(serial, nonce=b"n" * octets))).body == b"good"
    for octets in (0, 129):
        assert one(worker, post(question(serial, nonce=b"n" * octets))).body == MALFORMED_REQUEST
    sha512 = ocsp.OCSPRequestBuilder().add_certificate_by_hash(b"n" * 64, b"k" * 64, serial, hashes.SHA512())
    assert one(worker, post(sha512.build().public_bytes(Encoding.DER))).body == UNAUTHORIZED
    zero = question(1).replace(b"\x02\x01\x01", b"\x02\x01\x00")
    assert one(worker, post(zero)).body == UNAUTHORIZED


@pytest.mark.parametrize(
    "body", [b"", b"nonsense", b"\x30\x80" * 300, b"\x30" * 9_999, b"x" * 10_001, b"x" * 200_000]
)
def test_whatever_is_no_request_is_malformed(worker: Worker, body: bytes) -> None:
    answer = one(worker, post(body))
    assert (answer.status, answer.body, answer.headers["Content-Type"]) == (200, MALFORMED_REQUEST, OCSP)
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br"])
def test_body_that_is_not_encoded_as_it_says_is_malformed(worker: Worker, encoding: str) -> None:
    request = post(question(1), "Content-Type: application/ocsp-request", f"Content-Encoding: {encoding}")
    answer = one(worker, request)
    assert (answer.status, answer.body) == (200, MALFORMED_REQUEST)


def test_chunked_body_and_other_ways_to_speak_http(worker: Worker) -> None:
    serial = publish(worker, stored())
    body = question(serial)
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    chunked = b"POST /ocsp/ HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n" + chunks
    assert one(worker, chunked).body == b"good"
    assert one(worker, get(path_of(serial), version="1.0")).body == b"good"
    assert one(worker, get("/ocsp")).body == MALFORMED_REQUEST
    assert one(worker, get("/ocsp/")).body == MALFORMED_REQUEST
    head = one(worker, get(path_of(serial), "Connection: close", method="PUT"))
    assert head.status == 405
    assert one(worker, get("/nothing")).status == 404
    assert one(worker, get("/nothing")).headers["Cache-Control"] == "no-store"
    assert one(worker, b"\x16\x03\x01\x02\r\n\r\n").status == 400


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
