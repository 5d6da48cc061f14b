"""What a job would do, looked at without an engine."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pytest

from seedx_batch import launch, preview
from tests.jobs import write_job


def test_a_compressed_file_is_gone_through_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampling rows from all over a compressed file reads it once, beside the once in which its rows are counted."""
    rows = "".join(json.dumps({"id": str(number), "source": f"text {number}"}) + "\n" for number in range(2000))
    source = tmp_path / "rows.jsonl.gz"
    source.write_bytes(gzip.compress(rows.encode()))
    opened = []
    stream = pa.CompressedInputStream

    def counted(*arguments: object) -> object:
        opened.append(arguments)
        return stream(*arguments)

    monkeypatch.setattr(pa, "CompressedInputStream", counted)
    spec = launch.load(write_job(tmp_path, source), [], None)
    shown = preview.preview(spec)
    assert (shown["num_rows"], shown["sample"]["num_rows"]) == (2000, 20 * 10)
    assert len(opened) == 2
