"""What is said of an input that is not what was counted, when rows were only added, and that no changed row is read."""

import importlib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from input_files import fields, read, scan, write, write_csv, write_jsonl

from seedx_batch import sources
from seedx_batch.errors import InputError
from seedx_batch.sources import Changes, Scan
from seedx_batch.sources import reader as reading
from seedx_batch.spec import InputSpec

scanning = importlib.import_module("seedx_batch.sources.scan")  # a function has the module's name
Rows = list[dict[str, Any]]
ROWS: Rows = [{"id": f"r{number}", "text": f"text {number}"} for number in range(57)]
TEXT_WRITERS: dict[str, Callable[[Path, Rows], object]] = {
    "a.jsonl": write_jsonl,
    "a.csv": lambda path, rows: write_csv(path, [["id", "text"], *(list(row.values()) for row in rows)]),
    "a.tsv.gz": lambda path, rows: write_csv(path, [["id", "text"], *(list(row.values()) for row in rows)], "\t"),
    "a.jsonl.zst": write_jsonl,
}


def compare(found: Scan, path: Path, **spec: Any) -> Changes:
    """What has changed since a scan that cut shards of ten rows; that it is something is checked."""
    changes = sources.compare(found.files, found.shards, InputSpec(path=str(path), **spec), 10)
    assert changes is not None
    return changes


def told(found: Scan, path: Path) -> list[str]:
    """The lines about a folder, without the folder and sizes in bytes."""
    return [re.sub(r"[\d,]+ bytes", "B bytes", line).replace(f"{path}/", "") for line in compare(found, path).lines]


def with_another(rows: Sequence[dict[str, Any]], place: int) -> Rows:
    """Rows of which one has another text of the same length."""
    return [*rows[:place], {**rows[place], "text": "TEXT" + rows[place]["text"][4:]}, *rows[place + 1 :]]


EDITS: dict[str, tuple[Callable[[Rows], Rows], str]] = {
    "appended": (lambda rows: [*rows, *rows[:2]], "is 59 rows in B bytes: rows were appended"),
    "changed": (lambda rows: with_another(rows, 34), ": rows were changed, the first among rows 30 to 39"),
    "cut off": (lambda rows: rows[:50], "is 50 rows in B bytes: its last 7 rows were removed"),
    "removed": (
        lambda rows: rows[:12] + rows[13:],
        "is 56 rows in B bytes: rows were removed or changed, the first among rows 10 to 19",
    ),
    "inserted": (
        lambda rows: [*rows[:5], rows[9], *rows[5:]],
        "is 58 rows in B bytes: rows were inserted or changed, the first among rows 0 to 9",
    ),
    "turned": (lambda rows: rows[::-1], ": the order of its rows was changed, first among rows 0 to 9"),
    "swapped": (
        lambda rows: [*rows[:55], rows[56], rows[55]],
        ": the order of its rows was changed, first among rows 50 to 56",
    ),
}


@pytest.mark.parametrize("name", TEXT_WRITERS)
@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_file(tmp_path: Path, name: str, edit: str) -> None:
    """What happened to a file is told in words and figures, and only rows at its end can be taken for an extension."""
    change, words = EDITS[edit]
    TEXT_WRITERS[name](tmp_path / name, ROWS)
    found = scan(tmp_path, 10)
    TEXT_WRITERS[name](tmp_path / name, change(ROWS))
    os.utime(tmp_path / name, ns=(0, 0))
    (line,) = told(found, tmp_path)
    assert line.startswith(f"{name}: was 57 rows in B bytes")
    assert line.endswith(words)
    assert (compare(found, tmp_path).extended is not None) == (edit == "appended")


def test_files_that_came_and_went(tmp_path: Path) -> None:
    """A file that is gone, renamed or new is told by name, with its rows, and with what it would come before."""
    for name in ("b", "d"):
        write_jsonl(tmp_path / f"{name}.jsonl", ({"n": f"{name}{number}"} for number in range(12)))
    found = scan(tmp_path, 10)
    write_jsonl(tmp_path / "e.jsonl", [{"n": "e"}])
    assert told(found, tmp_path) == ["e.jsonl: is new, with 1 row"]
    assert compare(found, tmp_path).extended is not None
    write_jsonl(tmp_path / "a.jsonl", [{"n": "a"}])
    assert told(found, tmp_path)[0] == "a.jsonl: is new; b.jsonl, which was there before, comes after it"
    assert compare(found, tmp_path).extended is None
    (tmp_path / "a.jsonl").unlink()
    (tmp_path / "e.jsonl").unlink()
    (tmp_path / "b.jsonl").rename(tmp_path / "c.jsonl")
    assert told(found, tmp_path) == ["b.jsonl: was renamed to c.jsonl"]
    (tmp_path / "c.jsonl").unlink()
    assert told(found, tmp_path) == ["b.jsonl: is gone, with its 12 rows"]
    (tmp_path / "d.jsonl").unlink()
    assert told(found, tmp_path) == ["b.jsonl: is gone", "d.jsonl: is gone"]


