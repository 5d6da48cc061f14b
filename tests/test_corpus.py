"""The project's own texts: what the first user sees is what data/README.md says."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seedx_batch import sources
from seedx_batch.errors import RowRejected
from seedx_batch.prompts import Prompts
from seedx_batch.records import Row
from seedx_batch.spec import InputSpec, PromptSpec

DATA = Path(__file__).parents[1] / "data"
KEYS = ["id", "domain", "source", "reference"]
CJK = re.compile("[\u4e00-\u9fff]")
LATIN = re.compile("[A-Za-z]")
LENGTHS = ((1, 10), (11, 40), (41, 60), (61, 150), (151, 400))


def read(name: str) -> list[dict[str, Any]]:
    """The rows of a file."""
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def readme_cells(num_cells: int) -> list[list[str]]:
    """The rows of all tables in data/README.md that have so many cells."""
    lines = (DATA / "README.md").read_text(encoding="utf-8").splitlines()
    tables = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return [cells for cells in tables if len(cells) == num_cells]


@pytest.mark.parametrize("name", ["zh_en.jsonl", "en_zh.jsonl"])
def test_pairs_have_the_same_keys_and_nothing_twice(name: str) -> None:
    """Every row has the four keys in their order, all texts are trimmed, and no id or text occurs twice."""
    rows = read(name)
    assert all(list(row) == KEYS for row in rows)
    assert [row["id"] for row in rows] == [f"{name[:2]}-{number:04d}" for number in range(1, len(rows) + 1)]
    for key in ("source", "reference"):
        texts = [row[key] for row in rows]
        assert all(text and text == text.strip() for text in texts)
        assert len(set(texts)) == len(texts)


def test_chinese_rows_are_many_mixed_and_varied() -> None:
    """At least 320 rows in eight or more domains of 25, short, middle and long ones, a few with a newline."""
    rows = read("zh_en.jsonl")
    assert len(rows) >= 320
    domains = Counter(row["domain"] for row in rows)
    assert len(domains) >= 8
    assert min(domains.values()) >= 25
    lengths = [len(row["source"]) for row in rows]
    assert sum(2 <= length <= 6 for length in lengths) >= 5
    assert sum(10 <= length <= 40 for length in lengths) >= 150
    assert sum(60 <= length <= 150 for length in lengths) >= 30
    assert sum(200 <= length <= 400 for length in lengths) >= 5
    assert max(lengths) <= 400
    assert sum("\n" in row["source"] for row in rows) == 4


def test_each_side_is_in_its_language() -> None:
    """Chinese texts hold Chinese characters, English ones Latin letters and no Chinese character or punctuation."""
    pairs = [(row["source"], row["reference"]) for row in read("zh_en.jsonl")]
    pairs += [(row["reference"], row["source"]) for row in read("en_zh.jsonl")]
    for chinese, english in pairs:
        assert CJK.search(chinese), chinese
        assert LATIN.search(english), english
        assert not re.search("[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]", english), english


def test_a_newline_is_kept_in_the_reference() -> None:
    """A source of several lines has a reference of as many."""
    for row in read("zh_en.jsonl"):
        assert row["source"].count("\n") == row["reference"].count("\n"), row["id"]


def test_first_rows_are_short_and_stand_for_all() -> None:
    """The first 60 sources have at most 60 characters, and every 60 rows in a row have every domain."""
    rows = read("zh_en.jsonl")
    assert max(len(row["source"]) for row in rows[:60]) <= 60
    domains = {row["domain"] for row in rows}
    for start in range(len(rows) - 59):
        assert {row["domain"] for row in rows[start : start + 60]} == domains, start
    assert all(any(len(row["source"]) > 150 for row in rows[start : start + 60]) for start in range(60, len(rows), 60))


def test_parquet_holds_the_same_rows() -> None:
    """JSONL and parquet are equal, row by row; parquet has string columns and zstd."""
    file = pq.ParquetFile(DATA / "zh_en.parquet")
    assert file.schema_arrow.equals(pa.schema([(key, pa.string()) for key in KEYS]))
    assert file.metadata.row_group(0).column(2).compression == "ZSTD"
    assert file.read().to_pylist() == read("zh_en.jsonl")


def test_english_rows_and_prompts_are_counted() -> None:
    """60 English texts with a domain that the Chinese ones have too; 24 prompts, none twice."""
    english = read("en_zh.jsonl")
    assert len(english) == 60
    assert {row["domain"] for row in english} == {row["domain"] for row in read("zh_en.jsonl")}
    prompts = read("prompts.jsonl")
    assert len(prompts) == len({row["id"] for row in prompts}) == len({row["prompt"] for row in prompts}) == 24
    assert all(list(row) == ["id", "topic", "prompt"] and LATIN.search(row["prompt"]) for row in prompts)


def test_readme_counts_are_those_of_the_files() -> None:
    """The tables of files, domains and lengths in data/README.md agree with a recount."""
    rows = read("zh_en.jsonl")
    domains = sorted({row["domain"] for row in rows})
    expected = []
    for domain in [*domains, "all"]:
        lengths = [len(row["source"]) for row in rows if domain in (row["domain"], "all")]
        counts = [sum(low <= length <= high for length in lengths) for low, high in LENGTHS]
        assert sum(counts) == len(lengths)
        expected.append([domain, *map(str, [len(lengths), *counts])])
    assert readme_cells(7)[2:] == expected
    told = {cells[0]: int(cells[1]) for cells in readme_cells(4)[2:]}
    assert set(told) == {path.name for path in DATA.iterdir()} - {"README.md"}
    for name in ("zh_en.jsonl", "en_zh.jsonl", "prompts.jsonl"):
        assert told[name] == len(read(name))
    assert told["zh_en.parquet"] == pq.read_metadata(DATA / "zh_en.parquet").num_rows


def bad_rows() -> list[Row]:
    """The rows of bad_rows.jsonl, as a job reads them."""
    spec = InputSpec(path=str(DATA / "bad_rows.jsonl"), id="id")
    found = sources.scan(sources.find(spec), spec, rows_per_shard=100)
    with sources.Reader(found.files, found.id_column) as reader:
        return list(reader.rows(found.shards[0]))


def test_bad_rows_end_as_the_readme_says() -> None:
    """Each line of bad_rows.jsonl is good, or is refused for the reason that data/README.md gives."""
    prompts = Prompts.build(PromptSpec(preset="few-shot", text="source", source_lang="zh", target_lang="en"))
    ends = []
    for row in bad_rows():
        end = "translated" if row.error is None else row.error.split(":")[0]
        if row.error is None:
            try:
                prompts.render(row)
            except RowRejected as rejection:
                end = rejection.kind
        ends.append(end)
    told = [(int(line), re.split("[`,;:]", end)[0]) for line, _, end in readme_cells(3)[2:]]
    assert [line for line, _ in told] == list(range(1, 19))
    # The length is the engine's to judge; a blank line is no row.
    assert ends == ["translated" if line == 16 else end for line, end in told if line != 11]
    assert len(ends) == int(next(cells[1] for cells in readme_cells(4) if cells[0] == "bad_rows.jsonl"))


def test_bad_rows_hold_the_special_cases() -> None:
    """The blank line, the bad bytes, the repeated id, the absent id, the long text and the torn end are all there."""
    lines = (DATA / "bad_rows.jsonl").read_bytes().split(b"\n")
    assert lines[10] == b""
    with pytest.raises(UnicodeDecodeError):
        lines[12].decode()
    assert json.loads(lines[0])["id"] == json.loads(lines[13])["id"]
    assert "id" not in json.loads(lines[14])
    assert len(json.loads(lines[15])["source"]) == 20_000
    assert len(lines) == 18
    assert not lines[17].endswith(b"}")
