"""Readers of batches: each input whole, cut at every place, and wrong in every way that we know of."""

import codecs
import csv
import io
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.batches.csv_reader import CsvReader
from server.batches.intake import RowReader
from server.batches.json_readers import ArrayReader, NdjsonReader
from server.batches.rows import MAX_ROW_BYTES
from server.errors import BrokenBatch

Rows = list[dict[str, Any]]
LAO = "ກະຊວງການເງິນ"
ROWS: Rows = [
    {"reference": 'a "quoted" [one], {two}', "csr": "MII\n\\u00e9\\", "names": {"dns": ["a.gov", "b.gov"]}},
    {"reference": LAO, "csr": "x", "subject": {"O": LAO}},
    {"csr": "]}"},
]


def read(reader: RowReader, pieces: Sequence[bytes]) -> Rows:
    rows: Rows = []
    for piece in pieces:
        rows += reader.feed(piece)
    return rows + list(reader.close())


def read_every_way(make: Callable[[], RowReader], data: bytes) -> Rows:
    """Read whole, byte by byte, and cut once at every place; all must agree."""
    whole = read(make(), [data])
    assert read(make(), [data[i : i + 1] for i in range(len(data))]) == whole
    for cut in range(len(data)):
        assert read(make(), [data[:cut], data[cut:]]) == whole, cut
    return whole


def refusal(make: Callable[[], RowReader], data: bytes) -> BrokenBatch:
    with pytest.raises(BrokenBatch) as whole:
        read(make(), [data])
    with pytest.raises(BrokenBatch) as bytewise:
        read(make(), [data[i : i + 1] for i in range(len(data))])
    assert whole.value.detail.split(":")[0] == bytewise.value.detail.split(":")[0]  # the same row is to blame
    return whole.value


