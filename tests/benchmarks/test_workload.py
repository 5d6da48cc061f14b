"""The rows that all systems of a comparison get."""

import json
from pathlib import Path

import workload

from seedx_batch.spec import SampleDecoding, parse


def test_lengths_are_varied_and_the_same_in_every_call() -> None:
    """A few rows are several times as long as most, and a comparison can be repeated."""
    lengths = workload.varied(256)
    assert lengths == workload.varied(256)
    assert min(lengths) >= 4
    assert max(lengths) <= 96
    assert max(lengths) > 3 * sorted(lengths)[128]


def test_no_two_rows_are_alike(tmp_path: Path) -> None:
    """There are fewer texts than rows, and still nothing can be merged."""
    path = workload.write_rows(tmp_path / "rows.jsonl", workload.varied(1024))
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len({row["source"] for row in rows}) == len({row["id"] for row in rows}) == 1024
    assert [row["budget"] for row in rows] == workload.varied(1024)


def test_the_job_forces_every_length(tmp_path: Path) -> None:
    """The job is one that the program takes, greedy, with each row as long as its budget."""
    job = workload.job(tmp_path / "rows.jsonl", tmp_path / "run", {"preset": "chat", "user": "{{ source }}"}, 32, 64)
    decoding = parse(json.dumps(job), "job").decoding
    assert isinstance(decoding, SampleDecoding)
    assert decoding.greedy
    assert decoding.ignore_eos
    assert decoding.max_tokens.column == "budget"
