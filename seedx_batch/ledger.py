"""The workers' ledgers: what each one did and when, as lines of JSON that are only ever added to.

Knows lines and counters; must never know engines, shards or rows, and no promise rests on it.
"""

import errno
import json
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from seedx_batch.durable import writing
from seedx_batch.errors import StorageError
from seedx_batch.telling import masked

COUNTERS = (
    "num_rows",
    "num_errors",
    "num_deduplicated",
    "num_prompt_tokens",
    "num_output_tokens",
    "busy_s",
    "idle_s",
    "tail_s",
    "host_s",
    "load_s",
    "num_restarts",
)
"""What grows within a launch and adds up over launches and ranks."""

_MOST = 1e18  # of a counter; more is damage, as is what is no number

_TAIL_NUM_BYTES = 4096
"""How much of a ledger's end is read at first in search of its last line."""


class Ledger:
    """One worker's ledger; a line says which start of the worker wrote it, what happened, and when (Unix time).

    Not synced to the disk: a killed process loses no line, a power cut may cost the last ones.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.launch = uuid.uuid4().hex
        self._fd: int | None = None

    def write(self, event: str, **values: Any) -> None:
        """Adds one line by one write, so that whoever reads meanwhile sees it whole; without secrets.

        Raises:
            StorageError: the line cannot be written.
        """
        told = {name: masked(value) if isinstance(value, str) else value for name, value in values.items()}
        # launch and event come first because totals() tells lines apart by how they begin.
        line = {"launch": self.launch, "event": event, "t": round(time.time(), 3), **told}
        text = (json.dumps(line) + "\n").encode()
        with writing(self.path):
            if self._fd is None:
                self._fd = _open(self.path)
            if os.write(self._fd, text) < len(text):
                raise OSError(errno.ENOSPC, "a line could be written only in part")

    def close(self) -> None:
        """Closes the file; a later `write` opens it again."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            with writing(self.path):
                os.close(fd)


def read(path: Path) -> list[dict[str, Any]]:
    """All lines in order of writing, without those that a crash has torn; none if there is no ledger.

    Raises:
        StorageError: the file cannot be read.
    """
    return _parse(_read(path).split(b"\n"))


def read_last(path: Path) -> dict[str, Any] | None:
    """The last whole line, found from the file's end; None if there is none.

    Raises:
        StorageError: the file cannot be read.
    """
    num_bytes = _TAIL_NUM_BYTES
    while True:
        tail = _read(path, num_bytes)
        # What the tail begins with may be the end of a longer line, which is never an object by itself.
        lines = _parse(tail.split(b"\n"))
        if lines or len(tail) < num_bytes:
            return lines[-1] if lines else None
        num_bytes *= 4


def read_since(path: Path, t: float) -> list[dict[str, Any]]:
    """The lines since a moment (Unix time) and the one before it, found from the file's end.

    Raises:
        StorageError: the file cannot be read.
    """
    num_bytes = 4 * _TAIL_NUM_BYTES
    while True:
        tail = _read(path, num_bytes)
        lines = _parse(tail.split(b"\n"))
        if len(tail) < num_bytes or (lines and _time(lines[0]) < t):
            earlier = sum(_time(line) < t for line in lines)
            return lines[max(0, earlier - 1) :]
        num_bytes *= 4


def thinned(path: Path, num_lines: int) -> Iterator[dict[str, Any]]:
    """The lines in order, one at a time; of checkpoints only about so many, evenly spread, and the last of each start.

    Counters grow, so that what is left out costs nothing but detail.

    Raises:
        StorageError: the file cannot be read.
    """
    skipped, skipped_head = b"", b""
    position = next_at = 0
    stride = (path.stat().st_size if path.exists() else 0) // num_lines
    for line in _lines(path):
        position += len(line)
        head = _head(line)
        if skipped and head != skipped_head:
            yield from _parse([skipped])
        is_checkpoint = head.endswith(b'"event": "checkpoint"')
        if is_checkpoint and position < next_at:
            skipped, skipped_head = line, head
            continue
        if is_checkpoint:
            next_at = position + stride
        skipped = b""
        yield from _parse([line])
    yield from _parse([skipped])


