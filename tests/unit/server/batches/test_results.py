"""Results as spreadsheets and unpackers meet them."""

import csv
import io
import subprocess
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from server.batches.results import CSV_COLUMNS, Form, Results, inert, pem
from server.errors import Overloaded
from tests.support.ca import make_ca

DER = make_ca().issuer.certificate_der
EVIL = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", " =1", "\n=1", "a;=1", "a,\t@x", "ok", "-----BEGIN"]


def row(number: int, **values: Any) -> SimpleNamespace:
    empty = {"reference": None, "state": "issued", "serial": "5f1c", "der": DER, "problem": None}
    return SimpleNamespace(number=number, **{**empty, **values})


class Pages:
    """Serves rows as the database does."""

    def __init__(self, rows: Sequence[SimpleNamespace]) -> None:
        self._rows = rows

    async def results(self, _job: str, *, after: int, limit: int) -> Sequence[SimpleNamespace]:
        return [r for r in self._rows if r.number > after][:limit]


def results(rows: Sequence[SimpleNamespace]) -> Results:
    records: Any = Pages(rows)
    return Results(records, issuer_pem="ISSUER\n")


async def whole(rows: Sequence[SimpleNamespace], form: Form) -> bytes:
    return b"".join([piece async for piece in results(rows).stream("job", form)])


@pytest.mark.parametrize("cell", EVIL)
def test_no_cell_begins_a_formula_at_any_separator(cell: str) -> None:
    for separator in ",;\t\r\n":
        for part in inert(cell).split(separator):
            assert not part.strip().startswith(("=", "+", "-", "@"))


@given(st.text(st.sampled_from("=+-@;,\t\r\n a'\""), max_size=8))
def test_inert_only_adds_apostrophes(cell: str) -> None:
    assert inert(cell).replace("'", "") == cell.replace("'", "")
    assert not inert(cell).startswith(("=", "+", "-", "@", "\t", "\r", "\n"))


async def test_csv_is_for_excel_and_inert() -> None:
    problem = {"type": "/docs#key-rejected", "detail": "=cmd()", "field": "csr", "remedy": "@x"}
    rows = [
        *(row(n + 1, reference=text) for n, text in enumerate(EVIL)),
        row(99, reference="ກະຊວງ", state="failed", serial=None, der=None, problem=problem),
    ]
    data = await whole(rows, "csv")
    assert data.startswith(b"\xef\xbb\xbf")
    table = list(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline="")))
    assert tuple(table[0]) == CSV_COLUMNS
    assert len(table) == len(rows) + 1
    for line in table[1:]:
        assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in line)
    assert table[1][-1].startswith("MII")
    assert table[-1] == ["99", "ກະຊວງ", "failed", "", "key-rejected", "'=cmd()", "csr", "'@x", ""]


async def test_zip_of_many_rows_is_unpacked_by_others(tmp_path: Path) -> None:
    rows = [row(n, reference=f"../ກ/{n} x") for n in range(1, 1202)] + [row(1202, state="pending", der=None)]
    path = tmp_path / "x.zip"
    path.write_bytes(await whole(rows, "zip"))
    done = subprocess.run(
        ["python3", "-m", "zipfile", "-t", str(path)], capture_output=True, check=True, timeout=30
    )
    assert b"Done testing" in done.stdout
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        assert names[0] == "results.csv"
        assert names[1] == "000001-ກ_1_x.pem"
        assert len(names) == 1202
        assert archive.read(names[1201]).decode() == pem(DER) + "ISSUER\n"
        assert archive.read("results.csv").count(b"pending") == 1


async def test_zip_can_be_unpacked_while_it_arrives() -> None:
    """As Java does it: an entry's length is found from its compressed end, and stands after it in 4 octets."""
    data = await whole([row(n) for n in (1, 2)], "zip")
    at, names = 0, []
    while data.startswith(b"PK\x03\x04", at):
        method = int.from_bytes(data[at + 8 : at + 10], "little")
        name, extra = (int.from_bytes(data[at + n : at + n + 2], "little") for n in (26, 28))
        names.append(data[at + 30 : at + 30 + name].decode())
        assert (method, extra) == (zipfile.ZIP_DEFLATED, 0)
        unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
        content = unpacker.decompress(data[at + 30 + name :])
        at = len(data) - len(unpacker.unused_data)
        assert data.startswith(b"PK\x07\x08", at)
        assert int.from_bytes(data[at + 12 : at + 16], "little") == len(content)
        at += 16
    assert names == ["results.csv", "000001.pem", "000002.pem"]


async def test_a_third_zip_at_a_time_is_refused_for_now_and_one_that_is_left_frees_its_place() -> None:
    made = results([row(1)])
    first, second, third = (made.stream("job", "zip") for _ in range(3))
    await anext(first)
    await anext(second)
    with pytest.raises(Overloaded):
        await anext(third)
    await first.aclose()
    assert await anext(made.stream("job", "zip"))
    await second.aclose()


def test_pem_is_what_cryptography_reads() -> None:
    assert x509.load_pem_x509_certificate(pem(DER).encode()).public_bytes(Encoding.DER) == DER
    assert max(map(len, pem(DER).splitlines())) == 64
