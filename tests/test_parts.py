"""Proves that rows come out as they went in, that a part is whole and in order, and that damage is seen."""

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seedx_batch import parts
from seedx_batch.errors import SpecError, StorageError
from seedx_batch.parts import Footer, OpenShard
from seedx_batch.records import Candidate, Completion, RowKey, Shard
from seedx_batch.stats import TokenStats

COMPLETION = parts.completion_schema("translation", [], False)
CARRIED = pa.schema([pa.field("source", pa.string()), pa.field("tags", pa.list_(pa.int64()))])
SCHEMA = parts.part_schema(CARRIED, COMPLETION)

texts = st.none() | st.text(max_size=20)
counts = st.integers(0, 2**31 - 1)
candidates = st.builds(
    Candidate,
    text=st.text(max_size=20),
    finish_reason=texts,
    num_output_tokens=counts,
    score=st.none() | st.floats(allow_nan=False),
)


def completions(extra_columns: list[str], *, with_candidates: bool) -> st.SearchStrategy[Completion]:
    return st.builds(
        Completion,
        key=st.builds(RowKey, st.just(7), st.integers(0, 2**31 - 1)),
        status=st.sampled_from(["ok", "truncated", "error"]),
        text=texts,
        finish_reason=texts,
        error=texts,
        num_prompt_tokens=counts,
        num_cached_tokens=counts,
        num_output_tokens=counts,
        candidates=st.lists(candidates, max_size=3).map(tuple) if with_candidates else st.just(()),
        extra=st.fixed_dictionaries(dict.fromkeys(extra_columns, texts)),
        deduplicated=st.booleans(),
    )


def completed(position: int, shard: int = 0) -> Completion:
    return Completion(RowKey(shard, position), "ok", f"text {position}", "stop", num_prompt_tokens=position)


def carried(positions: range) -> pa.RecordBatch:
    rows = [{"id": f"id-{n}", "source": f"source {n}", "tags": [n] * (n % 3)} for n in positions]
    return pa.RecordBatch.from_pylist(rows, schema=pa.schema([pa.field("id", pa.string()), *CARRIED]))


def full_shard(num_rows: int, index: int = 0) -> OpenShard:
    shard = OpenShard(Shard(index, "in.jsonl", 0, num_rows), SCHEMA, COMPLETION)
    shard.carry(carried(range(num_rows)))
    for position in range(num_rows):
        shard.complete(completed(position, index))
    return shard


def footer_of(shard: OpenShard) -> Footer:
    return Footer(
        format=parts.FORMAT,
        fingerprint="068cb5fc",
        signature="job:zh_en|v:0.1.0",
        shard=shard.shard,
        stats=shard.stats(),
        started_at="2026-01-01T00:00:00+00:00",
        committed_at="2026-01-01T00:01:00+00:00",
        worker="rank-00000",
        versions={"vllm": "0.32.0"},
    )


@given(st.data(), st.booleans(), st.sampled_from([[], ["explanation"], ["position", "candidates"]]))
def test_completions_come_back(data: st.DataObject, with_candidates: bool, extra_columns: list[str]) -> None:
    """Whatever a completion holds, its row in a journal gives the same completion, whatever the columns are named."""
    schema = parts.completion_schema("position", extra_columns, with_candidates)
    rows = data.draw(st.lists(completions(extra_columns, with_candidates=with_candidates), max_size=5))
    batch = parts.to_batch(rows, schema)
    assert batch.schema == parts.journal_schema(schema)
    assert parts.from_batch(batch, 7) == rows


def test_an_absent_extra_text_is_null() -> None:
    """An error row that has none of the preset's texts gets nulls for them."""
    schema = parts.completion_schema("translation", ["explanation"], False)
    batch = parts.to_batch([Completion(RowKey(0, 3), "error", error="null: no text")], schema)
    assert batch.to_pylist()[0]["explanation"] is None
    assert parts.from_batch(batch, 0)[0].extra == {"explanation": None}