def feed_on(reader: RowReader, piece: bytes) -> None:
    for _ in range(MAX_ROW_BYTES // len(piece) + 2):
        list(reader.feed(piece))


# --- JSON -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bom", [b"", codecs.BOM_UTF8])
@pytest.mark.parametrize("indent", [None, 2])
def test_array_is_read_however_it_is_cut(bom: bytes, indent: int | None) -> None:
    data = bom + b" " + json.dumps(ROWS, indent=indent, ensure_ascii=indent is None).encode() + b"\r\n "
    assert read_every_way(ArrayReader, data) == ROWS


@pytest.mark.parametrize("bom", [b"", codecs.BOM_UTF8])
@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n\r\n \t\n"])
def test_lines_are_read_however_they_are_cut(bom: bytes, end: bytes) -> None:
    data = bom + b"\n" + b"\r\n".join(json.dumps(row, ensure_ascii=False).encode() for row in ROWS) + end
    assert read_every_way(NdjsonReader, data) == ROWS


@pytest.mark.parametrize("make", [ArrayReader, NdjsonReader])
@given(
    rows=st.lists(
        st.dictionaries(
            st.text(max_size=4), st.recursive(st.text(max_size=6) | st.integers(0, 9), st.lists, max_leaves=3)
        ),
        min_size=1,
        max_size=4,
    ),
    size=st.integers(1, 40),
)
@settings(max_examples=80, deadline=None)
def test_json_survives_the_round_trip(make: Callable[[], RowReader], rows: Rows, size: int) -> None:
    text = json.dumps(rows) if make is ArrayReader else "\n".join(json.dumps(row) for row in rows)
    data = text.encode()
    assert read(make(), [data[i : i + size] for i in range(0, len(data), size)]) == rows


def test_an_empty_array_has_no_rows() -> None:
    assert read_every_way(ArrayReader, b" [ ] ") == []


@pytest.mark.parametrize(
    ("data", "row"),
    [
        (b"", 1), (b"{}", 1), (b'"x"', 1), (b"null", 1), (b"[1]", 1), (b'["x"]', 1), (b"[[]]", 1), (b"x[{}]", 1),
        (b"[{},]", 2), (b"[,{}]", 1), (b"[{}{}]", 2), (b"[{} x {}]", 2), (b"[{},{}", 3), (b"[{},{", 2), (b'[{"a', 1),
        (b"[{}]]", 2), (b"[{}] x", 2), (b"[{}] {}", 2), (b'[{"a":]}]', 1), (b'[{"a" 1}]', 1), (b"[{}, \xff]", 2),
        (b'[{"a":"\xff"}]', 1), (b"[}", 1), (b'[{"a":1\\}]', 1), (b"[\\{}]", 1),
    ],
)  # fmt: skip
def test_a_broken_array_names_the_row(data: bytes, row: int) -> None:
    error = refusal(ArrayReader, data)
    assert f"row {row}" in error.detail
    assert error.field == "body"


@pytest.mark.parametrize(
    "data", [b'{"a":1}\n[]', b'{"a":1}\n{"a":', b"{}\nx\n", b'{}\n\n{"a":"\xff"}', b"{}\n{}{}"]
)
def test_a_broken_line_names_the_row(data: bytes) -> None:
    assert "row 2" in refusal(NdjsonReader, data).detail


@pytest.mark.parametrize("make", [ArrayReader, NdjsonReader, CsvReader])
def test_a_row_without_end_is_refused_before_it_fills_the_memory(make: Callable[[], RowReader]) -> None:
    reader = make()
    begin = {ArrayReader: b'[{"a":"', NdjsonReader: b'{"a":"', CsvReader: b'csr\r\n"'}
    list(reader.feed(begin[make]))  # type: ignore[index]
    with pytest.raises(BrokenBatch, match="row 1 is longer than 128 KiB"):
        feed_on(reader, b"x" * 1000)


def test_many_short_lines_in_one_cell_are_bounded_too() -> None:
    reader = CsvReader()
    list(reader.feed(b'csr\r\n"'))
    with pytest.raises(BrokenBatch, match=r"row 1.* (longer|larger) than"):
        feed_on(reader, b"x\n" * 500)


@pytest.mark.parametrize("make", [ArrayReader, NdjsonReader])
def test_a_whole_row_that_is_too_long_is_refused(make: Callable[[], RowReader]) -> None:
    row = json.dumps([{"a": "x" * MAX_ROW_BYTES}]).encode()
    with pytest.raises(BrokenBatch, match="longer"):
        read(make(), [row if make is ArrayReader else row[1:-1] + b"\n"])


# --- CSV ------------------------------------------------------------------------------------------------------

HEADER = ["reference", "CSR", " dns", "O", "validity_days"]
CELLS = [
    ["a,b;c\td", "-----BEGIN\r\nx\r\n-----END", "a.gov b.gov\nc.gov", LAO, "30"],
    ['say "x"', "y", "", "", ""],
]
READ = [
    {
        "reference": "a,b;c\td", "csr": "-----BEGIN\r\nx\r\n-----END", "names": {"dns": ["a.gov", "b.gov", "c.gov"]},
        "subject": {"O": LAO}, "validity_days": "30",
    },
    {"reference": 'say "x"', "csr": "y"},
]  # fmt: skip


def written(rows: Sequence[Sequence[str]], separator: str = ",", end: str = "\r\n") -> str:
    text = io.StringIO()
    csv.writer(text, delimiter=separator, lineterminator=end).writerows(rows)
    return text.getvalue()


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_csv_of_every_excel_is_read_however_it_is_cut(separator: str, encoding: str) -> None:
    data = written([HEADER, *CELLS, [""] * 5, [""] * 5], separator).encode(encoding)
    assert read_every_way(CsvReader, data) == READ


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_sep_line_decides(separator: str) -> None:
    # The header alone would not tell: it has one column.
    data = f"sep={separator}\r\n" + written([["csr"], ["x"]], separator)
    assert read_every_way(CsvReader, data.encode("utf-8-sig")) == [{"csr": "x"}]
    others = f"sep={separator}\r\n" + written([HEADER, *CELLS], separator)
    assert read(CsvReader(), [others.encode()]) == READ


def test_the_last_line_needs_no_end_and_empty_lines_are_nothing() -> None:
    assert read_every_way(CsvReader, b"\n\ncsr\n\nx\n\ny") == [{"csr": "x"}, {"csr": "y"}]


def test_empty_columns_at_the_end_are_nothing() -> None:
    """Excel writes them for cells that once held something, to the end of the file or not."""
    assert read_every_way(CsvReader, b"csr;O;;\nx;y; ;\nz;;\n") == [
        {"csr": "x", "subject": {"O": "y"}},
        {"csr": "z"},
    ]


@given(
    rows=st.lists(
        st.fixed_dictionaries({
            "csr": st.text(st.characters(exclude_categories=["Cs", "Z", "C"]), min_size=1, max_size=5),
            "reference": st.text(st.sampled_from('a"\n,;\tກ '), max_size=6),
        }),
        max_size=5,
    ),
    separator=st.sampled_from(",;\t"),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    size=st.integers(1, 30),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_csv_survives_the_round_trip(rows: Rows, separator: str, encoding: str, size: int) -> None:
    table = [["csr", "reference"], *([row["csr"], row["reference"]] for row in rows)]
    data = written(table, separator).encode(encoding)
    expected = [
        {"csr": row["csr"], **({"reference": row["reference"].strip()} if row["reference"].strip() else {})}
        for row in rows
    ]
    assert read(CsvReader(), [data[i : i + size] for i in range(0, len(data), size)]) == expected


@pytest.mark.parametrize(
    ("data", "field", "words"),
    [
        (b"", "body", "no header"),
        (b"\xef\xbb\xbf", "body", "no header"),
        (b"\r\n \r\n", "body", "no header"),
        (b"csr,nam\nx,y\n", "nam", "no column 'nam'"),
        (b"csr,CSR\nx,y\n", "csr", "stands twice"),
        (b"reference\nx\n", "csr", "csr is missing"),
        (b"sep=|\ncsr\n", "sep", "no separator"),
        (b"csr,O\nx,y\nx,y,z\n", "body", "row 2: 3 cells, but the header has 2"),
        (b"csr,O\nx,y\nx\n", "body", "row 2: 1 cells"),
        (b'csr\nx\n"y\n', "body", "row 2: unexpected end of data"),
        (b'csr\nx\n"y"z\n', "body", "row 2: ',' expected"),
        (b"csr\nx\n\xff\n", "body", "not UTF-8"),
        (b"csr\nx\n\xe0\xba", "body", "row 2: not UTF-8"),
        (b"\xff\xfec\x00s\x00r\x00\n\x00x", "body", "not UTF-16"),
        (b"csr\rx\ry\n", "body", "new-line"),
        (b"csr;;O\nx;;y\n", "", "no column ''"),
        (b"csr;O;\nx;y;z\n", "body", "row 1: 3 cells, but the header has 2"),
        (b"PK\x03\x04\x14\x00", "body", "this is a workbook"),
        (b"\xd0\xcf\x11\xe0\xa1", "body", "this is a workbook"),
    ],
)
def test_a_broken_csv_names_row_or_column_and_remedy(data: bytes, field: str, words: str) -> None:
    with pytest.raises(BrokenBatch) as caught:
        read(CsvReader(), [data])
    assert words in caught.value.detail
    assert caught.value.field == field
    assert caught.value.remedy


def test_a_long_cell_of_a_whole_record_is_refused() -> None:
    with pytest.raises(BrokenBatch, match=r"longer|larger"):
        read(CsvReader(), [b"csr\n" + b"x" * (MAX_ROW_BYTES + 1) + b"\n"])
    with pytest.raises(BrokenBatch, match="longer"):
        read(CsvReader(), [b"csr,O\n" + b"x" * 100_000 + b"," + b"y" * 100_000 + b"\n"])


def test_a_cell_that_trickles_in_is_not_looked_at_again_for_each_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, looks = CsvReader(), 0
    give_back = reader._lines.give_back

    def counted() -> int:
        nonlocal looks
        looks += 1
        return give_back()

    monkeypatch.setattr(reader._lines, "give_back", counted)
    assert read(reader, [b'csr,CN\n"', *[b"\n"] * 20_000, b'x",y\nz,y\n']) == [
        {"csr": "x", "subject": {"CN": "y"}},
        {"csr": "z", "subject": {"CN": "y"}},
    ]
    assert looks < 40
