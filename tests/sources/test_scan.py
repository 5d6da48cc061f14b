"""What one pass finds: rows, shards, columns and their types, ids; and what it refuses."""

import gzip
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from input_files import errors, fields, read, scan, write, write_csv, write_jsonl

from seedx_batch import sources
from seedx_batch.errors import InputError, SpecError
from seedx_batch.records import Shard
from seedx_batch.sources import CarriedColumn, ids
from seedx_batch.sources.text import digest_of
from seedx_batch.spec import InputSpec


def types(found: sources.Scan) -> dict[str, str]:
    """The carried columns' types by name, JSON text as `json`."""
    return {column.name: "json" if column.as_json else str(column.type) for column in found.columns}


def test_shards(tmp_path: Path) -> None:
    """Shards know their file, their first row and the byte at which it begins, beyond empty lines."""
    first = write(tmp_path / "a.jsonl", b'{"n":0}\n\n{"n":1}\r\n  \n{"n":2}\n')
    second = write_csv(tmp_path / "b.csv", [["n"], ["line\nline"], ["x"], ["y"]])
    found = scan(first, 2)
    assert found.shards == (
        Shard(0, str(first), 0, 2, 0, 20, digest_of(b'{"n":0}\n\n{"n":1}\r\n  ')),
        Shard(1, str(first), 2, 1, 21, 7, digest_of(b'{"n":2}')),
    )
    assert found.files[0].num_rows == found.num_rows == 3
    assert found.files[0].format == "jsonl"
    found = scan(second, 2)
    assert found.shards == (
        Shard(0, str(second), 0, 2, 3, 17, digest_of(b'n\r\n"line\nline"\r\nx')),
        Shard(1, str(second), 2, 1, 19, 1, digest_of(b"y")),
    )


@pytest.mark.parametrize("limit", [1, 4, 5, 6, 9, 100])
def test_a_limit(tmp_path: Path, limit: int) -> None:
    """A limit keeps the first rows over all files, and the files behind it are not even opened."""
    rows = [{"n": number} for number in range(10)]
    write_jsonl(tmp_path / "a.jsonl", rows[:5])
    write_jsonl(tmp_path / "b.jsonl", rows[5:])
    if limit < 10:
        write(tmp_path / "c.jsonl.gz", b"").write_bytes(b"broken")
    found = scan(tmp_path, 3, limit=limit)
    assert found.num_rows == sum(file.num_rows for file in found.files) == min(limit, 10)
    assert fields(read(found)) == rows[:limit]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet", row_group_size=4)
    assert fields(read(scan(tmp_path / "d.parquet", 3, limit=limit))) == rows[:limit]


def test_progress(tmp_path: Path) -> None:
    """The number of rows so far is told now and then, and at each file's end."""
    for name in ("a", "b"):
        write_jsonl(tmp_path / f"{name}.jsonl", ({"n": number} for number in range(12_000)))
    told: list[int] = []
    spec = InputSpec(path=str(tmp_path))
    sources.scan(sources.find(spec), spec, 5000, told.append)
    assert told == [10_000, 12_000, 22_000, 24_000]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["a", None, "b"], "string"),
        ([None, None], "string"),
        ([True, None, False], "bool"),
        ([1, None, -(2**63), 2**63 - 1], "int64"),
        ([1, 2.5, None], "double"),
        ([2**53, 2.5], "double"),
        ([2**53 + 1, 2.5], "json"),
        ([2**63], "json"),
        ([1, 2**63, 1], "json"),
        ([1, 2**53 + 1, 2.5], "json"),
        ([-(2**63) - 1, 1], "json"),
        ([1, "1"], "json"),
        ([True, 1], "json"),
        ([[1], [2]], "json"),
        ([{"a": 1}, None], "json"),
        (["a", {"b": ["c"]}], "json"),
    ],
)
def test_jsonl_types(tmp_path: Path, values: list[Any], kind: str) -> None:
    """A column's type holds every value; where none does, texts are carried as they are, all else as its JSON text."""
    rows: list[dict[str, Any]] = [{"v": value} for value in values]
    found = scan(write_jsonl(tmp_path / "a.jsonl", [{}, *rows, {"other": 1}, "not an object"]))
    assert types(found) == {"v": kind, "other": "int64"}
    assert found.input_columns == ("v", "other")
    carried = sources.carry(found.columns, read(found))
    assert carried.schema == sources.schema(found.columns)
    back = carried.column("v").to_pylist()
    expected = [None, *values, None, None]
    if kind == "json":
        assert all(value is None or isinstance(value, str) for value in back)
        kept = [value if value is None or isinstance(value, str) else json.dumps(value) for value in expected]
        assert back == kept
        return
    assert back == expected
    assert [type(value) for value in back] == [
        float if kind == "double" and value is not None else type(value) for value in expected
    ]


