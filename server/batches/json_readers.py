"""Readers of NDJSON and of a JSON array: bytes in, in pieces of any size; rows out, each of bounded size.

The array is split by hand into its elements, because `ijson` and the like bound neither an element nor a text in
it: one row of 500 MB would be held in memory. Only brackets, quotes and backslashes are looked at, found by one
regular expression (about 5 µs for a row); everything else is msgspec's business.
"""

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from server.batches.rows import MAX_ROW_BYTES
from server.errors import BrokenBatch

BOM = b"\xef\xbb\xbf"
_BLANK = b" \t\r\n"
_OUTSIDE = re.compile(rb'["\[\]{},]')
_INSIDE = re.compile(rb'["\\]')
_TOO_SHORT = 4


class NdjsonReader:
    """One JSON object in each line; empty lines are nothing. Every line is decoded once it is whole."""

    def __init__(self) -> None:
        self.rows = 0
        self._left = bytearray()
        self._seen = 0
        self._began = False

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        """Yield the rows that have become whole; raises `BrokenBatch`."""
        self._left += data
        if not self._began:
            if len(self._left) < _TOO_SHORT:
                return
            self._begin()
        start = 0
        while (end := self._left.find(b"\n", max(start, self._seen))) >= 0:
            line = bytes(self._left[start:end])
            start = self._seen = end + 1
            if line.strip(_BLANK):
                self.rows += 1
                yield decode_object(line, self.rows)
        del self._left[:start]
        self._seen = len(self._left)
        if self._seen > MAX_ROW_BYTES:
            raise too_long(self.rows + 1)

    def close(self) -> Iterator[dict[str, Any]]:
        """Yield the last row, if its line has no end."""
        if not self._began:
            self._begin()
        if self._left.strip(_BLANK):
            self.rows += 1
            yield decode_object(bytes(self._left), self.rows)

    def _begin(self) -> None:
        self._began = True
        if self._left.startswith(BOM):
            del self._left[: len(BOM)]


class ArrayReader:
    """A JSON array of objects. `_depth`: 0 before the array, 1 in it, more in an element; -1 after it."""

    def __init__(self) -> None:
        self.rows = 0
        self._left = bytearray()
        self._seen = 0
        self._depth = 0
        self._in_text = False
        self._comma = True  # an element may come: at the begin, and after a comma
        self._began = False

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        """Yield the rows that have become whole; raises `BrokenBatch`."""
        self._left += data
        if not self._began:
            if len(self._left) < _TOO_SHORT:
                return
            self._begin()
        yield from self._scan()

    def close(self) -> Iterator[dict[str, Any]]:
        """Yield what a very short body holds; raises `BrokenBatch` if the array has no end."""
        if not self._began:
            self._begin()
            yield from self._scan()
        if self._depth >= 0:
            raise self._broken("the body ends before the array does")

    def _begin(self) -> None:
        self._began = True
        if self._left.startswith(BOM):
            del self._left[: len(BOM)]

    def _scan(self) -> Iterator[dict[str, Any]]:
        start, at = 0, self._seen
        while at < len(self._left):
            found = (_INSIDE if self._in_text else _OUTSIDE).search(self._left, at)
            if found is None:
                at = len(self._left)
                break
            if self._left[found.start()] == ord("\\"):
                if found.end() == len(self._left):
                    at = found.start()  # what it escapes is still to come
                    break
                at = found.end() + 1
                continue
            at = found.end()
            start, element = self._mark(found.group(), start, at)
            if element is not None:
                self.rows += 1
                yield decode_object(element, self.rows)
        if self._depth < 2 and not self._in_text:  # noqa: PLR2004 - outside of an element
            self._blank_until(start, at)
            start = at
        del self._left[:start]
        self._seen = at - start
        if self._seen > MAX_ROW_BYTES:
            raise too_long(self.rows + 1)

    def _mark(self, mark: bytes, start: int, at: int) -> tuple[int, bytes | None]:
        """Take one of the marks into account; returns where the unread begins, and an element that has ended."""
        if mark == b'"':
            if self._depth < 2:  # noqa: PLR2004
                raise self._broken("only objects may stand in the array")
            self._in_text = not self._in_text
            return start, None
        if self._depth >= 2:  # noqa: PLR2004
            self._depth += {b"{": 1, b"[": 1, b"}": -1, b"]": -1, b",": 0}[mark]
            if self._depth == 1:
                self._comma = False
                return at, bytes(self._left[start:at])
            return start, None
        self._blank_until(start, at - 1)
        self._between(mark)
        return (at - 1 if mark == b"{" else at), None

    def _between(self, mark: bytes) -> None:
        """Take a mark outside of elements into account."""
        if self._depth == 0 and mark == b"[":
            self._depth = 1
        elif self._depth == 1 and mark == b"{" and self._comma:
            self._depth = 2
        elif self._depth == 1 and mark == b"," and not self._comma:
            self._comma = True
        elif self._depth == 1 and mark == b"]" and (not self._comma or self.rows == 0):
            self._depth = -1
        else:
            raise self._broken(f"{mark.decode()!r} stands where it cannot")

    def _blank_until(self, start: int, end: int) -> None:
        if self._left[start:end].strip(_BLANK):
            raise self._broken("the body is not a JSON array of objects")

    def _broken(self, detail: str) -> BrokenBatch:
        return BrokenBatch(
            f"row {self.rows + 1}: {detail}",
            field="body",
            remedy="send [{…}, {…}] in UTF-8; or one object in each line, as application/x-ndjson",
        )


def decode_object(text: bytes, number: int) -> dict[str, Any]:
    """Decode one row; raises `BrokenBatch`."""
    if len(text) > MAX_ROW_BYTES:
        raise too_long(number)
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BrokenBatch(
            f"row {number} is not a JSON object: {error}",
            field="body",
            remedy="send each row as a JSON object (RFC 8259) in UTF-8",
        ) from None


def too_long(number: int) -> BrokenBatch:
    """Return the refusal of a row that is too long to be one."""
    return BrokenBatch(
        f"row {number} is longer than {MAX_ROW_BYTES // 1024} KiB",
        field="body",
        remedy="look for a missing line end, bracket or quote in this row",
    )