def ranks(folder: Path) -> dict[int, Path]:
    """The ledgers in a folder by their workers' rank."""
    found = {path.stem.removeprefix("rank-"): path for path in folder.glob("rank-*.jsonl")}
    return {int(rank): found[rank] for rank in sorted(found) if rank.isdecimal()}


def totals(folder: Path) -> dict[str, float]:
    """The `COUNTERS` of all ranks and launches, added up; 0 for one that no line has.

    A launch counts with its last `checkpoint` line, its `loaded` line and its last `restarting` line. Times are of one
    engine each, so that their sum is device time.

    Raises:
        StorageError: a ledger cannot be read.
    """
    sums: dict[str, float] = dict.fromkeys(COUNTERS, 0)
    for path in ranks(folder).values():
        for name, value in totals_of(path).items():
            sums[name] += value
    return sums


def totals_of(path: Path) -> dict[str, float]:
    """The `COUNTERS` of one rank's launches, added up.

    Raises:
        StorageError: the ledger cannot be read.
    """
    sums: dict[str, float] = dict.fromkeys(COUNTERS, 0)
    last: dict[bytes, bytes] = {}
    for line in _lines(path):
        # Parsing every line of a week's run would take a second, and a progress bar asks twice a second.
        if line.endswith((b"}\n", b"}")):
            last[_head(line)] = line
    for values in _parse(last.values()):
        if values["event"] in ("checkpoint", "loaded", "restarting"):
            for name in COUNTERS:
                sums[name] += number(values, name)
    return sums


def rows_since(path: Path, exit_code: int) -> tuple[int, int]:
    """How many rows one worker's launches have ended, and with an error, since the last that failed with this code.

    Raises:
        StorageError: the ledger cannot be read.
    """
    last: dict[str, dict[str, Any]] = {}
    for line in read(path):
        if line["event"] == "checkpoint":
            last[line["launch"]] = line
        elif line["event"] == "failed" and line.get("exit_code") == exit_code:
            last.clear()
    num_rows, num_errors = (sum(number(line, name) for line in last.values()) for name in ("num_rows", "num_errors"))
    return int(num_rows), int(num_errors)


def number(line: Mapping[str, Any], name: str, default: float = 0) -> float:
    """A line's number, or the default where there is none that can be counted with."""
    value = line.get(name)
    return value if isinstance(value, int | float) and abs(value) < _MOST else default


def _open(path: Path) -> int:
    """A descriptor that appends to the ledger; a line that a crash has left without its end is ended first."""
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    num_bytes = os.fstat(fd).st_size
    if num_bytes and os.pread(fd, 1, num_bytes - 1) != b"\n":
        os.write(fd, b"\n")
    return fd


def _lines(path: Path) -> Iterator[bytes]:
    """The file's lines, one at a time; none if there is no file."""
    try:
        with path.open("rb") as file:
            yield from file
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from error


def _head(line: bytes) -> bytes:
    """What tells the start and the event of a line."""
    return line.partition(b', "t": ')[0]


def _read(path: Path, num_bytes: int | None = None) -> bytes:
    """The file's last so many bytes, or all of them; nothing if there is no file."""
    try:
        with path.open("rb") as file:
            if num_bytes is not None:
                file.seek(max(0, file.seek(0, os.SEEK_END) - num_bytes))
            return file.read(-1 if num_bytes is None else num_bytes)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from error


def _time(line: dict[str, Any]) -> float:
    """When a line was written; 0 for one without its time, which no program of ours has written."""
    t = line.get("t")
    return t if isinstance(t, int | float) else 0.0


def _parse(lines: Iterable[bytes]) -> list[dict[str, Any]]:
    """The lines that are JSON objects with an event: a torn line is none, as no object begins with a shorter one."""
    parsed = []
    for line in lines:
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(values, dict) and isinstance(values.get("event"), str):
            parsed.append(values)
    return parsed
