"""Bad input, whole runs: one clear line or one error row each, the right exit code, and the good rows are done."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.jobs import ask, parts_of, seedx_batch, write_job, write_rows

Refused = Callable[..., None]
GOOD = '{"id": "good", "source": "你好"}'


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a job that is refused before a worker starts: with which code, and what is told."""

    def run(job: Path, code: int, *told: str) -> None:
        ended, _, message = ask(capsys, "run", job)
        assert ended == code, message
        for words in told:
            assert words in message

    return run


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("none.jsonl", None, "no such file"),
        ("empty.jsonl", b"", "no rows"),
        ("blank.jsonl", b"\n \n", "no rows"),
        ("rows.docx", b"x", "format"),
        ("cut.parquet", b"PAR1 and nothing more", "cut.parquet"),
        ("bad.jsonl.gz", b"this is no gzip", "bad.jsonl.gz"),
        ("bad.jsonl.zst", b"this is no zstd", "bad.jsonl.zst"),
        ("cut.jsonl.gz", gzip.compress(GOOD.encode() * 999)[:-20], "cut.jsonl.gz"),
    ],
)
def test_files_that_are_none(tmp_path: Path, refused: Refused, name: str, content: bytes | None, told: str) -> None:
    """A missing, empty, cut-off or unknown file ends the run with 66 and its name."""
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    refused(write_job(tmp_path, path), 66, name.split(".")[0], told)


def test_a_truncated_parquet(tmp_path: Path, refused: Refused) -> None:
    """A parquet file cut in the middle is named, with 66."""
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"id": ["a"] * 1000, "source": ["x"] * 1000}), path)
    path.write_bytes(path.read_bytes()[:-100])
    refused(write_job(tmp_path, path), 66, "rows.parquet")


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"prompt": {"text": "sorce"}}, "has no column 'sorce'"),
        ({"input": {"id": "idd"}}, "input.id"),
        ({"input": {"columns": ["nothing"]}}, "input.columns"),
        ({"decoding": {"max_tokens": {"max": 5, "column": "budget"}}}, "has no column 'budget'"),
        ({"output": {"column": "source"}}, "more than one column named 'source'"),
        ({"prompt": {"target_lang": "klingon"}}, "klingon"),
        ({"prompt": {"preset": "seedx"}}, "seed-x"),
        ({"prompt": {"chat_template": "no.jinja"}}, "chat_template"),
        ({"model": {"name": "/no/such/model"}}, "there is no folder '/no/such/model'"),
        ({"model": {"name": "package:gema"}}, "gema"),
        ({"decoding": {"method": "beam", "max_tokens": {"column": "budget", "max": 9}}}, "no column 'budget'"),
    ],
)
def test_jobs_that_do_not_suit_their_input(
    tmp_path: Path, refused: Refused, sections: dict[str, Any], told: str
) -> None:
    """A wrong column, language, preset, template or model is refused with 78 before anything runs."""
    rows = write_rows(tmp_path / "rows.jsonl", ["a"])
    job = write_job(tmp_path, rows, **sections)
    if sections.get("decoding", {}).get("method") == "beam":
        job.write_text(json.dumps(json.loads(job.read_text()) | {"decoding": sections["decoding"]}))
    refused(job, 78, told)
    assert not list((tmp_path / "run").glob("data/*"))


def test_an_output_that_cannot_be_written(tmp_path: Path, refused: Refused) -> None:
    """A run directory below a file ends with 74 and says so."""
    (tmp_path / "file").write_text("x")
    job = write_job(tmp_path, write_rows(tmp_path / "rows.jsonl", ["a"]))
    job.write_text(json.dumps(json.loads(job.read_text()) | {"run_dir": str(tmp_path / "file" / "run")}))
    refused(job, 74, "file")


@pytest.mark.process
def test_rows_that_are_none(tmp_path: Path) -> None:
    """Every bad row is an error row in its place, with its kind; the good ones around it are done."""
    lines = [
        (GOOD.encode(), None),
        (b"{not json", "invalid_json"),
        (b"[1, 2]", "not_an_object"),
        (b'{"id": 7}', "missing_column|no_text"),
        (b'{"id": 8, "source": null}', "no_text"),
        (b'{"id": 9, "source": ""}', "empty_text"),
        (b'{"id": 10, "source": "  \\n"}', "empty_text"),
        (b'{"id": 11, "source": 5}', "not_text"),
        (b'{"id": 12, "source": "\xff\xfe"}', "invalid_utf8"),
        (b'{"id": 13, "source": "\\ud800"}', "invalid_utf8"),
        (b'{"id": 14, "source": "' + b"x" * 10_000_000 + b'"}', "prompt_too_long"),
        (GOOD.encode(), None),
        (b'{"id": "torn", "sour', "invalid_json"),
    ]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(line for line, _ in lines))
    ended = seedx_batch("run", write_job(tmp_path, path, output={"rows_per_shard": 5}))
    assert ended.returncode == 0, ended.stderr
    table = parts_of(tmp_path / "run")
    assert table.num_rows == len(lines)
    for row, (_, kind) in zip(table.to_pylist(), lines, strict=True):
        if kind is None:
            assert (row["id"], row["status"], row["error"]) == ("good", row["status"], None)
            assert row["translation"]
        else:
            assert row["status"] == "error"
            assert row["error"].split(":")[0] in kind.split("|"), row["error"]
            assert row["translation"] is None
    assert "occur" in ended.stderr or "occurs" in ended.stderr  # the id `good` twice


@pytest.mark.process
def test_languages_from_a_column(tmp_path: Path) -> None:
    """With languages in a column, a row of an unknown one is an error row and the others are translated."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"source": "Hi", "lang": lang}) + "\n" for lang in ("zh", "xx", None, "de")))
    job = write_job(tmp_path, path, prompt={"source_lang": "en", "target_lang": {"column": "lang"}})
    assert seedx_batch("run", job).returncode == 0
    assert [row["status"] == "error" for row in parts_of(tmp_path / "run").to_pylist()] == [False, True, True, False]
