"""Results of a batch in three forms, made page by page: NDJSON, CSV that is inert in a spreadsheet, ZIP."""

import asyncio
import base64
import csv
import io
import re
import ssl
import zipfile
from collections.abc import AsyncGenerator, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from typing_extensions import Buffer

from server.batches.records import JobRecords
from server.errors import Overloaded
from server.storage.database import AnyRow

Form = Literal["ndjson", "csv", "zip"]
PAGE = 500
_ZIPPED_AT_A_TIME = 50
_LARGE_ROWS = 100_000
"""Up to so many, results.csv stays far below the 2 GiB from which on a ZIP must be of the newer form (ZIP64)."""
CSV_COLUMNS = ("number", "reference", "state", "serial", "problem", "detail", "field", "remedy", "certificate")
_ACTIVE = re.compile(r"\s*[=+\-@]|[\t\r\n]")
"""What makes a spreadsheet take a cell for a formula (CWE-1236)."""
_AFTER_SEPARATOR = re.compile(r"([;,\t\r\n]\s*)(?=[=+\-@])")
"""The same inside of a cell, for a spreadsheet that splits lines at another separator than ours."""

_encoder = msgspec.json.Encoder()


class RowProblem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why a row failed (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    remedy: str | None = None
    field: str | None = None


class ResultRow(msgspec.Struct, frozen=True, kw_only=True):
    """What has become of one row of a batch."""

    number: Annotated[int, Meta(description="Of the row in the input, from 1")]
    reference: Annotated[str | None, Meta(description="Yours")]
    state: Literal["pending", "issued", "failed", "checked"]
    serial: str | None
    certificate: Annotated[str | None, Meta(description="PEM (RFC 7468)")]
    problem: RowProblem | None


class Results:
    """Reads results; `issuer_pem` follows each certificate in the ZIP.

    Two ZIPs are made at a time, others are refused for now: each keeps its directory in memory, 50 MB for 100,000
    rows.
    """

    def __init__(self, records: JobRecords, *, issuer_pem: str) -> None:
        self._records = records
        self._issuer_pem = issuer_pem
        self._zips = asyncio.Semaphore(2)

    def stream(self, job_id: str, form: Form, *, rows: int = 0) -> AsyncGenerator[bytes, None]:
        """Yield the results in pieces; raises `StorageError`. `rows`: how many the batch has."""
        if form == "csv":
            return self._csv(job_id)
        return self._ndjson(job_id) if form == "ndjson" else self._zip(job_id, rows)

    async def _pages(self, job_id: str) -> AsyncGenerator[Sequence[AnyRow], None]:
        after = 0
        while page := await self._records.results(job_id, after=after, limit=PAGE):
            yield page
            after = page[-1].number

    async def _ndjson(self, job_id: str) -> AsyncGenerator[bytes, None]:
        async for page in self._pages(job_id):
            yield _encoder.encode_lines([result(row) for row in page])

    async def _csv(self, job_id: str) -> AsyncGenerator[bytes, None]:
        yield "\N{BYTE ORDER MARK}".encode() + _csv_lines([CSV_COLUMNS])  # with it Excel takes it for UTF-8
        async for page in self._pages(job_id):
            yield _csv_lines([_cells(row) for row in page])

    async def _zip(self, job_id: str, rows: int) -> AsyncGenerator[bytes, None]:
        """Yield results.csv and one PEM chain for each certificate.

        Compressed: sizes follow the entries here, and who unpacks while it arrives (Java's ZipInputStream) finds
        them after compressed entries only, and not in ZIP64.
        The table comes first: whatever it calls issued has its file, also while the batch runs.
        """
        if self._zips.locked():
            raise Overloaded("other ZIPs are being made: ask again, or for NDJSON or CSV", retry_after_s=10)
        async with self._zips:
            sink = _Sink()
            with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
                with archive.open("results.csv", "w", force_zip64=rows > _LARGE_ROWS) as table:
                    async for piece in self._csv(job_id):
                        table.write(piece)
                        yield sink.take()
                async for page in self._pages(job_id):
                    for begin in range(0, len(page), _ZIPPED_AT_A_TIME):
                        for row in page[begin : begin + _ZIPPED_AT_A_TIME]:
                            if row.der is not None:
                                archive.writestr(_file_name(row), pem(row.der) + self._issuer_pem)
                        await asyncio.sleep(0)
                        yield sink.take()
            yield sink.take()


def result(row: AnyRow) -> ResultRow:
    """Return a row of the database as its client sees it."""
    return ResultRow(
        number=row.number,
        reference=row.reference,
        state=row.state,
        serial=row.serial,
        certificate=None if row.der is None else pem(row.der),
        problem=None if row.problem is None else msgspec.convert(row.problem, RowProblem),
    )


def pem(der: bytes) -> str:
    """Write a certificate as PEM."""
    return ssl.DER_cert_to_PEM_cert(der)


def inert(cell: str) -> str:
    """Return a cell that no spreadsheet takes for a formula: a leading apostrophe makes it text."""
    cell = _AFTER_SEPARATOR.sub(r"\1'", cell)
    return "'" + cell if _ACTIVE.match(cell) else cell


def _cells(row: AnyRow) -> list[str]:
    problem: dict[str, Any] = row.problem or {}
    kind = str(problem.get("type", "")).removeprefix("/docs#")
    certificate = "" if row.der is None else base64.b64encode(row.der).decode("ascii")  # PEM begins with hyphens
    cells = (
        str(row.number),
        row.reference or "",
        row.state,
        row.serial or "",
        kind,
        problem.get("detail") or "",
        problem.get("field") or "",
        problem.get("remedy") or "",
        certificate,
    )
    return [inert(cell) for cell in cells]


class _Lines:
    """Where the csv module writes to."""

    def __init__(self) -> None:
        self.pieces: list[str] = []

    def write(self, text: str) -> int:
        self.pieces.append(text)
        return len(text)


def _csv_lines(rows: Sequence[Sequence[str]]) -> bytes:
    lines = _Lines()
    csv.writer(lines, lineterminator="\r\n").writerows(rows)
    return "".join(lines.pieces).encode()


class _Sink(io.RawIOBase):
    """Where the zipfile module writes to: it cannot seek there, so it need not."""

    def __init__(self) -> None:
        super().__init__()
        self._pieces: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer) -> int:
        piece = bytes(data)
        self._pieces.append(piece)
        return len(piece)

    def take(self) -> bytes:
        taken = b"".join(self._pieces)
        self._pieces.clear()
        return taken


def _file_name(row: AnyRow) -> str:
    """Return a name that every system can unpack; letters of other scripts stay."""
    reference = re.sub(r"[^\w.-]+", "_", row.reference or "", flags=re.UNICODE).strip("._")[:60]
    return f"{row.number:06d}{'-' if reference else ''}{reference}.pem"
