"""The carried columns of rows as Arrow, exactly as parts store them."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from input_files import read, scan, write, write_jsonl

from seedx_batch import sources
from seedx_batch.errors import InputError
from seedx_batch.records import Row, RowKey
from seedx_batch.sources import CarriedColumn

TABLE = pa.table(
    {
        "text": ["a", None, "第三"] * 400,
        "nanoseconds": pa.array([1, None, 1_700_000_000_123_456_789] * 400, pa.timestamp("ns", "UTC")),
        "far": pa.array([2**62, None, -(2**62)] * 400, pa.timestamp("us")),
        "nested": pa.array([[{"x": b"\xff"}], None, []] * 400, pa.list_(pa.struct([pa.field("x", pa.binary())]))),
        "pairs": pa.array([[("k", 1)], None, []] * 400, pa.map_(pa.string(), pa.int8())),
        "half": pa.array([1, None, 2] * 400, pa.float32()).cast(pa.float16()),
        "word": pa.array(["x", None, "y"] * 400).dictionary_encode(),
        "none": pa.nulls(1200),
        "n": range(1200),
    }
)
STORED = TABLE.set_column(6, "word", TABLE["word"].cast(pa.string())).set_column(7, "none", pa.nulls(1200, pa.string()))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[CarriedColumn, ...], list[Row]]:
    """The rows of a parquet file with types that Python has no values for, over several batches."""
    path = tmp_path_factory.mktemp("carry") / "a.parquet"
    pq.write_table(TABLE, path, row_group_size=500)
    found = scan(path, 700)
    return found.columns, read(found)


@given(places=st.lists(st.integers(0, 1199), max_size=40))
def test_parquet_is_carried_exactly(rows: tuple[tuple[CarriedColumn, ...], list[Row]], places: list[int]) -> None:
    """Rows in any order carry their values unchanged, to the nanosecond."""
    columns, read_rows = rows
    carried = sources.carry(columns, [read_rows[place] for place in places])
    assert (
        carried.equals(STORED.take(pa.array(places, pa.int64())).combine_chunks().to_batches()[0]) if places else True
    )
    assert carried.num_rows == len(places)
    assert carried.schema == sources.schema(columns)


def test_all_of_parquet_is_carried(rows: tuple[tuple[CarriedColumn, ...], list[Row]]) -> None:
    """All rows together are the table that was written."""
    columns, read_rows = rows
    assert pa.Table.from_batches([sources.carry(columns, read_rows)]).equals(STORED)


def test_pandas_is_not_needed(tmp_path: Path) -> None:
    """Times to the nanosecond are read and carried on a machine without pandas."""
    pq.write_table(TABLE, tmp_path / "a.parquet")
    (tmp_path / "_blocked").mkdir()
    (tmp_path / "_blocked" / "pandas.py").write_text("raise ImportError")
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path / "_blocked")!r})
from seedx_batch import sources
from seedx_batch.spec import InputSpec
spec = InputSpec(path={str(tmp_path)!r})
found = sources.scan(sources.find(spec), spec, 700)
with sources.Reader(found.files, found.id_column) as reader:
    rows = [row for shard in found.shards for row in reader.rows(shard)]
texts = [str(row.fields[name]) for row in rows for name in row.fields]
print(sources.carry(found.columns, rows).column("nanoseconds")[2].value, len(texts))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "1700000000123456789 10800\n", done.stderr


def test_rows_with_errors_carry_nulls(tmp_path: Path) -> None:
    """A row that could not be read carries null in every column, among others and alone."""
    path = write(tmp_path / "a.jsonl", b'{"n": 1, "m": [1]}\n{"n"\n{"m": "x", "n": null}\n')
    found = scan(path)
    read_rows = read(found)
    assert sources.carry(found.columns, read_rows).to_pydict() == {"n": [1, None, None], "m": ["[1]", None, "x"]}
    assert sources.carry(found.columns, read_rows[1:2]).to_pydict() == {"n": [None], "m": [None]}
    raw = pa.array([b"a", b"\xff", b"c"]).view(pa.string())
    pq.write_table(pa.table({"text": raw, "n": [1, 2, 3]}), tmp_path / "b.parquet")
    found = scan(tmp_path / "b.parquet")
    carried = sources.carry(found.columns, read(found))
    assert carried.to_pydict() == {"text": ["a", None, "c"], "n": [1, None, 3]}
    carried.validate(full=True)


def test_renamed_columns(tmp_path: Path) -> None:
    """A renamed column carries the input's values under the output's name."""
    found = scan(write_jsonl(tmp_path / "a.jsonl", [{"x": 1, "y": "é"}]), columns={"b": "y", "a": "x", "c": "x"})
    assert sources.carry(found.columns, read(found)).to_pydict() == {"b": ["é"], "a": [1], "c": [1]}


def test_no_columns_and_no_rows(tmp_path: Path) -> None:
    """Nothing carried, or no rows, is a batch as well."""
    found = scan(write_jsonl(tmp_path / "a.jsonl", [{"x": 1}]))
    assert sources.carry((), read(found)).num_columns == 0
    empty = sources.carry(found.columns, [])
    assert empty.num_rows == 0
    assert empty.schema == sources.schema(found.columns)


@pytest.mark.parametrize("value", ["x", 2**70, [1], {"a": 1}])
def test_a_value_that_no_longer_fits(value: object) -> None:
    """A value of another type than was counted is an error that names its column and row."""
    column = CarriedColumn("n", "n", pa.int64())
    with pytest.raises(InputError, match="column 'n' at row r7 or soon after: is not int64"):
        sources.carry([column], [Row(RowKey(0, 0), "r7", {"n": value})])


def test_a_stored_column_that_no_longer_fits(tmp_path: Path) -> None:
    """A parquet column that is gone, or whose values are of another type, is such an error as well."""
    pq.write_table(pa.table({"n": ["text"]}), tmp_path / "a.parquet")
    read_rows = read(scan(tmp_path / "a.parquet"))
    for source in ("n", "m"):
        with pytest.raises(InputError, match=f"column '{source}' at row a.parquet:0 or soon after: is not int64"):
            sources.carry([CarriedColumn("n", source, pa.int64())], read_rows)