@pytest.mark.parametrize(
    "completion",
    [
        Completion(RowKey(0, 0), "ok", "text", extra={"explanation": "why"}),
        Completion(RowKey(0, 0), "ok", "text", candidates=(Candidate("text", "stop", 1),)),
    ],
)
def test_what_has_no_column_is_not_dropped(completion: Completion) -> None:
    """A text or candidates without a column are an error of the program, not lost in silence."""
    with pytest.raises(ValueError, match="no column for all of"):
        parts.to_batch([completion], COMPLETION)


def test_half_a_surrogate_pair_does_not_stop_the_job() -> None:
    """Text that no file can hold, quoted in one row's error say, becomes a replacement character."""
    schema = parts.completion_schema("translation", [], True)
    rows = [
        Completion(RowKey(0, 0), "ok", "fine 🙂", candidates=(Candidate("a\udc00b", "stop", 1),)),
        Completion(RowKey(0, 1), "error", error="bad: \ud83d"),
    ]
    first, second = parts.from_batch(parts.to_batch(rows, schema), 0)
    assert (first.text, first.candidates[0].text) == ("fine 🙂", "a\ufffdb")
    assert second.error == "bad: \ufffd"


def test_columns_of_a_part_are_in_order() -> None:
    """`id`, what is carried, what is completed; the input's metadata, which describes other columns, is left out."""
    completion = parts.completion_schema("translation", ["explanation"], True)
    schema = parts.part_schema(CARRIED.with_metadata({"huggingface": "{}"}), completion)
    assert schema.names == [
        *("id", "source", "tags", "translation", "explanation", "candidates", "finish_reason", "status", "error"),
        *("num_prompt_tokens", "num_cached_tokens", "num_output_tokens", "deduplicated"),
    ]
    assert schema.metadata is None
    assert schema.field("status").type == pa.string()


@pytest.mark.parametrize(
    ("carried_names", "text_column", "clashes"),
    [
        (["source", "status", "translation"], "translation", "'status', 'translation'"),
        (["id"], "translation", "'id'"),
        (["source"], "status", "'status'"),
        (["source", "source"], "translation", "'source'"),
    ],
)
def test_a_name_that_occurs_twice_is_refused(carried_names: list[str], text_column: str, clashes: str) -> None:
    """All clashes are told at once, with the key of the job that resolves them."""
    schema = pa.schema([pa.field(name, pa.string()) for name in carried_names])
    with pytest.raises(SpecError) as caught:
        parts.part_schema(schema, parts.completion_schema(text_column, [], False))
    (fault,) = caught.value.faults
    assert fault.where == "input.columns"
    assert fault.what.endswith(f"named {clashes}")
    assert "`input.columns: {other_name: column}`" in fault.remedy


@pytest.mark.parametrize(("num_rows", "batch_size"), [(1, 1), (7, 3), (2500, 1), (2500, 700), (2500, 2500)])
def test_rows_come_out_in_input_order(num_rows: int, batch_size: int) -> None:
    """However rows are carried and in whatever order they end, the table has each once, in input order."""
    shard = OpenShard(Shard(3, "in.jsonl", 100, num_rows), SCHEMA, COMPLETION)
    positions = list(range(num_rows))
    random.Random(0).shuffle(positions)
    for position in positions:
        assert not shard.is_full
        shard.complete(completed(position, 3))
    for start in range(0, num_rows, batch_size):
        assert not shard.is_full
        shard.carry(carried(range(start, min(start + batch_size, num_rows))))
    assert shard.is_full
    table = shard.table()
    assert table.schema.equals(SCHEMA)
    assert table["id"].to_pylist() == [f"id-{n}" for n in range(num_rows)]
    assert table["tags"].to_pylist() == [[n] * (n % 3) for n in range(num_rows)]
    assert table["translation"].to_pylist() == [f"text {n}" for n in range(num_rows)]
    assert shard.stats() == TokenStats.of(completed(n) for n in range(num_rows))


def test_carried_rows_do_not_keep_small_batches() -> None:
    """Rows that come one by one are put together, so that a shard's memory is that of its values."""
    shard = OpenShard(Shard(0, "in.jsonl", 0, 3000), SCHEMA, COMPLETION)
    for n in range(3000):
        shard.carry(carried(range(n, n + 1)))
        shard.complete(completed(n))
    assert shard.table()["source"].num_chunks == 3


