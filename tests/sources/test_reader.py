"""Rows come back as they were written: of every format, cut anywhere, with what cannot be read in its place."""

import csv
import io
import json
import math
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from input_files import TEXT_ENDINGS, errors, fields, read, scan, write, write_csv, write_jsonl

from seedx_batch import sources
from seedx_batch.errors import InputError
from seedx_batch.records import Row, RowKey
from seedx_batch.sources import text

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
ENDINGS = st.sampled_from(TEXT_ENDINGS)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3))
RECORDS = st.lists(st.dictionaries(TEXTS, VALUES, max_size=4), min_size=1, max_size=30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the examples of a property share."""
    return tmp_path_factory.mktemp("examples")


@given(
    records=RECORDS, rows_per_shard=st.integers(1, 40), ending=ENDINGS, ascii_only=st.booleans(), blank=st.booleans()
)
def test_jsonl_comes_back(
    folder: Path, records: list[dict[str, Any]], rows_per_shard: int, ending: str, ascii_only: bool, blank: bool
) -> None:
    """Any objects written as JSONL, with empty lines or without, come back equal and in order, cut anywhere."""
    gap = "\r\n \t\r\n" if blank else "\n"
    content = gap.join(json.dumps(record, ensure_ascii=ascii_only) for record in records)
    found = scan(write(folder / f"a.jsonl{ending}", content.encode()), rows_per_shard)
    rows = read(found)
    assert fields(rows) == records
    assert found.num_rows == sum(shard.num_rows for shard in found.shards) == len(records)
    assert [row.key for row in rows] == [
        RowKey(place // rows_per_shard, place % rows_per_shard) for place in range(len(records))
    ]


@given(
    table=st.integers(1, 4).flatmap(
        lambda width: st.tuples(
            st.lists(TEXTS, min_size=width, max_size=width, unique=True),
            st.lists(st.lists(TEXTS, min_size=width, max_size=width), min_size=1, max_size=20),
        )
    ),
    rows_per_shard=st.integers(1, 25),
    ending=ENDINGS,
    form=st.sampled_from([("csv", ","), ("tsv", "\t")]),
    bom=st.booleans(),
)
def test_csv_comes_back(
    folder: Path,
    table: tuple[list[str], list[list[str]]],
    rows_per_shard: int,
    ending: str,
    form: tuple[str, str],
    bom: bool,
) -> None:
    """Any table that csv.writer writes, with newlines, quotes and a byte order mark, comes back equal and in order."""
    header, records = table
    written = io.StringIO(newline="")
    csv.writer(written, delimiter=form[1]).writerows([header, *records])
    content = written.getvalue().encode("utf-8-sig" if bom and not header[0].startswith("\ufeff") else "utf-8")
    rows = read(scan(write(folder / f"a.{form[0]}{ending}", content), rows_per_shard))
    first = [header[0].removeprefix("\ufeff"), *header[1:]]
    assert fields(rows) == [dict(zip(first, record, strict=True)) for record in records]


@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6), rows_per_shard=st.integers(1, 5))
def test_shards_cover_every_row_once(folder: Path, sizes: list[int], rows_per_shard: int) -> None:
    """Shards lie in one file each, are counted through, and together are every row of every file once, in order."""
    paths = [str(folder / f"cover{number}.jsonl") for number in range(len(sizes))]
    for path, size in zip(paths, sizes, strict=True):
        write_jsonl(Path(path), [{"path": path, "row": row} for row in range(size)])
    if not sum(sizes):
        with pytest.raises(InputError, match="no rows"):
            scan(paths, rows_per_shard)
        return
    found = scan(paths, rows_per_shard)
    assert [shard.index for shard in found.shards] == list(range(len(found.shards)))
    assert all(1 <= shard.num_rows <= rows_per_shard for shard in found.shards)
    assert len(found.shards) == sum(math.ceil(size / rows_per_shard) for size in sizes)
    assert fields(read(found)) == [
        {"path": path, "row": row} for path, size in zip(paths, sizes, strict=True) for row in range(size)
    ]


ROWS = [{"id": f"r{number}", "text": f"第{number}句\n" * (number % 7), "n": str(number)} for number in range(3000)]


def write_parquet(path: Path, rows: list[dict[str, str]]) -> None:
    """Several row groups, each of more than one batch."""
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=1100)


WRITERS: dict[str, Callable[[Path, list[dict[str, str]]], object]] = {
    f"a.{form}{ending}": writer
    for ending in TEXT_ENDINGS
    for form, writer in {
        "jsonl": write_jsonl,
        "ndjson": write_jsonl,
        "csv": lambda path, rows: write_csv(path, [list(rows[0]), *(list(row.values()) for row in rows)]),
        "tsv": lambda path, rows: write_csv(path, [list(rows[0]), *(list(row.values()) for row in rows)], "\t"),
    }.items()
} | {"a.parquet": write_parquet}


@pytest.mark.parametrize("name", WRITERS)
def test_any_shard_in_any_order(tmp_path: Path, name: str) -> None:
    """Shards give the same rows whether read in order, every third one, backwards, alone, or after a half-read one."""
    WRITERS[name](tmp_path / name, ROWS)
    found = scan(tmp_path / name, 125)
    assert fields(read(found)) == ROWS
    assert [row.id for row in read(found)] == [row["id"] for row in ROWS]
    shards = found.shards
    for order in (shards[::3], shards[::-1], shards[7:8], [shards[20], shards[2], shards[2]]):
        with sources.Reader(found.files, found.id_column) as reader:
            for shard in order:
                half_read = reader.rows(shard)
                assert [next(half_read).id for _ in range(50)] == [
                    row["id"] for row in ROWS[shard.index * 125 : shard.index * 125 + 50]
                ]
                rows = list(reader.rows(shard))
                assert fields(rows) == ROWS[shard.index * 125 : shard.index * 125 + 125]
                assert [row.key for row in rows] == [RowKey(shard.index, place) for place in range(len(rows))]


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_a_compressed_file_is_read_once(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards that come in order, with gaps or without, are one stream: the file is not decompressed anew for each."""
    found = scan(write_jsonl(tmp_path / f"a.jsonl{ending}", ROWS), 100)
    opened = []
    stream = pa.CompressedInputStream

    def counted(*arguments: object) -> object:
        opened.append(arguments)
        return stream(*arguments)

    monkeypatch.setattr(pa, "CompressedInputStream", counted)
    with sources.Reader(found.files, found.id_column) as reader:
        rows = [row.id for shard in found.shards[::2] for row in reader.rows(shard)]
    assert rows == [row["id"] for number, row in enumerate(ROWS) if number // 100 % 2 == 0]
    assert len(opened) == 1


def test_a_row_group_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of one row group that come in order, with gaps, are one stream; groups between shards are not read."""
    write_parquet(tmp_path / "a.parquet", ROWS)
    found = scan(tmp_path / "a.parquet", 100)
    groups = []
    iter_batches = pq.ParquetFile.iter_batches

    def counted(*arguments: Any, **options: Any) -> object:
        groups.append(list(options["row_groups"]))
        return iter_batches(*arguments, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    with sources.Reader(found.files, found.id_column) as reader:
        rows = [row.id for index in (0, 3, 9, 25, 29) for row in reader.rows(found.shards[index])]
    assert rows == [f"r{index * 100 + place}" for index in (0, 3, 9, 25, 29) for place in range(100)]
    assert groups == [[0, 1, 2], [2]]


def test_a_page_with_a_checksum_is_checked(tmp_path: Path) -> None:
    """A flipped bit in a page that has a checksum is an error, not another value."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"n": [7] * 9}), path, compression="none", use_dictionary=False, write_page_checksum=True)
    content = bytearray(path.read_bytes())
    content[content.index((7).to_bytes(8, "little") * 9)] ^= 1
    path.write_bytes(content)
    found = scan(path)
    with pytest.raises(InputError, match=r"a\.parquet: is damaged after row 0"):
        read(found)


def test_ids(tmp_path: Path) -> None:
    """A row's id is its id column as text, and its file and place where that says nothing."""
    values: list[Any] = ["a", 7, 1.5, True, ["x", 1], None, ""]
    rows = read(scan(write_jsonl(tmp_path / "a.jsonl", [*({"id": value} for value in values), {"n": 1}])))
    assert [row.id for row in rows] == ["a", "7", "1.5", "True", '["x", 1]', "a.jsonl:5", "a.jsonl:6", "a.jsonl:7"]
    rows = read(scan(write_jsonl(tmp_path / "b.jsonl", [{"id": 1, "name": "x"}]), id="name"))
    assert [row.id for row in rows] == ["x"]


def test_ids_of_files_with_one_name(tmp_path: Path) -> None:
    """Rows without an id are told apart although their files have the same name."""
    for name in ("x", "y"):
        write_jsonl(tmp_path / name / "a.jsonl", [{"n": 1}, {"n": 2}])
    assert [row.id for row in read(scan(tmp_path))] == ["x/a.jsonl:0", "x/a.jsonl:1", "y/a.jsonl:0", "y/a.jsonl:1"]


BAD_JSON = [
    (b'{"id": "a", "n": ', "invalid_json"),
    (b'{"id": "a"} {"id": "b"}', "invalid_json"),
    (b"{'id': 1}", "invalid_json"),
    (b'{"n": NaN}', "invalid_json"),
    (b'{"n": -Infinity}', "invalid_json"),
    (b'{"n": [1e999]}', "invalid_json"),
    (b'{"n": "tab\there"}', "invalid_json"),
    (b'{"n": ' + b"9" * 5000 + b"}", "invalid_json"),
    (b'{"n": ' + b"[" * 600 + b"]" * 600 + b"}", "invalid_json"),
    (b'{"n": ' + b"[" * 200_000, "invalid_json"),
    (b"[1, 2]", "not_an_object"),
    (b'"text"', "not_an_object"),
    (b"7", "not_an_object"),
    (b"1.5", "not_an_object"),
    (b"true", "not_an_object"),
    (b"null", "not_an_object"),
    (b'{"n": "\xff\xfe"}', "invalid_utf8"),
    (b'{"n": "\xed\xa0\x80"}', "invalid_utf8"),
    (b'{"n": "\\ud800"}', "invalid_utf8"),
    (b'{"\\uDFFF": 1}', "invalid_utf8"),
    (b'{"n": [{"x": "ok \\udc00\\ud83d"}]}', "invalid_utf8"),
]
GOOD_JSON = [
    b'{"n": "\\ud83d\\ude00 \\\\ud800"}',
    b'{"n": "' + b"[{" * 1000 + b'"}',
    b'{"n": ' + b"[" * 300 + b"]" * 300 + b"}",
    b"{}",
    b' {"n": 1e-999}\r',
]


@pytest.mark.parametrize(("line", "kind"), BAD_JSON, ids=[str(line[:20]) for line, _ in BAD_JSON])
def test_a_bad_line_is_one_error(tmp_path: Path, line: bytes, kind: str) -> None:
    """A line that is no object is an error row with its kind; those around it are not harmed."""
    found = scan(write(tmp_path / "a.jsonl", b'{"id": "before"}\n' + line + b'\n{"id": "after"}'), 2)
    rows = read(found)
    assert [row.id for row in rows] == ["before", "a.jsonl:1", "after"]
    assert errors(rows) == [None, kind, None]
    assert rows[1].fields == {}
    assert "\n" not in str(rows[1].error)
    assert any(
        f"1 row cannot be read and will be error rows; the first is row 1 of {tmp_path}" in warning and kind in warning
        for warning in found.warnings
    )


@pytest.mark.parametrize("line", GOOD_JSON, ids=[str(line[:20]) for line in GOOD_JSON])
def test_a_strange_line_is_a_row(tmp_path: Path, line: bytes) -> None:
    """What only looks like a bad line is read."""
    (row,) = read(scan(write(tmp_path / "a.jsonl", line)))
    assert row.error is None
    assert row.fields == json.loads(line)


def test_a_byte_order_mark_before_jsonl(tmp_path: Path) -> None:
    """A byte order mark at the file's beginning is no part of the first record."""
    found = scan(write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"n": 1}\n{"n": 2}\n'), 1)
    assert fields(read(found)) == [{"n": 1}, {"n": 2}]


BAD_CSV = [
    (b"1,2,3\n", "wrong_number_of_fields"),
    (b"1\n", "wrong_number_of_fields"),
    (b"\xff,2\n", "invalid_utf8"),
    (b'"1"x,2\n', "invalid_csv"),
    (b"1,2\r3\n", "invalid_csv"),
    (b'"1\n\n\xe4",2\n', "invalid_utf8"),
]


@pytest.mark.parametrize(("record", "kind"), BAD_CSV)
def test_a_bad_record_is_one_error(tmp_path: Path, record: bytes, kind: str) -> None:
    """A CSV record that does not fit is an error row with its kind; those around it are not harmed."""
    path = write(tmp_path / "a.csv", b"id,text\n\nbefore,1\n" + record + b"\nafter,2\n")
    for rows_per_shard in (1, 2, 3):
        rows = read(scan(path, rows_per_shard))
        assert [row.id for row in rows] == ["before", "a.csv:1", "after"]
        assert errors(rows) == [None, kind, None]


def test_a_lost_quote(tmp_path: Path) -> None:
    """A quote that nobody closes makes an error of what it swallows, not a row."""
    path = write(tmp_path / "a.csv", b'id,text\na,1\nb,"2\nc,3\nd,4\n')
    assert errors(read(scan(path))) == [None, "invalid_csv"]


@pytest.mark.parametrize("ending", TEXT_ENDINGS)
def test_a_line_that_is_too_long(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line above the limit is an error row, one at the limit is read, and so is what follows."""
    monkeypatch.setattr(text, "MAX_RECORD_BYTES", 4_000_000)
    lines = [b'{"n": "%s"}' % (b"x" * (size - 9)) for size in (3_999_999, 4_000_000, 4_000_001, 9_000_000, 10)]
    rows = read(scan(write(tmp_path / f"a.jsonl{ending}", b"\n".join(lines) + b"\n"), 2))
    # The newline counts, but a line is not refused for it alone.
    assert errors(rows) == [None, None, "line_too_long", "line_too_long", None]
    assert "9,000,001 bytes" in str(rows[3].error)
    assert rows[4].fields == {"n": "x"}


def test_a_record_that_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CSV record above the limit, in one line or in many, is an error row, and reading goes on."""
    monkeypatch.setattr(text, "MAX_RECORD_BYTES", 300_000)
    content = b'id,text\na,1\nb,%s\nc,3\nd,"%s"\ne,5\n' % (b"x" * 400_000, b"yy\n" * 90_000)
    path = write(tmp_path / "a.csv", content)
    rows = read(scan(path, 2))
    assert errors(rows) == [None, "line_too_long", None, None, None]
    assert rows[3].fields["text"] == "yy\n" * 90_000
    monkeypatch.setattr(text, "MAX_RECORD_BYTES", 200_000)
    rows = read(scan(path, 2))
    assert [row.id for row in rows][:3] == ["a", "a.csv:1", "c"]
    assert errors(rows)[3] == "line_too_long"
    assert rows[-1].id == "e" or rows[-1].error


def test_a_ten_megabyte_line_is_read(tmp_path: Path) -> None:
    """A long line that still fits is a row like any other, in CSV as well."""
    long = "x" * 10_000_000
    rows = read(scan(write_jsonl(tmp_path / "a.jsonl", [{"text": long}])))
    assert rows[0].fields == {"text": long}
    rows = read(scan(write_csv(tmp_path / "a.csv", [["text"], [long]])))
    assert rows[0].fields == {"text": long}


def test_parquet_values(tmp_path: Path) -> None:
    """Parquet's values are Python's, without pandas; what Python has no value for is text."""
    table = pa.table(
        {
            "text": ["a", None],
            "list": pa.array([[1], None]),
            "word": pa.array(["x", "x"]).dictionary_encode(),
            "nanoseconds": pa.array([1_700_000_000_123_456_789, None], pa.timestamp("ns")),
            "far": pa.array([300_000_000_000_000_000, 0], pa.timestamp("us")),
            "day": pa.array([1_000_000_001, None], pa.time64("ns")),
            "lasts": pa.array([1_001, None], pa.duration("ns")),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    first, second = read(scan(tmp_path / "a.parquet"))
    assert first.fields["text"] == "a"
    assert first.fields["list"] == [1]
    assert first.fields["word"] == "x"
    assert first.fields["nanoseconds"] == datetime(2023, 11, 14, 22, 13, 20, 123456)
    assert first.fields["far"] == "11476-08-15 05:20:00.000000"
    assert first.fields["day"].second == 1
    assert first.fields["lasts"].microseconds == 1
    assert second.fields["text"] is None
    assert "text" in first.fields
    assert "texts" not in first.fields
    assert first.fields.get("texts") is None
    assert list(first.fields) == table.column_names
    assert len(first.fields) == 7


def test_parquet_text_that_is_no_utf8(tmp_path: Path) -> None:
    """A row whose text is no UTF-8 is an error row with the column's name; the others of its batch are read."""
    raw = pa.array([b"one", b"\xff\xfe", b"three"]).view(pa.string())
    pq.write_table(pa.table({"id": ["a", "b", "c"], "text": raw}), tmp_path / "a.parquet")
    rows = read(scan(tmp_path / "a.parquet"))
    assert errors(rows) == [None, "invalid_utf8", None]
    assert "'text'" in str(rows[1].error)
    assert [row.id for row in rows] == ["a", "a.parquet:1", "c"]
    assert rows[2].fields == {"id": "c", "text": "three"}


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_that_became_shorter(tmp_path: Path, name: str) -> None:
    """A file with fewer rows than were counted is an error that names it, never fewer rows."""
    WRITERS[name](tmp_path / name, ROWS)
    found = scan(tmp_path / name, 1000)
    WRITERS[name](tmp_path / name, ROWS[:1500])
    with pytest.raises(
        InputError, match=rf"{name}: has changed since its rows .*was [\d,]+ bytes, is [\d,]+.*put it back"
    ):
        read(found)
    (file,) = found.files
    resized = sources.InputFile.from_json(file.to_json() | {"num_bytes": (tmp_path / name).stat().st_size})
    with sources.Reader([resized], "id") as reader, pytest.raises(InputError, match=name):
        _ = [row for shard in found.shards for row in reader.rows(shard)]
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match=f"{name}: No such file"):
        read(found)


def test_closing_twice(tmp_path: Path) -> None:
    """A closed reader can be closed again, and opens its file anew when it is asked for rows."""
    found = scan(write_jsonl(tmp_path / "a.jsonl", [{"n": 1}]))
    reader = sources.Reader(found.files, None)

    def rows() -> Iterator[Row]:
        return reader.rows(found.shards[0])

    assert len(list(rows())) == 1
    reader.close()
    reader.close()
    assert len(list(rows())) == 1
    reader.close()
