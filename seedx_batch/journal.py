"""Journals: the finished rows of a shard that is not yet published, safe from a kill at once, on disk when synced.

Knows frames of Arrow batches; must never know what a row means, or where journals lie.

A journal is a file of frames, each a header and a payload, and is only ever appended to (all numbers little-endian):

    b"SXJ2" · u32 bytes of the payload · u32 rows · u32 CRC-32 of the payload · u32 CRC-32 of these sixteen bytes
    an Arrow IPC stream of one batch, with its schema and the job's fingerprint in the schema's metadata

The header has a checksum of its own so that a frame whose end is missing, as a crash leaves it, can be told from a
damaged one, and so that the frames behind a damaged one can be found.
"""

import errno
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from seedx_batch.durable import remove, sync_folder, write, write_all, writing
from seedx_batch.errors import StorageError

_COUNTS = struct.Struct("<4sIII")
_CHECKSUM = struct.Struct("<I")
_HEADER_SIZE = _COUNTS.size + _CHECKSUM.size
_MAGIC = b"SXJ2"


@dataclass(frozen=True, slots=True)
class Gap:
    """Bytes of a journal that are in no whole frame.

    Args:
        is_torn: they are the beginning of a last frame, as a crash leaves it; otherwise something has damaged them.
    """

    start: int
    end: int
    is_torn: bool


class Journal:
    """One shard's journal; the file is made by the first `append`.

    Only one process may use a journal at a time: the run's lock sees to that.
    """

    def __init__(self, path: Path, schema: pa.Schema, fingerprint: str) -> None:
        self.path = path
        self._schema = schema.remove_metadata()
        self._stored = self._schema.with_metadata({"fingerprint": fingerprint})
        self._fd: int | None = None
        self._is_ours = False
        self._is_synced = True
        self._has_failed = False

    def read(self) -> list[pa.RecordBatch]:
        """The batches of all whole frames, in order, which are on disk when this returns; what is in none is cut out.

        Raises:
            StorageError: it is the journal of another job, or cannot be read or written.
        """
        self.close()
        if not self.path.exists():
            return []
        with writing(self.path):
            frames = [frame for frame in _frames(self.path.read_bytes()) if not isinstance(frame, Gap)]
            batches = [self._checked(_decode(self.path, frame)) for frame in frames]
            # What another process has left may be in the kernel's memory alone, and stay there: where a sync of that
            # process failed, none of this one's would tell. So it is written once more.
            _renew(self.path, frames)
        self._is_ours = True
        return batches

    def append(self, batch: pa.RecordBatch) -> None:
        """Adds one batch; when this returns, it outlives this process, and after `sync` a power cut too.

        Raises:
            StorageError: it cannot be written. The journal then takes no more: only the next run, which reads it first,
                knows what its file ends with.
        """
        frame = self._encode(batch)
        with self._changing() as fd:
            write_all(fd, frame)
        self._is_synced = False

    def sync(self) -> None:
        """Waits until all that was added is on disk.

        Raises:
            StorageError: as for `append`.
        """
        if not self._is_synced:
            with self._changing() as fd:
                os.fsync(fd)
                if os.fstat(fd).st_nlink == 0:
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            self._is_synced = True

    @contextmanager
    def _changing(self) -> Iterator[int]:
        """The file's descriptor; whatever fails in the body is final, for what the file ends with then is not known."""
        if self._has_failed:
            raise StorageError(f"{self.path}: an earlier write failed; run the same command again")
        self._has_failed = True
        with writing(self.path):
            if self._fd is None:
                self._fd = self._open()
            yield self._fd
        self._has_failed = False

    def remove(self) -> None:
        """Deletes the file, if there is one: the shard's part holds its rows now.

        Raises:
            StorageError: it cannot be deleted.
        """
        with writing(self.path):
            self.close()
        remove(self.path)
        self._is_synced = True

    def close(self) -> None:
        """Closes the file; a later `append` or `sync` opens it again."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.close(fd)

    def _open(self) -> int:
        """A descriptor that appends after the last whole frame: what a crash has left of one would be in the way."""
        if not self._is_ours:
            self.read()
            self._is_ours = True
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        sync_folder(self.path.parent)
        return fd

    def _encode(self, batch: pa.RecordBatch) -> bytes:
        if not batch.schema.equals(self._schema):
            raise ValueError(f"{self.path}: a batch with other columns:\n{batch.schema}\ninstead of\n{self._schema}")
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self._stored) as writer:
            writer.write_batch(batch.replace_schema_metadata(self._stored.metadata))
        payload = sink.getvalue().to_pybytes()
        counts = _COUNTS.pack(_MAGIC, len(payload), batch.num_rows, zlib.crc32(payload))
        return b"".join((counts, _CHECKSUM.pack(zlib.crc32(counts)), payload))

    def _checked(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        if not batch.schema.equals(self._stored, check_metadata=True):
            raise StorageError(f"{self.path}: holds rows of another job; {_REMEDY}")
        return batch.replace_schema_metadata(None)


_REMEDY = "remove it and run the same command again; its rows are then generated again"


def examine(path: Path) -> tuple[list[pa.RecordBatch], list[Gap]]:
    """The batches of a journal's whole frames, with the job's fingerprint in their metadata, and what is in none.

    Changes nothing.

    Raises:
        StorageError: it cannot be read.
    """
    with writing(path):
        found = list(_frames(path.read_bytes()))
    whole = [_decode(path, frame) for frame in found if not isinstance(frame, Gap)]
    return whole, [frame for frame in found if isinstance(frame, Gap)]


def mend(path: Path) -> None:
    """Leaves only the whole frames in a journal.

    Raises:
        StorageError: it cannot be read or written.
    """
    with writing(path):
        _renew(path, [frame for frame in _frames(path.read_bytes()) if not isinstance(frame, Gap)])


def count_rows(path: Path) -> int:
    """How many rows a journal holds, told from its headers alone; changes nothing, and may be asked while it grows.

    Raises:
        StorageError: it cannot be read.
    """
    num_rows = position = 0
    try:
        with path.open("rb") as file:
            num_bytes = os.fstat(file.fileno()).st_size
            while (counts := _counts(file.read(_HEADER_SIZE))) is not None:
                length, count, _ = counts
                position += _HEADER_SIZE + length
                if position > num_bytes:
                    break
                num_rows += count
                file.seek(position)
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from error
    return num_rows


def _renew(path: Path, frames: list[memoryview]) -> None:
    """Puts a file of these frames in a journal's place."""
    new = path.with_suffix(".new")
    write(new, b"".join(frames))
    os.replace(new, path)
    sync_folder(path.parent)