def test_a_row_ends_once() -> None:
    """A second completion, one of another shard, or one beyond the end is an error of the program."""
    shard = OpenShard(Shard(1, "in.jsonl", 0, 2), SCHEMA, COMPLETION)
    shard.complete(completed(0, 1))
    with pytest.raises(RuntimeError, match="has ended twice"):
        shard.complete(completed(0, 1))
    for key in (RowKey(0, 1), RowKey(1, 2), RowKey(1, -1)):
        with pytest.raises(RuntimeError, match="is no row of"):
            shard.complete(Completion(key, "ok"))
    assert (shard.missing, shard.num_completed) == ([1], 1)
    assert shard.take_unwritten() == [completed(0, 1)]


def test_unwritten_rows_are_taken_once() -> None:
    """A checkpoint gets what has ended since the last one; what came from the journal is not written there again."""
    shard = OpenShard(Shard(0, "in.jsonl", 0, 5), SCHEMA, COMPLETION)
    shard.restore([completed(3), completed(1)])
    assert (shard.take_unwritten(), shard.missing) == ([], [0, 2, 4])
    shard.complete(completed(4))
    shard.complete(completed(0))
    assert shard.take_unwritten() == [completed(4), completed(0)]
    assert shard.take_unwritten() == []
    assert (shard.missing, shard.num_completed) == ([2], 4)


@pytest.mark.parametrize("positions", [[0, 0], [0, 9]])
def test_a_journal_that_cannot_be_is_told(positions: list[int]) -> None:
    """A journal with a row twice or a row that the shard does not have is damaged storage, with a remedy."""
    shard = OpenShard(Shard(4, "in.jsonl", 0, 5), SCHEMA, COMPLETION)
    with pytest.raises(StorageError, match=r"the journal of shard 4: .*; remove it and run the same command again"):
        shard.restore(completed(position, 4) for position in positions)


def test_a_shard_that_is_not_full_is_no_part() -> None:
    """Neither rows without an end nor ends without a row make a table."""
    shard = OpenShard(Shard(0, "in.jsonl", 0, 2), SCHEMA, COMPLETION)
    shard.carry(carried(range(2)))
    shard.complete(completed(0))
    for give in (shard.table, shard.stats):
        with pytest.raises(RuntimeError, match="of 2 rows, 2 are carried and 1 have ended"):
            give()
    with pytest.raises(ValueError, match="more are to be carried"):
        shard.carry(carried(range(1)))
    with pytest.raises(ValueError, match="names"):
        OpenShard(Shard(0, "in.jsonl", 0, 2), SCHEMA, COMPLETION).carry(pa.RecordBatch.from_pydict({"id": ["a"]}))


def test_a_part_comes_back(tmp_path: Path) -> None:
    """The file gives the same rows and the same footer, in zstd row groups of bounded size."""
    shard = full_shard(25_000)
    path = tmp_path / "part.parquet"
    parts.write_part(path, shard.table(), footer_of(shard))
    table = parts.read_part(path)
    assert table.equals(shard.table())
    assert (table.schema.names, table.schema.metadata) == (SCHEMA.names, None)
    assert parts.read_footer(path) == footer_of(shard)
    metadata = pq.read_metadata(path)
    assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == [10_000, 10_000, 5_000]
    assert metadata.row_group(0).column(0).compression == "ZSTD"