def test_parquet_types(tmp_path: Path) -> None:
    """Parquet keeps its types, of which only nulls give way; text formats have none."""
    table = pa.table(
        {
            "big": pa.array(["a"], pa.large_string()),
            "small": pa.array([1], pa.int8()),
            "nested": [[{"x": 1}]],
            "when": pa.array([1], pa.timestamp("ns", "UTC")),
            "word": pa.array(["a"]).dictionary_encode(),
            "empty": pa.nulls(1),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    assert {column.name: column.type for column in scan(tmp_path / "a.parquet").columns} == {
        "big": pa.large_string(),
        "small": pa.int8(),
        "nested": pa.list_(pa.struct([pa.field("x", pa.int64())])),
        "when": pa.timestamp("ns", "UTC"),
        "word": pa.string(),
        "empty": pa.string(),
    }
    assert types(scan(write_csv(tmp_path / "a.csv", [["a", "b"], ["1", ""]]))) == {"a": "string", "b": "string"}


def test_parquet_nulls_fit_any_type(tmp_path: Path) -> None:
    """A file in which a column is nothing but null fits files where it has values; an empty file fits everything."""
    pq.write_table(pa.table({"v": pa.nulls(2)}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"v": [1, 2]}), tmp_path / "b.parquet")
    pq.write_table(pa.table({"v": pa.nulls(1)}), tmp_path / "c.parquet")
    pq.write_table(pa.table({"other": pa.array([], pa.string())}), tmp_path / "d.parquet")
    found = scan(tmp_path)
    assert types(found) == {"v": "int64"}
    assert sources.carry(found.columns, read(found)).to_pydict() == {"v": [None, None, 1, 2, None]}
    assert found.warnings == (f"{tmp_path}/d.parquet: no rows in it",)


def unlike(tmp_path: Path, first: dict[str, Any], second: dict[str, Any]) -> str:
    """What is said of two parquet files with these columns."""
    pq.write_table(pa.table(first), tmp_path / "a.parquet")
    pq.write_table(pa.table(second), tmp_path / "b.parquet")
    with pytest.raises(InputError) as refusal:
        scan(tmp_path)
    return str(refusal.value)


def test_files_that_are_not_alike(tmp_path: Path) -> None:
    """Another type, a missing and a further column are refused with the file and the column."""
    assert "b.parquet: column 'x' is string, and int64 in " in unlike(tmp_path, {"x": [1]}, {"x": ["1"]})
    assert "b.parquet: has no column 'y', and " in unlike(tmp_path, {"x": [1], "y": [1]}, {"x": [1]})
    assert "a.parquet: has no column 'y', and " in unlike(tmp_path, {"x": [1]}, {"x": [1], "y": [1]})
    write_csv(tmp_path / "csv" / "a.csv", [["x", "y"], ["1", "2"]])
    write_csv(tmp_path / "csv" / "b.csv", [["x"], ["1"]])
    with pytest.raises(InputError, match=r"b\.csv: has no column 'y', and .*a\.csv has"):
        scan(tmp_path / "csv")
    write_csv(tmp_path / "csv" / "b.csv", [["y", "x"], ["2", "1"]])
    assert fields(read(scan(tmp_path / "csv"))) == [{"x": "1", "y": "2"}] * 2


ROWS = [{"id": "a", "text": "x", "lang": "zh", "n": 1}]


@pytest.mark.parametrize(
    ("spec", "carried", "row_id"),
    [
        ({}, ["text<-text", "lang<-lang", "n<-n"], "id"),
        ({"id": "text"}, ["id<-id", "lang<-lang", "n<-n"], "text"),
        ({"columns": ["n", "text"]}, ["n<-n", "text<-text"], "id"),
        ({"columns": ["id", "n"]}, ["n<-n"], "id"),
        ({"columns": {"source": "text"}}, ["source<-text"], "id"),
        ({"columns": {"key": "id"}}, ["key<-id"], "id"),
        ({"columns": ["text"], "id": "text"}, ["text<-text"], "text"),
        ({"columns": {"id": "text"}, "id": "text"}, [], "text"),
        ({"columns": []}, [], "id"),
    ],
)
def test_carried_columns(tmp_path: Path, spec: dict[str, Any], carried: list[str], row_id: str) -> None:
    """The job chooses and renames what is carried; the row's id has its own column and is not carried twice."""
    found = scan(write_jsonl(tmp_path / "a.jsonl", ROWS), **spec)
    assert [f"{column.name}<-{column.source}" for column in found.columns] == carried
    assert found.id_column == row_id
    assert found.input_columns == ("id", "text", "lang", "n")


def test_no_id_column(tmp_path: Path) -> None:
    """An input without a column `id` has no id column."""
    assert scan(write_jsonl(tmp_path / "a.jsonl", [{"n": 1}])).id_column is None


def test_columns_that_are_not_there(tmp_path: Path) -> None:
    """Every column that the job names and the input lacks is a fault with a suggestion, all at once."""
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(SpecError) as refusal:
        scan(path, columns=["txt", "nothing like it"], id="idd")
    assert [str(fault) for fault in refusal.value.faults] == [
        "input.columns: the input has no column 'txt', did you mean 'text'?",
        "input.columns: the input has no column 'nothing like it', it has: id, text, lang, n",
        "input.id: the input has no column 'idd', did you mean 'id'?",
    ]
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    with pytest.raises(SpecError, match=r"input\.id: the input has no column 'idd'"):
        scan(tmp_path / "a.parquet", id="idd")


def test_columns_survive_json() -> None:
    """A carried column comes back from JSON with exactly its type."""
    kinds = [
        pa.string(),
        pa.decimal128(20, 3),
        pa.timestamp("ns", "Asia/Shanghai"),
        pa.list_(pa.field("element", pa.int8(), nullable=False)),
        pa.struct([pa.field("a", pa.large_list(pa.float16()))]),
        pa.map_(pa.string(), pa.binary(4)),
    ]
    for kind in kinds:
        column = CarriedColumn("名", "n", kind, as_json=False)
        assert CarriedColumn.from_json(json.loads(json.dumps(column.to_json()))) == column


def test_a_damaged_column_is_a_value_error() -> None:
    """What is no column's description raises a ValueError or KeyError, as a plan's reader expects."""
    assert issubclass(pa.ArrowInvalid, ValueError)
    kept = CarriedColumn("n", "n", pa.int64()).to_json()
    with pytest.raises(pa.ArrowInvalid):
        CarriedColumn.from_json(kept | {"arrow": "AAAA"})
    with pytest.raises(KeyError):
        CarriedColumn.from_json({})


def test_empty_input(tmp_path: Path) -> None:
    """An input without a row is refused; one empty file among others is only told."""
    write(tmp_path / "a.csv", b"")
    write(tmp_path / "b.csv", b"x,y\r\n")
    with pytest.raises(InputError, match=r"a\.csv, .*b\.csv: no rows in it"):
        scan(tmp_path)
    write_csv(tmp_path / "c.csv", [["x", "y"], ["1", "2"]])
    found = scan(tmp_path)
    assert found.num_rows == 1
    assert [file.num_rows for file in found.files] == [0, 0, 1]
    assert found.warnings == (f"{tmp_path}/a.csv: no rows in it", f"{tmp_path}/b.csv: no rows in it")
    for name in ("d.jsonl", "d.jsonl.gz", "d.jsonl.zst"):
        with pytest.raises(InputError, match=f"{name}: no rows in it"):
            scan(write(tmp_path / name, b" \n\n"))
    (tmp_path / "e.jsonl.gz").write_bytes(b"")
    with pytest.raises(InputError, match=r"e\.jsonl\.gz: no rows in it"):
        scan(tmp_path / "e.jsonl.gz")
    pq.write_table(pa.table({"x": pa.array([], pa.int64())}), tmp_path / "f.parquet")
    with pytest.raises(InputError, match=r"f\.parquet: no rows in it"):
        scan(tmp_path / "f.parquet")


def test_nothing_that_can_be_read(tmp_path: Path) -> None:
    """A file of which no row can be read is refused as a whole, with the first reason."""
    path = write(tmp_path / "a.jsonl", json.dumps(ROWS, indent=1).encode())
    with pytest.raises(InputError, match=r"a\.jsonl: none of 8 rows can be read \(row 0 of .* invalid_json: Expecting"):
        scan(path)


@pytest.mark.parametrize(
    ("header", "told"),
    [(b"x,y,x\n", "names 'x' more than once"), (b'"x\n', "cannot be read"), (b"\xff,y\n", "invalid_utf8")],
)
def test_a_bad_header(tmp_path: Path, header: bytes, told: str) -> None:
    """A CSV file whose header cannot serve is refused by name."""
    with pytest.raises(InputError, match=rf"a\.csv: its header.*{told}"):
        scan(write(tmp_path / "a.csv", header + b"1,2,3\n"))


def test_two_columns_of_one_name_in_parquet(tmp_path: Path) -> None:
    """A parquet file with two columns of one name is refused by name."""
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["x", "x"]), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: two of its columns have the same name"):
        scan(tmp_path / "a.parquet")


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.csv.gz", "a.parquet"])
@pytest.mark.parametrize("damage", ["cut", "tail", "other"])
def test_damaged_files(tmp_path: Path, name: str, damage: str) -> None:
    """A file that is cut short, has something behind its end, or is something else is refused by name."""
    path = tmp_path / name
    if name.endswith(".parquet"):
        pq.write_table(pa.table({"n": list(range(9999))}), path)
    else:
        write(path, b"n\n" + b"".join(b"%d\n" % number for number in range(9999)))
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[:-7], "tail": whole + b"more", "other": b"plain text\n" * 99}[damage])
    with pytest.raises(InputError, match=rf"{name}: is (damaged|no whole parquet file).*; make it anew"):
        scan(path)


