"""The scanner: each message whole, byte by byte, pipelined and with trailing bytes; and what it must not touch."""

import base64
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsp.wire import MAX_BODY_BYTES, MAX_HEAD_BYTES, Fast, Once, Scanner, Verdict, decode_path, judge_block

DER = bytes(range(0xF0, 0x100)) * 4  # its base64 has + and /
PATH = base64.b64encode(DER)
HOST = b"Host: ocsp.test\r\n"
TYPE = b"Content-Type: application/ocsp-request\r\n"


def get(path: bytes = PATH, headers: bytes = HOST) -> bytes:
    return b"GET /ocsp/" + path + b" HTTP/1.1\r\n" + headers + b"\r\n"


def post(body: bytes = DER, headers: bytes = HOST + TYPE, target: bytes = b"/ocsp") -> bytes:
    head = b"POST " + target + b" HTTP/1.1\r\n" + headers
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


MESSAGES = {
    "get": get(),
    "get, percent-encoded": get(quote(PATH.decode(), safe="").encode()),
    "get, partly encoded": get(PATH.replace(b"+", b"%2B").replace(b"=", b"%3d")),
    "get, usual headers": get(
        headers=HOST + b"User-Agent: x/1.0 (y)\r\nAccept: */*\r\nConnection: Keep-Alive\r\n"
    ),
    "post": post(),
    "post, slash": post(target=b"/ocsp/"),
    "post, odd case": post(headers=b"hOST:a\r\nCONTENT-type:  application/OCSP-request \r\n"),
}


@pytest.fixture
def scanner() -> Scanner:
    return Scanner("/ocsp")


@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES)
def test_whole_byte_by_byte_and_with_trailing_bytes(scanner: Scanner, message: bytes) -> None:
    whole = Fast(DER, len(message))
    assert scanner.scan(message, 0) == whole
    for length in range(len(message)):
        assert scanner.scan(message[:length], 0) is Verdict.MORE
    assert scanner.scan(message + b"GET /", 0) == whole
    assert scanner.scan(b"before" + message, 6) == Fast(DER, 6 + len(message))


@pytest.mark.parametrize("first", MESSAGES.values(), ids=MESSAGES)
@pytest.mark.parametrize("second", MESSAGES.values(), ids=MESSAGES)
def test_pipelined(scanner: Scanner, first: bytes, second: bytes) -> None:
    data = first + second
    found = scanner.scan(data, 0)
    assert found == Fast(DER, len(first))
    assert scanner.scan(data, len(first)) == Fast(DER, len(data))


HANDED_OVER = {
    "another method": b"PUT /ocsp HTTP/1.1\r\n" + HOST + b"\r\n",
    "another path": b"GET /crl/x.crl HTTP/1.1\r\n" + HOST + b"\r\n",
    "path that begins alike": b"POST /ocspx HTTP/1.1\r\n" + HOST + b"\r\n",
    "nothing to decode": b"GET /ocsp/ HTTP/1.1\r\n" + HOST + b"\r\n",
    "HTTP/1.0, keep-alive": get(headers=HOST + b"Connection: keep-alive\r\n").replace(b"HTTP/1.1", b"HTTP/1.0"),
    "HTTP/1.0, proxy": get(headers=HOST + b"Proxy-Connection: close\r\n").replace(b"HTTP/1.1", b"HTTP/1.0"),
    "HTTP/1.0, another path": b"GET /crl/x.crl HTTP/1.0\r\n" + HOST + b"\r\n",
    "HTTP/1.0, no host": get(headers=b"").replace(b"HTTP/1.1", b"HTTP/1.0"),
    "HTTP/1.0, conditional": get(headers=HOST + b"If-None-Match: *\r\n").replace(b"HTTP/1.1", b"HTTP/1.0"),
    "HTTP/2.0": get().replace(b"HTTP/1.1", b"HTTP/2.0"),
    "whole URI": get().replace(b"/ocsp", b"http://ocsp.test/ocsp", 1),
    "two slashes": get(b"/" + PATH),
    "no padding": get(PATH.rstrip(b"=")),
    "no host": get(headers=b"Accept: */*\r\n"),
    "no header at all": b"GET /ocsp/AAAA HTTP/1.1\r\n\r\n",
    "two hosts": get(headers=HOST + HOST),
    "close": get(headers=HOST + b"Connection: close\r\n"),
    "upgrade": get(headers=HOST + b"Connection: Upgrade\r\n"),
    "conditional": get(headers=HOST + b'If-None-Match: "x"\r\n'),
    "modified since": get(headers=HOST + b"If-Modified-Since: Mon, 23 Nov 2026 12:00:00 GMT\r\n"),
    "range": get(headers=HOST + b"Range: bytes=0-1\r\n"),
    "transfer-encoding": post(headers=HOST + TYPE + b"Transfer-Encoding: chunked\r\n"),
    "get with a body": get(headers=HOST + b"Content-Length: 3\r\n"),
    "expect": post(headers=HOST + TYPE + b"Expect: 100-continue\r\n"),
    "folded line": get(headers=HOST + b"X: a\r\n b\r\n"),
    "bare CR": get(headers=HOST + b"X: a\rY: b\r\n"),
    "bare LF": get(headers=HOST + b"X: a\nY: b\r\n"),
    "NUL": get(headers=HOST + b"X: \0\r\n"),
    "blank before the colon": get(headers=b"Host : x\r\n"),
    "no colon": get(headers=HOST + b"nonsense\r\n"),
    "not base64": get(b"AAAA-"),
    "base64 with a hole": get(b"AA=A"),
    "query": get(PATH + b"?a=b"),
    "percent, not hex": get(b"AAAA%zz"),
    "blank in the path": get(b"AAAA BBBB"),
    "wrong type": post(headers=HOST + b"Content-Type: text/plain\r\n"),
    "no type": post(headers=HOST),
    "two types": post(headers=HOST + TYPE + TYPE),
    "two lengths": post(headers=HOST + TYPE + b"Content-Length: 64\r\n"),
    "no length": b"POST /ocsp HTTP/1.1\r\n" + HOST + TYPE + b"\r\n",
    "empty body": post(b""),
    "signed length": b"POST /ocsp HTTP/1.1\r\n" + HOST + TYPE + b"Content-Length: +3\r\n\r\nabc",
    "large body": post(b"x" * (MAX_BODY_BYTES + 1)),
    "long length": b"POST /ocsp HTTP/1.1\r\n" + HOST + TYPE + b"Content-Length: 00000000003\r\n\r\nabc",
}


