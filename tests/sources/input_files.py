"""Input files for tests, of every format, and what comes back of them."""

import csv
import gzip
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from seedx_batch import sources
from seedx_batch.records import Row
from seedx_batch.sources import Scan
from seedx_batch.spec import InputSpec

TEXT_ENDINGS = ["", ".gz", ".zst"]


def write(path: Path, content: bytes) -> Path:
    """A file with this content, compressed as its name says."""
    if path.suffix == ".gz":
        content = gzip.compress(content)
    elif path.suffix == ".zst":
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(content)
        content = sink.getvalue().to_pybytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def write_jsonl(path: Path, rows: Iterable[object]) -> Path:
    """A line for each value."""
    return write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def write_csv(path: Path, rows: Iterable[Sequence[str]], delimiter: str = ",") -> Path:
    """A record for each list of fields, the header first."""
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter).writerows(rows)
    return write(path, text.getvalue().encode())


def scan(path: Path | str | list[str], rows_per_shard: int = 3, **spec: Any) -> Scan:
    """What a scan of these files finds."""
    given = InputSpec(path=path if isinstance(path, list) else str(path), **spec)
    return sources.scan(sources.find(given), given, rows_per_shard)


def read(found: Scan) -> list[Row]:
    """All rows of a scan, read shard by shard."""
    with sources.Reader(found.files, found.id_column) as reader:
        return [row for shard in found.shards for row in reader.rows(shard)]


def fields(rows: Iterable[Row]) -> list[Mapping[str, Any]]:
    """What the rows hold, as dicts."""
    return [dict(row.fields) for row in rows]


def errors(rows: Iterable[Row]) -> list[str | None]:
    """The kind of each row's error."""
    return [None if row.error is None else row.error.split(": ", 1)[0] for row in rows]
