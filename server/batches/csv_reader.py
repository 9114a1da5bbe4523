"""Reader of CSV as Excel and others write it: bytes in, in pieces of any size; rows out, each of bounded size.

UTF-8 with or without byte order mark, or UTF-16 with one (Excel's "Unicode text"). The separator is that of a
`sep=` line, else the one of comma, semicolon and tab that stands most often in the header. Quoted cells may have
line ends in them. The dialect is RFC 4180's, parsed by the csv module: a record that is not whole yet is given to
it again when twice as much has arrived, so that the cost does not depend on how small the pieces are.
"""

import codecs
import csv
from collections import deque
from collections.abc import Iterator
from typing import Any

from server.batches.json_readers import too_long
from server.batches.rows import MAX_ROW_BYTES, columns, from_cells
from server.errors import BrokenBatch

_SEPARATORS = ",;\t"
_LONGEST_HEAD = 4
_WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # .xlsx (and .ods), .xls
_ENCODINGS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


class _NotYet(Exception):
    """The record needs lines that have not arrived."""


class _Lines:
    """Lines for the csv module; `taken` are those of the record that it is at, `length` is that of the others."""

    def __init__(self) -> None:
        self.waiting: deque[str] = deque()
        self.length = 0
        self.taken: list[str] = []
        self.ended = False

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        if not self.waiting:
            raise StopIteration if self.ended else _NotYet
        line = self.drop()
        self.taken.append(line)
        return line

    def add(self, line: str) -> None:
        """Let a line wait."""
        self.waiting.append(line)
        self.length += len(line)

    def drop(self) -> str:
        """Return the first line, which waits no more."""
        line = self.waiting.popleft()
        self.length -= len(line)
        return line

    def give_back(self) -> int:
        """Put the lines of the record back; returns how long they are."""
        self.waiting.extendleft(reversed(self.taken))
        self.length += sum(map(len, self.taken))
        self.taken.clear()
        return self.length


class CsvReader:
    """CSV with a header. Rows and columns of empty cells only, which Excel leaves at the ends, are nothing."""

    def __init__(self) -> None:
        self.rows = 0
        self._head = b""
        self._decoder: codecs.IncrementalDecoder | None = None
        self._line: list[str] = []  # what has arrived of a line
        self._line_length = 0
        self._lines = _Lines()
        self._again_at = 0  # so much is to wait before the record is looked at again
        self._records: Iterator[list[str]] | None = None
        self._header: list[str] | None = None

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        """Yield the rows that have become whole; raises `BrokenBatch`."""
        yield from self._feed(data, last=False)

    def close(self) -> Iterator[dict[str, Any]]:
        """Yield what is left; raises `BrokenBatch` if a quoted cell or the header is missing its end."""
        yield from self._feed(b"", last=True)
        if self._header is None:
            raise BrokenBatch("the CSV has no header", field="body", remedy=_remedy())

    def _feed(self, data: bytes, *, last: bool) -> Iterator[dict[str, Any]]:
        self._take(self._decode(data, last=last), last=last)
        if self._lines.length < self._again_at and not last:
            return
        while (cells := self._record()) is not None:
            if not any(cell.strip() for cell in cells):
                continue
            if self._header is None:
                self._header = _header(cells)
                continue
            self.rows += 1
            while len(cells) > len(self._header) and not cells[-1].strip():
                cells.pop()
            if len(cells) != len(self._header):
                raise self._broken(
                    f"{len(cells)} cells, but the header has {len(self._header)}",
                    "give every row as many cells as the header has; put cells with separators in double quotes",
                )
            yield from_cells(self._header, cells)

    def _take(self, text: str, *, last: bool) -> None:
        """Split the text into lines; keeps what is no whole line yet."""
        self._line.append(text)
        self._line_length += len(text)
        if "\n" in text or last:
            *whole, rest = "".join(self._line).split("\n")
            for line in whole:
                self._lines.add(line + "\n")
            if last and rest:
                self._lines.add(rest)
                rest = ""
            self._line, self._line_length = [rest], len(rest)
        self._lines.ended = last
        if self._line_length > MAX_ROW_BYTES:
            raise too_long(self.rows + 1)

    def _record(self) -> list[str] | None:
        """Return the next record; None if it has not arrived whole."""
        if self._records is None and not self._choose_separator():
            return None
        assert self._records is not None  # noqa: S101 - chosen above
        try:
            cells = next(self._records)
        except _NotYet:
            length = self._lines.give_back()
            if length > MAX_ROW_BYTES:
                raise too_long(self.rows + 1) from None
            self._again_at = min(2 * length, MAX_ROW_BYTES + 1)
            return None
        except StopIteration:
            return None
        except csv.Error as error:
            self.rows += self._header is not None
            raise self._broken(
                str(error),
                "close every quote; double the quotes inside of quoted cells; end lines with LF or CRLF",
            ) from None
        if sum(map(len, cells)) > MAX_ROW_BYTES:
            raise too_long(self.rows + 1)
        self._lines.taken.clear()
        return cells

    def _choose_separator(self) -> bool:
        """Look at the first line that is not empty; says whether there is one."""
        lines = self._lines.waiting
        while lines and not lines[0].strip():
            self._lines.drop()
        if not lines:
            return False
        first = lines[0].strip("\r\n")
        if first.lower().startswith("sep=") and len(first) == len("sep=") + 1:
            separator = first[-1]
            self._lines.drop()
        else:
            separator = max(_SEPARATORS, key=first.count)
        if separator not in _SEPARATORS:
            raise BrokenBatch(f"sep={separator!r} is no separator", field="sep", remedy="use , or ; or a tab")
        self._records = csv.reader(self._lines, delimiter=separator, strict=True)
        return True

    def _decode(self, data: bytes, *, last: bool) -> str:
        if self._decoder is None:
            self._head += data
            if len(self._head) < _LONGEST_HEAD and not last:
                return ""
            data, self._head = self._head, b""
            if data.startswith(_WORKBOOKS):
                raise BrokenBatch(
                    "this is a workbook of a spreadsheet, not CSV",
                    field="body",
                    remedy="save it as 'CSV UTF-8 (comma delimited)', in Excel by File, Save As",
                )
            encoding = next((name for bom, name in _ENCODINGS if data.startswith(bom)), "utf-8")
            self._decoder = codecs.getincrementaldecoder(encoding)()
        try:
            return self._decoder.decode(data, last)
        except UnicodeDecodeError as error:
            self.rows += self._header is not None
            raise self._broken(
                f"not {error.encoding.upper()} here or within the next 64 KiB: {error.reason}",
                "save it as 'CSV UTF-8' (Excel) or convert it: iconv -t utf-8",
            ) from None

    def _broken(self, detail: str, remedy: str) -> BrokenBatch:
        where = "the header" if self._header is None else f"row {self.rows}"
        return BrokenBatch(f"{where}: {detail}", field="body", remedy=remedy)


def _header(cells: list[str]) -> list[str]:
    known = columns()
    header: list[str] = []
    last = max(number for number, cell in enumerate(cells) if cell.strip())
    for cell in cells[: last + 1]:
        name = known.get(cell.strip().lower())
        if name is None:
            raise BrokenBatch(f"there is no column {cell[:80]!r}", field=cell[:80], remedy=_remedy())
        if name in header:
            raise BrokenBatch(f"the column {name} stands twice", field=name, remedy="name each column once")
        header.append(name)
    if "csr" not in header:
        raise BrokenBatch("the column csr is missing", field="csr", remedy=_remedy())
    return header


def _remedy() -> str:
    return f"begin with a header of some of: {', '.join(columns().values())}; csr must be one of them"
