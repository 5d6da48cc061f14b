"""Journals: the finished rows of a shard that is not yet published, safe from a kill at once, on disk when synced.

Knows frames of Arrow batches; must never know what a row means, or where journals lie.

A journal is a file of frames, each a header and a payload, and is only ever appended to:

    b"SXJ1" · u32 bytes of the payload · u32 rows · u32 CRC-32 of the two counts and the payload     (little-endian)
    an Arrow IPC stream of one batch, with its schema and the job's fingerprint in the schema's metadata
"""

import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from seedx_batch.durable import sync_folder, writing
from seedx_batch.errors import StorageError

_HEADER = struct.Struct("<4sIII")
_COUNTS = struct.Struct("<II")
_MAGIC = b"SXJ1"


class Journal:
    """One shard's journal; the file is made by the first `append`.

    Only one process may use a journal at a time: the run's lock sees to that.
    """

    def __init__(self, path: Path, schema: pa.Schema, fingerprint: str) -> None:
        self.path = path
        self._schema = schema.remove_metadata()
        self._stored = self._schema.with_metadata({"fingerprint": fingerprint})
        self._fd: int | None = None
        self._is_synced = True
        self._has_failed = False

    def read(self) -> list[pa.RecordBatch]:
        """The batches of all whole frames, in order; what follows the last one is cut off the file.

        Raises:
            StorageError: it is the journal of another job, or cannot be read.
        """
        if not self.path.exists():
            return []
        with writing(self.path):
            text = self.path.read_bytes()
            batches, num_bytes = [], 0
            for payload in _payloads(text):
                batches.append(self._decode(payload))
                num_bytes += _HEADER.size + len(payload)
            if num_bytes < len(text):
                with self.path.open("r+b") as file:
                    file.truncate(num_bytes)
                    os.fsync(file.fileno())
        return batches

    def append(self, batch: pa.RecordBatch) -> None:
        """Adds one batch; when this returns, it outlives this process, and after `sync` a power cut too.

        Raises:
            StorageError: it cannot be written. The journal then takes no more: only the next run, which reads it first,
                knows what its file ends with.
        """
        frame = self._encode(batch)
        with self._changing() as fd:
            while frame:
                frame = frame[os.write(fd, frame) :]
        self._is_synced = False

    def sync(self) -> None:
        """Waits until all that was added is on disk.

        Raises:
            StorageError: as for `append`.
        """
        if not self._is_synced:
            with self._changing() as fd:
                os.fsync(fd)
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
        self.close()
        with writing(self.path):
            self.path.unlink(missing_ok=True)
        self._is_synced = True

    def close(self) -> None:
        """Closes the file; a later `append` or `sync` opens it again."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _open(self) -> int:
        """A descriptor that appends after the last whole frame: behind a torn one nothing would ever be found."""
        self.read()
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        sync_folder(self.path.parent)
        return fd

    def _encode(self, batch: pa.RecordBatch) -> memoryview:
        if not batch.schema.equals(self._schema):
            raise ValueError(f"{self.path}: a batch with other columns:\n{batch.schema}\ninstead of\n{self._schema}")
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self._stored) as writer:
            writer.write_batch(batch.replace_schema_metadata(self._stored.metadata))
        payload = sink.getvalue().to_pybytes()
        counts = _COUNTS.pack(len(payload), batch.num_rows)
        header = _HEADER.pack(_MAGIC, len(payload), batch.num_rows, zlib.crc32(payload, zlib.crc32(counts)))
        return memoryview(header + payload)

    def _decode(self, payload: memoryview) -> pa.RecordBatch:
        """The batch of a whole frame."""
        try:
            with pa.ipc.open_stream(payload) as reader:
                if not reader.schema.equals(self._stored, check_metadata=True):
                    raise StorageError(f"{self.path}: holds rows of another job; {_REMEDY}")
                batch = reader.read_next_batch().replace_schema_metadata(None)
                batch.validate(full=True)  # Arrow takes offsets on trust, and a wrong one would end this process
                return batch
        except (pa.ArrowException, StopIteration, OSError, ValueError, KeyError) as error:
            raise StorageError(f"{self.path}: was written by another version ({error}); {_REMEDY}") from error


_REMEDY = "remove it and run the same command again; its rows are then generated again"


def count_rows(path: Path) -> int:
    """How many rows a journal holds, told from its headers alone; changes nothing, and may be asked while it grows.

    Raises:
        StorageError: it cannot be read.
    """
    num_rows = position = 0
    try:
        with path.open("rb") as file:
            num_bytes = os.fstat(file.fileno()).st_size
            while len(header := file.read(_HEADER.size)) == _HEADER.size:
                magic, length, count, _ = _HEADER.unpack(header)
                position += _HEADER.size + length
                if magic != _MAGIC or position > num_bytes:
                    break
                num_rows += count
                file.seek(position)
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from error
    return num_rows


def _payloads(text: bytes) -> Iterator[memoryview]:
    """The payloads of the whole frames that a journal begins with."""
    view, position = memoryview(text), 0
    while position + _HEADER.size <= len(view):
        magic, length, num_rows, checksum = _HEADER.unpack_from(view, position)
        payload = view[position + _HEADER.size : position + _HEADER.size + length]
        if magic != _MAGIC or len(payload) < length:
            return
        if zlib.crc32(payload, zlib.crc32(_COUNTS.pack(length, num_rows))) != checksum:
            return
        yield payload
        position += _HEADER.size + length