def _decode(path: Path, frame: memoryview) -> pa.RecordBatch:
    """The batch of a whole frame."""
    try:
        with pa.ipc.open_stream(frame[_HEADER_SIZE:]) as reader:
            batch = reader.read_next_batch()
            batch.validate(full=True)  # Arrow takes offsets on trust, and a wrong one would end this process
            return batch
    except (pa.ArrowException, StopIteration, OSError, ValueError, KeyError) as error:
        raise StorageError(f"{path}: was written by another version ({error}); {_REMEDY}") from error


def _frames(text: bytes) -> Iterator[memoryview | Gap]:
    """The whole frames of a journal, and what is between them, in order."""
    view, start = memoryview(text), 0
    while start < len(text):
        counts = _counts(text[start : start + _HEADER_SIZE])
        if counts is not None:
            length, _, checksum = counts
            end = start + _HEADER_SIZE + length
            if end > len(text):
                yield Gap(start, len(text), is_torn=True)
                return
            is_whole = zlib.crc32(view[start + _HEADER_SIZE : end]) == checksum
            yield view[start:end] if is_whole else Gap(start, end, is_torn=False)
        else:
            end = _next_header(text, start + 1)
            yield Gap(start, end, is_torn=len(text) - start < _HEADER_SIZE)
        start = end


def _next_header(text: bytes, start: int) -> int:
    """Where the next header begins, or the end."""
    while (found := text.find(_MAGIC, start)) >= 0:
        if _counts(text[found : found + _HEADER_SIZE]) is not None:
            return found
        start = found + 1
    return len(text)


def _counts(header: bytes) -> tuple[int, int, int] | None:
    """A header's bytes of payload, rows, and the payload's checksum; None if it is damaged or not whole."""
    if len(header) < _HEADER_SIZE:
        return None
    magic, length, num_rows, checksum = _COUNTS.unpack_from(header)
    if magic != _MAGIC or zlib.crc32(header[: _COUNTS.size]) != _CHECKSUM.unpack_from(header, _COUNTS.size)[0]:
        return None
    return length, num_rows, checksum