def test_a_part_is_synced_before_it_can_be_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole file is synced, once; a sync that fails is told, and the file, which would take up space, removed."""
    path = tmp_path / "part.parquet"
    synced: list[int] = []

    def fail(fd: int) -> None:
        synced.append(os.fstat(fd).st_size)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    shard = full_shard(10)
    with pytest.raises(StorageError, match=r"part\.parquet: Input/output error"):
        parts.write_part(path, shard.table(), footer_of(shard))
    monkeypatch.undo()
    assert not path.exists()
    parts.write_part(path, shard.table(), footer_of(shard))
    assert synced == [path.stat().st_size]


def test_a_part_that_counts_other_rows_is_not_written(tmp_path: Path) -> None:
    """Rows out are rows in: a table that has fewer rows than its shard never becomes a part."""
    shard = full_shard(3)
    with pytest.raises(RuntimeError, match="2 rows for"):
        parts.write_part(tmp_path / "part.parquet", shard.table().slice(1), footer_of(shard))
    assert list(tmp_path.iterdir()) == []


def test_damaged_pages_are_seen(tmp_path: Path) -> None:
    """A changed byte in a page of texts is told by its checksum, never given out as another text."""
    shard = OpenShard(Shard(0, "in.jsonl", 0, 200), SCHEMA, COMPLETION)
    shard.carry(carried(range(200)))
    noise = random.Random(0)
    for n in range(200):
        shard.complete(Completion(RowKey(0, n), "ok", "".join(chr(noise.randrange(33, 0x3000)) for _ in range(50))))
    path = tmp_path / "part.parquet"
    parts.write_part(path, shard.table(), footer_of(shard))
    whole = path.read_bytes()
    column = pq.read_metadata(path).row_group(0).column(SCHEMA.get_field_index("translation"))
    start = column.dictionary_page_offset if column.has_dictionary_page else column.data_page_offset
    for position in range(start + 60, start + 60 + 5000, 100):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(StorageError, match=r"part\.parquet: is damaged .*; remove it"):
            parts.read_part(path)


def garbled_files(path: Path) -> Iterator[Path]:
    """Files that are no part: absent, empty, text, cut off, without a footer, with one garbled or of the future."""
    yield path
    path.touch()
    yield path
    path.write_text("no parquet")
    yield path
    shard = full_shard(2)
    parts.write_part(path, shard.table(), footer_of(shard))
    path.write_bytes(path.read_bytes()[:-10])
    yield path
    for metadata in (
        None,
        "[]",
        "{",
        '{"format": 1}',
        '{"format": 2}',
        "\xff",
        '{"format": 1, "stats": 3, "shard": {}}',
    ):
        stored = None if metadata is None else {"seedx_batch": metadata.encode("latin-1")}
        pq.write_table(shard.table().replace_schema_metadata(stored), path)
        yield path


def test_no_footer_is_told(tmp_path: Path) -> None:
    """Whatever is wrong with a file that should be a part, its name and what to do are told."""
    num_files = 0
    for path in garbled_files(tmp_path / "part.parquet"):
        num_files += 1
        with pytest.raises(StorageError, match=r"part\.parquet: is no part .*; remove it"):
            parts.read_footer(path)
    assert num_files == 11


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    """A part that cannot be written is an error that says how to go on."""
    path = tmp_path / "part.parquet"
    path.symlink_to("/dev/full")
    shard = full_shard(10)
    with pytest.raises(StorageError, match=r"part\.parquet: No space left on device; .*finished rows are kept"):
        parts.write_part(path, shard.table(), footer_of(shard))


def test_datasets_loads_parts_as_they_stand(tmp_path: Path) -> None:
    """`load_dataset` opens parts with different footers, gives plain strings, and candidates as lists."""
    import datasets

    completion = parts.completion_schema("translation", [], True)
    schema = parts.part_schema(CARRIED, completion)
    for index in range(2):
        shard = OpenShard(Shard(index, "in.jsonl", 2 * index, 2), schema, completion)
        shard.carry(carried(range(2)))
        best = Candidate("best", "stop", 2, -0.5)
        shard.complete(Completion(RowKey(index, 0), "ok", "best", "stop", candidates=(best, Candidate("b", None, 1))))
        shard.complete(Completion(RowKey(index, 1), "error", error="null: no text"))
        parts.write_part(tmp_path / f"part-{index}.parquet", shard.table(), footer_of(shard))
    rows = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "part-*.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert rows.column_names == schema.names
    assert rows.features["status"] == datasets.Value("string")
    assert rows["status"][:] == ["ok", "error"] * 2
    assert rows[0]["candidates"] == [
        {"text": "best", "finish_reason": "stop", "num_output_tokens": 2, "score": -0.5},
        {"text": "b", "finish_reason": None, "num_output_tokens": 1, "score": None},
    ]
    assert rows[1]["candidates"] == []


def test_storage_imports_neither_torch_nor_datasets() -> None:
    """Commands that only look at a run start at once, because what reads it pulls in nothing heavy."""
    code = (
        "import sys; from seedx_batch import journal, ledger, parts, rundir, stats;"
        "print([name for name in ('torch', 'datasets', 'vllm', 'pandas', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