def test_rows_at_the_end_of_a_file_in_the_middle(tmp_path: Path) -> None:
    """Rows that were appended to a file that others come after are no extension, and it is told why."""
    for name in ("a", "b"):
        write_jsonl(tmp_path / f"{name}.jsonl", ROWS)
    found = scan(tmp_path, 10)
    write_jsonl(tmp_path / "a.jsonl", [*ROWS, ROWS[0]])
    assert told(found, tmp_path)[0].endswith(
        f"rows were appended, but {tmp_path}/b.jsonl comes after it".replace(f"{tmp_path}/", "")
    )
    assert compare(found, tmp_path).extended is None


def test_a_parquet_file_has_no_digests_of_its_rows(tmp_path: Path) -> None:
    """Of a parquet file rows and bytes are told, and it is never extended; one behind it is an extension."""
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    found = scan(tmp_path, 10)
    pq.write_table(pa.Table.from_pylist([*ROWS, *ROWS]), tmp_path / "b.parquet")
    extended = compare(found, tmp_path).extended
    assert extended is not None
    assert fields(read(extended)) == [*ROWS, *ROWS, *ROWS]
    pq.write_table(pa.Table.from_pylist([*ROWS, ROWS[0]]), tmp_path / "a.parquet")
    assert told(found, tmp_path)[1].startswith(
        "a.parquet: was 57 rows in B bytes, is 58 rows in B bytes: it is another"
    )
    assert compare(found, tmp_path).extended is None


def test_an_input_that_no_longer_can_be_read(tmp_path: Path) -> None:
    """A change that makes the input unreadable is told with the reason."""
    write_jsonl(tmp_path / "a.jsonl.gz", ROWS)
    found = scan(tmp_path, 10)
    (tmp_path / "a.jsonl.gz").write_bytes((tmp_path / "a.jsonl.gz").read_bytes()[:-20])
    first, second = told(found, tmp_path)
    assert first.startswith("a.jsonl.gz: was B bytes, is ")
    assert "cut short as a gzip file" in second
    (tmp_path / "b.parquet").touch()
    assert "more than one format" in compare(found, tmp_path).lines[0]


def test_a_limit_looks_at_what_it_takes(tmp_path: Path) -> None:
    """With a limit, files behind the last row that is taken do not matter, and those before it do."""
    write_jsonl(tmp_path / "b.jsonl", ROWS)
    found = scan(tmp_path, 10, limit=20)
    write_jsonl(tmp_path / "c.jsonl", ROWS)
    spec = InputSpec(path=str(tmp_path), limit=20)
    assert sources.compare(found.files, found.shards, spec, 10) is None
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    assert compare(found, tmp_path, limit=20).extended is None


Edit = tuple[str, int]


def apply(rows: list[int], edits: Sequence[Edit]) -> list[int]:
    """Rows after some edits, each of which says what is done and where."""
    rows = list(rows)
    for number, (kind, place) in enumerate(edits):
        at = place % (len(rows) + 1)
        if kind == "append":
            rows.append(1000 + number)
        elif kind == "insert":
            rows.insert(at, 1000 + number)
        elif rows and kind == "remove":
            del rows[at % len(rows)]
        elif rows and kind == "change":
            rows[at % len(rows)] += 10_000
        elif rows and kind == "move":
            rows.insert(0, rows.pop(at % len(rows)))
    return rows


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 7), min_size=1, max_size=3),
    edits=st.lists(
        st.tuples(st.sampled_from(["append", "append", "insert", "remove", "change", "move"]), st.integers(0, 9)),
        max_size=4,
    ),
    which=st.integers(0, 3),
    rows_per_shard=st.integers(1, 4),
    ends=st.tuples(st.sampled_from(["\n", "", "\n\n"]), st.sampled_from(["\n", "", "\n\r\n"])),
    step=st.sampled_from([1, 20, 1 << 20]),
)
def test_any_edit(
    sizes: list[int], edits: list[Edit], which: int, rows_per_shard: int, ends: tuple[str, str], step: int
) -> None:
    """Whatever is done to one file of some, or to a new one behind them: it is an extension exactly where all rows that
    were there are still the first ones; then the old shards are as they were, and all together give the new rows."""
    if not sum(sizes):
        return
    with TemporaryDirectory() as folder:
        names = [Path(folder, f"{number}.jsonl") for number in range(len(sizes))]
        contents = [[100 * number + row for row in range(size)] for number, size in enumerate(sizes)]
        before = [row for content in contents for row in content]

        def put(number: int, end: str) -> None:
            lines = "\n".join(f'{{"n": {row}}}' for row in contents[number])
            names[number].write_text(lines + (end if lines else ""))

        for number in range(len(names)):
            put(number, ends[0])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(scanning, "_BYTES_PER_CALL", step)  # how much is hashed at once changes nothing
            found = scan(folder, rows_per_shard)
        if which >= len(names):
            which = len(names)
            names.append(Path(folder, "9.jsonl"))
            contents.append([])
        contents[which] = apply(contents[which], edits)
        if contents[which] or which < len(sizes):
            put(which, ends[1])
        after = [row for content in contents for row in content]
        changes = sources.compare(found.files, found.shards, InputSpec(path=folder), rows_per_shard)
        if changes is None:
            assert after == before
            return
        assert all(line.startswith(folder) for line in changes.lines)
        lengths = [len(content) for content in contents]
        last = max(number for number, size in enumerate(sizes) if size)  # empty files have no place in the order
        is_extended = after[: len(before)] == before and lengths[:last] == sizes[:last]
        assert (changes.extended is not None) == is_extended
        if changes.extended is not None:
            assert changes.extended.shards[: len(found.shards)] == found.shards
            assert [row.fields["n"] for row in read(changes.extended)] == after


