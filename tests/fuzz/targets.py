"""What is fuzzed: each target takes any bytes, and raises if a promise about hostile input is broken.

A promise: nothing but this program's own errors, no wrong row, and no file outside the folder that is worked in.
"""

import atexit
import csv
import io
import json
import math
import re
import shutil
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from seedx_batch import ledger, parts, plain_yaml, spec, status
from seedx_batch.errors import RowRejected, SeedxBatchError, SpecError
from seedx_batch.journal import Journal, count_rows
from seedx_batch.parts import FORMAT, Footer
from seedx_batch.plan import Plan
from seedx_batch.prompts import presets
from seedx_batch.prompts.templates import Template, compile_template
from seedx_batch.records import Completion, RowKey, Shard
from seedx_batch.rundir import RunDirectory
from seedx_batch.sources.text import TextFile
from seedx_batch.stats import TokenStats
from tests.sources.input_files import read, scan, write

TARGETS: dict[str, Callable[[bytes], None]] = {}
SCHEMA = pa.schema([pa.field("id", pa.string()), pa.field("source", pa.string()), pa.field("n", pa.int64())])
ROWS = pa.table({"id": ["a", "b", "c"], "source": ["你好", "x\x1b", ""], "n": [1, None, -3]}, schema=SCHEMA)
FOLDER = Path(tempfile.mkdtemp(prefix="seedx-fuzz-"))
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)


