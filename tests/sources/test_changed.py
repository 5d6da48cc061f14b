"""Whether a file still is what was counted."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from input_files import scan, write_csv, write_jsonl

from seedx_batch import sources
from seedx_batch.sources import InputFile

ROWS = [{"id": str(number), "text": "text" * number} for number in range(2000)]
WRITERS: dict[str, Callable[[Path], object]] = {
    "a.jsonl": lambda path: write_jsonl(path, ROWS),
    "a.jsonl.gz": lambda path: write_jsonl(path, ROWS),
    "a.jsonl.zst": lambda path: write_jsonl(path, ROWS),
    "a.csv": lambda path: write_csv(path, [["id", "text"], *(list(row.values()) for row in ROWS)]),
    "a.parquet": lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path),
}


@pytest.fixture(params=WRITERS)
def file(request: pytest.FixtureRequest, tmp_path: Path) -> InputFile:
    """A file of each format, counted."""
    path = tmp_path / request.param
    WRITERS[request.param](path)
    return scan(path, 100).files[0]


def test_the_same(file: InputFile) -> None:
    """A file that nobody touched is the same, also when it was written anew with the same content."""
    assert sources.changed(file) is None
    os.utime(file.path, ns=(0, 0))
    assert sources.changed(file) is None


def test_trusted_by_its_time(file: InputFile) -> None:
    """A file of the same size and time is trusted without being read."""
    content = bytearray(Path(file.path).read_bytes())
    content[-1] ^= 1
    Path(file.path).write_bytes(content)
    os.utime(file.path, ns=(file.mtime_ns, file.mtime_ns))
    assert sources.changed(file) is None


def test_another_size(file: InputFile) -> None:
    """A file that grew is told with both sizes."""
    with open(file.path, "ab") as opened:
        opened.write(b"\n")
    assert sources.changed(file) == f"was {file.num_bytes:,} bytes, is {file.num_bytes + 1:,}"


def test_another_content(file: InputFile) -> None:
    """A file of the same size with another content is told, by its digest."""
    content = bytearray(Path(file.path).read_bytes())
    content[-20] ^= 1  # in the footer of parquet
    Path(file.path).write_bytes(content)
    os.utime(file.path, ns=(0, 0))
    assert sources.changed(file) == "content differs at the same size"


def test_gone(file: InputFile) -> None:
    """A file that is no more is told."""
    Path(file.path).unlink()
    assert sources.changed(file) == "is gone"


def test_kept_as_json(file: InputFile) -> None:
    """A file's description comes back from JSON as it was."""
    assert InputFile.from_json(json.loads(json.dumps(file.to_json()))) == file


def test_a_limit_needs_the_beginning_only(tmp_path: Path) -> None:
    """With a limit the digest is of what was read, and another end of the same size is no change."""
    path = write_jsonl(tmp_path / "a.jsonl", ({"n": number, "text": "x" * 1000} for number in range(5000)))
    (file,) = scan(path, limit=10).files
    assert file.num_rows == 10
    assert 0 < int(file.digest.partition("/")[2]) < file.num_bytes
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)
    assert sources.changed(file) is None
    content[10] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(0, 0))
    assert sources.changed(file) == "content differs at the same size"