def read_on(found: Scan, given: list[Any], name: str, place: int, edit: Callable[[], object]) -> None:
    """Reads a column of all shards into a list, and edits the input when so many values are there."""
    with sources.Reader(found.files, None) as reader:
        for shard in found.shards:
            for row in reader.rows(shard):
                given.append(row.fields[name])
                if len(given) == place:
                    edit()


@pytest.mark.parametrize("limit", [1 << 28, 1], ids=["in memory", "streaming"])
def test_a_file_that_changes_while_it_is_read(tmp_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No row is given of a shard whose text is not what it was; shards that were read before are whole."""
    monkeypatch.setattr(reading, "_MOST_IN_MEMORY", limit)
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    found = scan(path, 10)
    given: list[str] = []

    def edit() -> None:
        write_jsonl(path, with_another(ROWS, 34))
        os.utime(path, ns=(0, 0))

    with pytest.raises(InputError, match=r"a\.jsonl: .*chang.*put it back as it was and run the same command again"):
        read_on(found, given, "text", 15, edit)
    assert given == [row["text"] for row in ROWS[: len(given)]]
    assert len(given) == (30 if limit > 1 else 15)


def test_a_change_that_leaves_no_trace(tmp_path: Path) -> None:
    """A row that changes without another size or time of its file is never given."""
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    found = scan(path, 10)
    write_jsonl(path, with_another(ROWS, 34))
    os.utime(path, ns=(found.files[0].mtime_ns,) * 2)
    with sources.Reader(found.files, "id") as reader:
        assert len(list(reader.rows(found.shards[2]))) == 10
        with pytest.raises(InputError, match=r"a\.jsonl: rows 30 to 39 have changed since they were counted"):
            next(reader.rows(found.shards[3]))
        assert len(list(reader.rows(found.shards[4]))) == 10


def test_a_parquet_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    """Another file under the name of the one that is read is noticed before a row of a further batch is given."""
    rows = [{"n": number} for number in range(3000)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = scan(tmp_path, 3000)
    pq.write_table(pa.Table.from_pylist(rows[::-1]), tmp_path / "other")
    given: list[int] = []
    with pytest.raises(InputError, match="has changed while it was read"):
        read_on(found, given, "n", 700, lambda: (tmp_path / "other").rename(tmp_path / "a.parquet"))
    assert given == list(range(len(given)))
    assert 700 <= len(given) < 3000


def test_a_file_that_was_only_touched(tmp_path: Path) -> None:
    """Another time alone changes nothing, before and while a file is read."""
    for name in ("a.jsonl", "b.jsonl.gz"):
        found = scan(write_jsonl(tmp_path / name, ROWS), 10)
        given = []
        with sources.Reader(found.files, "id") as reader:
            for shard in found.shards:
                os.utime(tmp_path / name, ns=(shard.index, shard.index))
                given += list(reader.rows(shard))
        assert fields(given) == ROWS


def test_a_plan_without_digests(tmp_path: Path) -> None:
    """Shards of an earlier version, which have no digests, are read, and checked by their file's size and time."""
    path = write(tmp_path / "a.csv", b"n\n1\n2\n3\n")
    found = scan(path, 2)
    old = [sources.scan([path], InputSpec(path=str(path)), 2).shards[0]]
    bare = [type(shard)(shard.index, shard.path, shard.start_row, shard.num_rows, shard.start_byte) for shard in old]
    with sources.Reader(found.files, None) as reader:
        assert fields(reader.rows(bare[0])) == [{"n": "1"}, {"n": "2"}]