def test_several_compressed_members(tmp_path: Path) -> None:
    """Compressed files that were joined are read to the end of the last."""
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"n": 1}\n') + gzip.compress(b'{"n": 2}\n'))
    assert fields(read(scan(path))) == [{"n": 1}, {"n": 2}]


def corrupted(path: Path, column: str) -> None:
    """Overwrites the data pages of one column of a parquet file."""
    place = pq.read_schema(path).names.index(column)
    chunk = pq.read_metadata(path).row_group(0).column(place)
    content = bytearray(path.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(content)


def test_parquet_is_counted_from_its_metadata(tmp_path: Path) -> None:
    """No page but the id column's is read to count rows; what is damaged there is told when it is read."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": [str(n) for n in range(999)], "text": ["x" * n for n in range(999)]}), path)
    corrupted(path, "text")
    found = scan(path, 100)
    assert found.num_rows == 999
    with pytest.raises(InputError, match=r"a\.parquet: is damaged after row 0"):
        read(found)
    corrupted(path, "id")
    with pytest.raises(InputError, match=r"a\.parquet: is damaged"):
        scan(path, 100)


def test_parquet_without_an_id_column(tmp_path: Path) -> None:
    """Without an id column not a single page is read to count rows."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["x" * n for n in range(999)]}), path)
    corrupted(path, "text")
    assert scan(path, 100).num_rows == 999


def told_of(tmp_path: Path, row_ids: list[Any]) -> tuple[str, ...]:
    """The warnings about rows with these ids."""
    jsonl = scan(write_jsonl(tmp_path / "a.jsonl", [{"id": row_id} for row_id in row_ids]), 2).warnings
    if all(row_id is None or isinstance(row_id, str) for row_id in row_ids):
        pq.write_table(pa.table({"id": pa.array(row_ids, pa.string())}), tmp_path / "a.parquet")
        assert scan(tmp_path / "a.parquet", 2).warnings == jsonl
    return jsonl


def test_ids_that_occur_more_than_once(tmp_path: Path) -> None:
    """Ids that occur more than once are counted, and the first of them is named."""
    rest = "rows are told apart by their place, nothing is lost"
    assert told_of(tmp_path, ["a", "b", None, None, "", ""]) == ()
    assert told_of(tmp_path, ["a", "b", "b", "b"]) == (f"1 id occurs more than once, the first is 'b'; {rest}",)
    assert told_of(tmp_path, ["z", "c", "b", None, "b", "c", "a"]) == (
        f"2 ids occur more than once, the first is 'c'; {rest}",
    )
    assert told_of(tmp_path, [1, "1"]) == (f"1 id occurs more than once, the first is '1'; {rest}",)


def test_many_ids_are_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a bound on memory the number of repeated ids is estimated from a sample that sees every occurrence."""
    monkeypatch.setattr(ids, "_MAX_HASHES", 1000)
    (told,) = told_of(tmp_path, [f"row {number % 6000}" for number in range(9000)])
    assert "(estimated from a sample) occur more than once, one is 'row " in told
    assert 1500 < int(told.split()[1].replace(",", "")) < 5000
    counter = ids.IdCounter()
    for number in range(50_000):
        counter.add([str(number)])
    assert counter.num_repeated() == 0
    assert counter.sampled_from >= 64
    counter = ids.IdCounter()
    for _ in range(50_000):
        counter.add(["the same"])
    assert counter.num_repeated() == 1
    assert counter.sampled_from == 1


def peak_memory(path: Path) -> int:
    """The most bytes that a scan and a reading of all rows hold at once, ids and shards included."""
    tracemalloc.start()
    found = scan(path, 1000)
    with sources.Reader(found.files, found.id_column) as reader:
        for shard in found.shards:
            for row in reader.rows(shard):
                assert row.error is None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.zst", "csv", "parquet"])
def test_memory_does_not_grow_with_the_rows(tmp_path: Path, ending: str) -> None:
    """Ten times the rows need no more than the eight bytes for each id and some for each shard."""
    peaks = []
    for num_rows in (5_000, 50_000):
        path = tmp_path / f"{num_rows}.{ending}"
        rows = [(f"r{number}", f"some text {number}") for number in range(num_rows)]
        if ending == "parquet":
            row_ids, texts = zip(*rows, strict=True)
            pq.write_table(pa.table({"id": row_ids, "text": texts}), path, row_group_size=5_000)
        elif ending == "csv":
            write_csv(path, [("id", "text"), *rows])
        else:
            write_jsonl(path, ({"id": row_id, "text": text} for row_id, text in rows))
        peaks.append(peak_memory(path))
    assert peaks[1] - peaks[0] < 45_000 * 8 * 1.2 + 500_000


def test_import_is_light() -> None:
    """Importing this package pulls in neither torch nor transformers nor datasets nor pandas."""
    heavy = "{'torch', 'transformers', 'datasets', 'pandas', 'vllm'}"
    code = f"import sys, seedx_batch.sources; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_unreadable_rows_do_not_decide_types(tmp_path: Path) -> None:
    """A line that cannot be read neither adds a column nor changes one."""
    found = scan(write(tmp_path / "a.jsonl", b'{"n": 1}\n{"n": "x", "m": \n{"n": "\\ud800", "k": 1}\n{"n": 2}\n'))
    assert types(found) == {"n": "int64"}
    assert errors(read(found)) == [None, "invalid_json", "invalid_utf8", None]