@pytest.mark.parametrize("message", HANDED_OVER.values(), ids=HANDED_OVER)
def test_everything_else_is_handed_over_whole_and_in_pieces(scanner: Scanner, message: bytes) -> None:
    assert scanner.scan(message, 0) is Verdict.HAND_OVER
    end = message.index(b"\r\n\r\n") + 4
    for length in range(len(message)):
        expected = Verdict.MORE if length < end else Verdict.HAND_OVER
        assert scanner.scan(message[:length], 0) is expected
    assert scanner.scan(get() + message, len(get())) is Verdict.HAND_OVER


@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES)
def test_http_1_0_is_the_same_once(scanner: Scanner, message: bytes) -> None:
    if b"Connection" in message:
        message = message.replace(b"Connection: Keep-Alive\r\n", b"")
    old = message.replace(b" HTTP/1.1", b" HTTP/1.0")
    for length in range(len(old)):
        assert scanner.scan(old[:length], 0) is Verdict.MORE
    assert scanner.scan(old, 0) == Once(DER)
    assert scanner.scan(message + old + message, len(message)) == Once(DER)


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\n", b"\n\r\n"], ids=["LF LF", "CRLF LF", "LF CRLF"])
def test_head_that_ends_in_bare_line_feeds_does_not_wait_for_more(scanner: Scanner, end: bytes) -> None:
    head = b"GET /ocsp/AAAA HTTP/1.1\nHost: a" + end
    for length in range(len(head)):
        assert scanner.scan(head[:length], 0) is Verdict.MORE
    assert scanner.scan(head, 0) is Verdict.HAND_OVER
    assert scanner.scan(get() + head, len(get())) is Verdict.HAND_OVER


def test_endless_heads_end(scanner: Scanner) -> None:
    endless = b"GET /ocsp/AAAA HTTP/1.1\r\nX: " + b"x" * MAX_HEAD_BYTES
    assert scanner.scan(endless[:MAX_HEAD_BYTES], 0) is Verdict.MORE
    assert scanner.scan(endless, 0) is Verdict.TOO_LARGE
    assert scanner.scan(endless + b"\r\n\r\n", 0) is Verdict.TOO_LARGE


def test_remembered_blocks_are_bounded(scanner: Scanner) -> None:
    for number in range(3000):
        assert isinstance(scanner.scan(get(headers=HOST + b"X-Id: %d\r\n" % number), 0), Fast)
    assert len(scanner._blocks) <= 1024


@given(st.binary(max_size=300))
def test_path_decoding_never_fails(path: bytes) -> None:
    decoded = decode_path(path)
    assert decoded is None or isinstance(decoded, bytes)


@given(st.binary(max_size=300).filter(bool))
def test_every_encoding_of_the_path_is_the_same_question(der: bytes) -> None:
    path = base64.b64encode(der).decode()
    for encoded in (path, quote(path), quote(path, safe="")):
        assert decode_path(encoded.encode()) == (der if len(encoded) <= 512 else None)


@given(
    st.lists(st.sampled_from([HOST, TYPE, b"Content-Length: 5\r\n", b"X: y\r\n", b"\r", b"\n", b" "]), max_size=6)
)
def test_judged_blocks_frame_the_message_in_one_way_only(parts: list[bytes]) -> None:
    block = b"".join(parts)
    if not block.endswith(b"\r\n"):
        return
    length, typed = judge_block(block)
    if length >= 0:
        lines = block.split(b"\r\n")[:-1]
        assert lines.count(HOST[:-2]) == 1
        assert lines.count(b"Content-Length: 5") == (length == 5)
        assert typed == (TYPE[:-2] in lines)
        assert not set(b"\r\n") & set(b"".join(lines))
