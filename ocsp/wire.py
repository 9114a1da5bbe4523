r"""Recognises the two requests that nearly all OCSP traffic consists of. Sans-I/O.

Theory of operation
-------------------
`Scanner.scan(data, start)` looks at the bytes from `start` and returns one of these verdicts:

- `Fast`: a whole request of a known shape lies there; `body` is the DER of the OCSPRequest and `end` is where
  the next (pipelined) request begins.
- `Once`: the same in HTTP/1.0 (`openssl ocsp`): the connection ends with the answer.
- `MORE`: this may become such a request; come back with more bytes.
- `HAND_OVER`: anything else. Nothing has been consumed; a complete HTTP implementation shall see every byte.

The shapes are `GET {prefix}/<base64> HTTP/1.1` and `POST {prefix} HTTP/1.1` with one small Content-Length, or
the same with HTTP/1.0 and no Connection field. The scanner never guesses: whatever could make two HTTP parsers
disagree about where a request ends (another length, Transfer-Encoding, a bare CR or LF, folded lines, control
characters, white space before a colon) is handed over, and so is everything that changes the answer
(conditional and range requests, Connection, Upgrade).

Header blocks repeat: clients of one make send the same one again and again. So the verdict over a block of
header bytes is remembered; it depends on nothing but those bytes.
"""

import binascii
import enum
import re
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

MAX_HEAD_BYTES = 4096
MAX_BODY_BYTES = 512
_REMEMBERED_BLOCKS = 1024
_BASE64 = re.compile(rb"[A-Za-z0-9+/=%]{1,512}")
_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([\x20-\x7e]*)")
_EMPTY_LINE = re.compile(rb"\n\r?\n")
_LENGTH = re.compile(rb"[0-9]{1,4}")
# Fields that frame the message, change the connection or change the answer.
_NOT_FAST = frozenset(
    {
        b"transfer-encoding", b"expect", b"upgrade", b"te", b"trailer", b"http2-settings", b"content-encoding",
        b"if-none-match", b"if-modified-since", b"if-match", b"if-unmodified-since", b"if-range", b"range",
    }
)  # fmt: skip
NOT_FAST = -1


class Verdict(enum.Enum):
    """What to do when there is no fast request at this place."""

    MORE = enum.auto()
    HAND_OVER = enum.auto()
    TOO_LARGE = enum.auto()


@dataclass(frozen=True, slots=True)
class Fast:
    """A request of a known shape: the DER asked with, and where the next request begins."""

    body: bytes
    end: int


@dataclass(frozen=True, slots=True)
class Once:
    """A request of a known shape in HTTP/1.0: the DER asked with. The connection ends with the answer."""

    body: bytes


class Scanner:
    """Scans for requests under one path prefix, for example `/ocsp`."""

    def __init__(self, prefix: str) -> None:
        path = prefix.encode("ascii")
        self._get = b"GET " + path + b"/"
        self._post = b"POST " + path + b" HTTP/1.1\r\n"
        self._post_slash = b"POST " + path + b"/ HTTP/1.1\r\n"
        self._blocks: dict[bytes, tuple[int, bool]] = {}

    def scan(self, data: bytes, start: int) -> Fast | Once | Verdict:
        """Judge what lies at `start`; see the module's theory of operation."""
        head_end = data.find(b"\r\n\r\n", start)
        if head_end < 0:
            if len(data) - start > MAX_HEAD_BYTES:
                return Verdict.TOO_LARGE
            # A head that ends in bare LFs will not become one that ends in CRs: its sender waits for an answer.
            return Verdict.HAND_OVER if _EMPTY_LINE.search(data, start) else Verdict.MORE
        if head_end - start > MAX_HEAD_BYTES:
            return Verdict.TOO_LARGE
        line_end = data.find(b"\r\n", start)
        if data.startswith(self._get, start):
            return self._scan_get(data, start, line_end, head_end)
        if data.startswith(self._post, start) or data.startswith(self._post_slash, start):
            return self._scan_post(data, line_end, head_end)
        return self._scan_old(data, start, line_end, head_end)

    def _scan_get(self, data: bytes, start: int, line_end: int, head_end: int) -> Fast | Once | Verdict:
        if not data.endswith(b" HTTP/1.1", start, line_end):
            return self._scan_old(data, start, line_end, head_end)
        if self._judge(data[line_end + 2 : head_end + 2])[0] != 0:
            return Verdict.HAND_OVER
        der = decode_path(data[start + len(self._get) : line_end - 9])
        return Verdict.HAND_OVER if der is None else Fast(der, head_end + 4)

    def _scan_post(self, data: bytes, line_end: int, head_end: int) -> Fast | Verdict:
        length, typed = self._judge(data[line_end + 2 : head_end + 2])
        if not typed or not 0 < length <= MAX_BODY_BYTES:
            return Verdict.HAND_OVER
        body = head_end + 4
        if len(data) < body + length:
            return Verdict.MORE
        return Fast(data[body : body + length], body + length)

    def _scan_old(self, data: bytes, start: int, line_end: int, head_end: int) -> Once | Verdict:
        """Judge HTTP/1.0 by what the same bytes would be in HTTP/1.1; keeping the connection is for others."""
        if not data.endswith(b" HTTP/1.0", start, line_end) or b"connection" in data[line_end:head_end].lower():
            return Verdict.HAND_OVER
        found = self.scan(data[start : line_end - 1] + b"1" + data[line_end:], 0)
        return Once(found.body) if isinstance(found, Fast) else found

    def _judge(self, block: bytes) -> tuple[int, bool]:
        """Return (Content-Length or 0, whether the type is application/ocsp-request); length -1: not fast."""
        verdict = self._blocks.get(block)
        if verdict is None:
            verdict = judge_block(block)
            if len(self._blocks) >= _REMEMBERED_BLOCKS:
                self._blocks.clear()
            self._blocks[block] = verdict
        return verdict


def decode_path(path: bytes) -> bytes | None:
    """Decode what follows the prefix in a GET (RFC 6960 A.1.1): base64, raw or percent-encoded; None if not."""
    if not _BASE64.fullmatch(path):
        return None
    if b"%" in path:
        path = unquote_to_bytes(path)
    try:
        return binascii.a2b_base64(path, strict_mode=True)
    except binascii.Error:
        return None


def judge_block(block: bytes) -> tuple[int, bool]:
    """Judge a header block, each line ending in CR LF: (Content-Length or 0 or -1, is an OCSP request)."""
    length, hosts, typed = 0, 0, False
    for line in block[:-2].split(b"\r\n"):
        match = _LINE.fullmatch(line)
        if match is None:
            return NOT_FAST, False
        name, value = match[1].lower(), match[2].rstrip(b" \t")
        if name in _NOT_FAST or (name == b"connection" and value.lower() != b"keep-alive"):
            return NOT_FAST, False
        if name == b"host":
            hosts += 1
        elif name == b"content-length":
            if length or not _LENGTH.fullmatch(value) or int(value) == 0:
                return NOT_FAST, False
            length = int(value)
        elif name == b"content-type":
            if typed or value.lower() != b"application/ocsp-request":
                return NOT_FAST, False
            typed = True
    return (length, typed) if hosts == 1 else (NOT_FAST, False)