def target(function: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """Makes a function a target, by its name."""
    TARGETS[function.__name__] = function
    return function


@contextmanager
def refusing() -> Iterator[None]:
    """Errors of ours are an answer; any other is a crash."""
    with suppress(SeedxBatchError):
        yield


def change(seed: bytes, data: bytes) -> bytes:
    """A valid file with some bytes changed, cut or put in, as `data` says: a fuzzer seldom finds into one by itself."""
    mutable = bytearray(seed)
    for place, kind, value in struct.iter_unpack("<HBB", data[: len(data) // 4 * 4]):
        where = place % max(1, len(mutable))
        if kind % 4 == 0:
            mutable[where : where + 1] = [value]
        elif kind % 4 == 1:
            mutable[where : where + 1] = [mutable[where] ^ 1 << value % 8] if mutable else []
        elif kind % 4 == 2:
            del mutable[where : where + value]
        else:
            mutable[where:where] = bytes([value]) * (kind // 4)
    return bytes(mutable)


def rows_of(path: Path, **how: Any) -> list[tuple[Any, str | None]]:
    """All rows of a file by a whole scan: what each holds, and its error."""
    return [(dict(row.fields), row.error) for row in read(scan(path, **how))]


@target
def jsonl(data: bytes) -> None:
    """Every line is read as `json.loads` does, or is an error row."""
    path = write(FOLDER / "a.jsonl", data)
    wanted = []
    for number, line in enumerate(data.split(b"\n")):
        line = line.removeprefix(b"\xef\xbb\xbf") if number == 0 else line
        if line.strip(b" \t\r\n"):
            wanted.append(_json_of(line))
    with TextFile(path, "jsonl") as file:
        found = [None if error else fields for _, fields, error in file.records()]
    assert repr(found) == repr(wanted)
    with refusing():
        assert repr([None if error else fields for fields, error in rows_of(path)]) == repr(wanted)


def _json_of(line: bytes) -> Any:
    try:
        value = json.loads(line.decode(), parse_constant=_refuse)
        text = json.dumps(value, ensure_ascii=False)
        text.encode()
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and not _is_odd(value) else None


def _refuse(name: str) -> None:
    raise ValueError(name)


def _is_odd(value: Any) -> bool:
    """What JSON's own grammar allows and a row may not have: numbers out of range, or more than 400 levels."""
    level, depth = [value], 0
    while level:
        if any(isinstance(each, float) and math.isinf(each) for each in level):
            return True
        level = [each for each in level if isinstance(each, dict | list)]
        depth += bool(level)
        level = [child for each in level for child in (each.values() if isinstance(each, dict) else each)]
    return depth > 400


@target
def compressed(data: bytes) -> None:
    """A damaged gzip file is refused or gives the rows of the whole one; zstd, which need have no sum, ends alike."""
    lines = b"".join(b'{"id": "%d", "text": "%d"}\n' % (number, number * 7) for number in range(40))
    for name in ("b.jsonl.gz", "b.jsonl.zst"):
        path = write(FOLDER / name, lines)
        whole = rows_of(path)
        path.write_bytes(change(path.read_bytes(), data))
        with refusing():
            found = rows_of(path)
            assert name.endswith("zst") or found == whole


@target
def delimited(data: bytes) -> None:
    """A CSV or TSV file is read as Python's strict reader does, record by record, where it reads it at all."""
    for name, delimiter in (("c.csv", ","), ("c.tsv", "\t")):
        path = write(FOLDER / name, data)
        with refusing():
            found = [None if error else dict(fields) for fields, error in rows_of(path)]
            try:
                text = data.removeprefix(b"\xef\xbb\xbf").decode()
                stream = io.StringIO(text, newline="\n")
                records = [record for record in csv.reader(stream, delimiter=delimiter, strict=True) if record]
            except (UnicodeDecodeError, csv.Error):
                continue
            header, *rest = records
            wanted = [dict(zip(header, row, strict=True)) if len(row) == len(header) else None for row in rest]
            assert found == wanted


@target
def parquet(data: bytes) -> None:
    """A damaged parquet file is refused, or read; one byte that is damaged outside of the footer changes no row."""
    sink = pa.BufferOutputStream()
    pq.write_table(ROWS, sink, compression="none", write_page_checksum=True, use_dictionary=False)
    whole = sink.getvalue().to_pybytes()
    damaged = change(whole, data)
    num_tail_bytes = 8 + struct.unpack("<I", whole[-8:-4])[0]
    path = FOLDER / "d.parquet"
    path.write_bytes(damaged)
    with refusing():
        found = rows_of(path)
        if len(data) < 8 and len(damaged) == len(whole) and damaged[-num_tail_bytes:] == whole[-num_tail_bytes:]:
            assert found == [(row, None) for row in ROWS.to_pylist()]


@target
def job(data: bytes) -> None:
    """A job is refused within its faults, or comes back the same from the yaml that a run keeps of it."""
    text = data.decode(errors="replace")
    with refusing():
        read_job = spec.parse(text, "job.yaml")
        assert spec.parse(read_job.to_yaml(), "again") == read_job


@target
def job_values(data: bytes) -> None:
    """The same with hostile values in a job that is otherwise good."""
    base = "name: a\ninput: {path: b}\nprompt: {preset: chat, user: c}\nmodel: {name: simulated}\n"
    override = data.decode(errors="replace")
    with refusing():
        read_job = spec.parse(base, "job.yaml", [override])
        assert spec.parse(read_job.to_yaml(), "again") == read_job
        assert ".." not in read_job.name
        assert "/" not in read_job.name


@target
def preset(data: bytes) -> None:
    """A preset is refused or read, whatever its text."""
    with refusing():
        presets.parse(data.decode(errors="replace"), "preset", "mine")


@target
def template(data: bytes) -> None:
    """A template is refused, rejects the row, or gives a text, the same each time, without Python's objects in it."""
    text = data.decode(errors="replace")
    compiled = compile_template(text, "t", [])
    if compiled is None:
        return
    row = {"a": "text", "b": [1, "x", None], "c": {"d": 0.5}, "source": "s" * 50}
    given = json.dumps(row)
    try:
        out = compiled.render({"row": row, **row})
        assert out == Template(text, "t").render({"row": row, **row})
        found = re.search(r"<(function|built-in|bound|class|module) ", out)
        assert found is None or found[0] in text
    except RowRejected:
        pass
    assert json.dumps(row) == given


@cache
def _journal_seed() -> bytes:
    path = FOLDER / "seed.journal"
    journal = Journal(path, SCHEMA, "fp")
    for start in range(3):
        journal.append(ROWS.slice(start, 1).combine_chunks().to_batches()[0])
    journal.close()
    return path.read_bytes()


@target
def journal(data: bytes) -> None:
    """A damaged journal gives whole frames of it, in order, or is refused; what it cuts out is never a whole frame."""
    path = FOLDER / "e.journal"
    path.write_bytes(change(_journal_seed(), data))
    with refusing():
        batches = Journal(path, SCHEMA, "fp").read()
        rows = [row for batch in batches for row in batch.to_pylist()]
        places = [ROWS.to_pylist().index(row) for row in rows]
        assert places == sorted(places)
        assert count_rows(path) == len(rows)


@target
def journal_payload(data: bytes) -> None:
    """A frame whose checksum is right and whose payload is not is refused or gives batches of the right columns."""
    seed = _journal_seed()
    magic, length, num_rows, _ = struct.unpack_from("<4sIII", seed)
    payload = change(seed[20 : 20 + length], data)
    counts = struct.pack("<4sIII", magic, len(payload), num_rows, zlib.crc32(payload))
    path = FOLDER / "f.journal"
    path.write_bytes(counts + struct.pack("<I", zlib.crc32(counts)) + payload)
    with refusing():
        for batch in Journal(path, SCHEMA, "fp").read():
            assert batch.schema.equals(SCHEMA)
            assert batch.num_rows == num_rows
            json.dumps(batch.to_pylist()).encode()


@cache
def _part_seed() -> bytes:
    path = FOLDER / "seed.parquet"
    keys = [RowKey(0, position) for position in range(3)]
    stats = TokenStats.of([Completion(key, "ok", "t", "stop") for key in keys])
    footer = Footer(FORMAT, "fp", "sig", Shard(0, "a.jsonl", 0, 3, 0), stats, "t", "t", "rank-00000", {"v": "1"})
    parts.write_part(path, ROWS, footer)
    return path.read_bytes()


@target
def part(data: bytes) -> None:
    """A damaged part is refused, or shows its own rows and footer."""
    path = FOLDER / "g.parquet"
    path.write_bytes(change(_part_seed(), data))
    with refusing():
        parts.read_footer(path)
    with refusing():
        parts.read_part(path)


@target
def footer_text(data: bytes) -> None:
    """A part with any text in the footer's place is refused, or read into a footer."""
    path = FOLDER / "h.parquet"
    for text in (data, change(_footer_of(_part_seed()), data)):
        pq.write_table(ROWS.replace_schema_metadata({b"seedx_batch": text}), path)
        with refusing():
            json.dumps(parts.read_footer(path).to_json())


def _footer_of(content: bytes) -> bytes:
    metadata = pq.read_metadata(pa.BufferReader(content)).metadata
    return bytes(metadata[b"seedx_batch"])


@cache
def _plan_text() -> bytes:
    column = {"name": "source", "source": "source", "type": "string", "as_json": False}
    schema = "/////3gAAAAQAAAAAAAKAAwABgAFAAgACgAAAAABBAAMAAAACAAIAAAABAAIAAAABAAAAAEAAAAUAAAAEAAUAAgABgAHAAwAAAAQABAA"
    file = {"path": "a.jsonl", "format": "jsonl", "num_rows": 3, "num_bytes": 9, "mtime_ns": 1, "digest": "d"}
    tree = {
        "format": 1,
        "fingerprint": "fp",
        "created_at": "t",
        "num_rows": 3,
        "id_column": None,
        "warnings": [],
        "facts": {},
        "files": [file],
        "columns": [column | {"arrow": schema}],
        "shards": [[0, 0, 3, 0]],
    }
    return json.dumps(tree).encode()


@target
def plan(data: bytes) -> None:
    """A damaged plan.json is refused as storage that cannot be trusted, or is a plan that can be looked at."""
    for content in (data, change(_plan_text(), data)):
        with refusing():
            found = Plan.from_json(content.decode(errors="replace"), "plan.json")
            assert found.num_rows >= 0
            found.to_json()
            found.todo({0})


@target
def ledgers(data: bytes) -> None:
    """A ledger of any bytes is read without its bad lines, and `status` stays up."""
    run = RunDirectory(FOLDER / "run")
    run.ledgers.mkdir(parents=True, exist_ok=True)
    good = b'{"launch": "a", "event": "failed", "t": 1.5, "message": "m", "exit_code": 69}\n'
    good = (
        b'{"launch": "a", "event": "checkpoint", "t": 1.0, "num_rows": 4, "busy_s": 2.5, "num_in_flight": 2}\n' + good
    )
    for content in (data, change(good, data)):
        run.ledger(0).write_bytes(content)
        found = Plan("fp", {}, (), (Shard(0, "a", 0, 9, 0),), (), None, (), "t")
        with refusing():
            ledger.read(run.ledger(0))
            shown = status.glance(run, found)
            assert shown.as_text()
            assert json.dumps(shown.to_json())


@target
def yaml(data: bytes) -> None:
    """Any YAML is refused or is plain data."""
    try:
        tree = plain_yaml.read(data.decode(errors="replace"), "a.yaml")
    except SpecError:
        return
    json.dumps(tree, skipkeys=True).encode()
