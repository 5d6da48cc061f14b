"""Text files as records: lines with their places, plain or compressed, and what JSONL, CSV and TSV make of them.

Must never know shards, ids, or which records a job takes.
"""

import codecs
import csv
import hashlib
import io
import json
import math
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import pyarrow as pa

from seedx_batch.errors import InputError
from seedx_batch.sources.files import Tap, compression_of

MAX_RECORD_BYTES = 64 << 20
"""A longer record is not read, so that one lost quote or newline cannot fill the memory."""

Record = tuple[int, Mapping[str, Any], str | None]
"""Where a record begins, its fields, and why it cannot be read ("kind: reason"; it has no fields then)."""

_MAX_NESTING = 400
"""Levels of JSON that can be written again whatever the depth of the caller's stack."""

_BLOCK = 1 << 17
"""Bytes that are read at a time: few enough to stay in the processor's cache until they are parsed."""

_DIGEST_CHARS = 16
_BLANKS = b" \t\r\n"
"""JSON's, which are fewer than Python's."""

_DELIMITERS = {"csv": ",", "tsv": "\t"}
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class Trail(io.RawIOBase):
    """A text as it passes, cut into pieces that are hashed; where a piece ends may be told a little later."""

    def __init__(self) -> None:
        self._file: Any = None
        self._kept = bytearray()
        self._reached = 0
        self._hash = hashlib.sha256()  # quicker than others where processors have instructions for it
        self._num_bytes = 0
        self._line_ends = b""
        self.lines = 0
        """The sum of the CRC-32 of all lines so far."""

    def over(self, file: Any) -> Self:
        """This trail, along a file."""
        self._file = file
        return self

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills the buffer's beginning; the number of bytes, 0 at the end."""
        num_bytes: int = self._file.readinto(buffer) or 0
        self._kept += memoryview(buffer)[:num_bytes]
        return num_bytes

    def reach(self, offset: int) -> None:
        """Hashes the lines before `offset`; those behind it are kept in memory until they are reached."""
        num_bytes = offset - self._reached
        text = self._line_ends + bytes(self._kept[:num_bytes])
        del self._kept[:num_bytes]
        self._reached = offset
        whole = text.rstrip(b"\r\n")
        # The last ones of a piece do not count, as whoever adds rows to a file may have to add the one before them too.
        self._line_ends = text[len(whole) :]
        self._hash.update(whole)
        self._num_bytes += len(whole)
        if b"\r" in whole:
            whole = whole.replace(b"\r\n", b"\n")
        self.lines += sum(map(zlib.crc32, whole.split(b"\n")))

    def cut(self, offset: int | None) -> tuple[int, str]:
        """Ends a piece at the line that begins at `offset`, or with all that has passed; its length and its digest."""
        self.reach(self._reached + len(self._kept) if offset is None else offset)
        piece = self._num_bytes, self._hash.hexdigest()[:_DIGEST_CHARS]
        self._hash, self._num_bytes, self._line_ends = hashlib.sha256(), 0, b""
        return piece


def digest_of(piece: bytes) -> str:
    """The digest by which a `Trail` knows a piece, given without its last line ends."""
    return hashlib.sha256(piece).hexdigest()[:_DIGEST_CHARS]


class _Unreadable(Exception):
    """A record that cannot be read; its text is "kind: reason"."""


class TextFile:
    """An open text file, to be read from any record on.

    Args:
        format: `jsonl`, `csv` or `tsv`.
        tap: hash the bytes as they are read; the file is then to be read once, from its beginning.
        trail: likewise, of the decompressed text.

    Raises:
        InputError: it cannot be opened, or has no usable header.
    """

    def __init__(self, path: Path, format: str, tap: Tap | None = None, trail: Trail | None = None) -> None:
        self._lines = _Lines(path, tap, trail)
        self._path = path
        self._format = format
        self.columns: tuple[str, ...] | None = None
        """The header of CSV and TSV; None for JSONL and for a file without any record."""
        try:
            if format in _DELIMITERS:
                self.columns = _read_header(self._lines, _DELIMITERS[format])
        except InputError:
            self.close()
            raise

    def records(self) -> Iterator[Record]:
        """The records from the file's present place on.

        Raises:
            InputError: the file cannot be read any further.
        """
        return self._records(self._lines)

    def piece(self, offset: int, num_bytes: int) -> bytes:
        """The decompressed text from a place on; less than asked for at the end.

        Raises:
            InputError: the file cannot be read any further.
        """
        self._lines.seek(offset)
        return self._lines.take(num_bytes)

    def records_in(self, piece: bytes, offset: int) -> Iterator[Record]:
        """The records of a text that begins with one, at `offset` of this file."""
        return self._records(_Piece(self._path, piece, offset))

    def _records(self, lines: "_Lines") -> Iterator[Record]:
        if self._format == "jsonl":
            return _json_records(lines)
        return _delimited_records(lines, _DELIMITERS[self._format], self.columns or ())

    def seek(self, row: int, byte: int) -> None:
        """Goes to the record that begins at `byte` of the decompressed text; there a new `records` begins."""
        self._lines.seek(byte)

    def close(self) -> None:
        """Closes the file."""
        self._lines.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class _Lines:
    """The lines of a file; `offset` is the place of the next one in the decompressed text."""

    def __init__(self, path: Path, tap: Tap | None, trail: Trail | None) -> None:
        self._path = path
        self._compression = compression_of(path)
        self._tap = tap
        self._trail = trail
        self._open()

    def _open(self) -> None:
        self.offset = 0
        try:
            raw: Any = self._tap if self._tap is not None else self._path.open("rb", buffering=0)
            self._closing = [raw]
            if self._compression is not None:
                raw = pa.CompressedInputStream(pa.PythonFile(raw, "r"), self._compression)
                self._closing.append(raw)
            if self._trail is not None:
                raw = self._trail.over(raw)
            self._stream = io.BufferedReader(raw, _BLOCK)
        except OSError as error:
            raise InputError(f"{self._path}: cannot be opened: {error.strerror}; make it readable") from error

    def read(self) -> bytes:
        """The next line with its end; empty after the last one.

        Raises:
            _Unreadable: the line is too long, and has been passed over.
            InputError: the file cannot be read any further.
        """
        try:
            line = self._stream.readline(MAX_RECORD_BYTES + 1)
            start = self.offset
            self.offset += len(line)
            if len(line) > MAX_RECORD_BYTES and not line.endswith(b"\n"):
                self._pass_line()
                raise _too_long(self.offset - start)
        except (OSError, pa.ArrowException) as error:
            self._fail(error)
        return line.removeprefix(codecs.BOM_UTF8) if start == 0 else line

    def peek(self) -> bytes:
        """The lines that are at hand without reading on, whole, with their ends; empty where there is none.

        The place does not change: whoever goes elsewhere half-way through them need not read a compressed file anew.

        Raises:
            InputError: the file cannot be read any further.
        """
        try:
            block = self._stream.peek()
        except (OSError, pa.ArrowException) as error:
            self._fail(error)
        return block[: block.rfind(b"\n") + 1]

    def advance(self, num_bytes: int) -> None:
        """Passes over so much of what `peek` gave."""
        self._stream.read(num_bytes)
        self.offset += num_bytes

    def take(self, num_bytes: int) -> bytes:
        """So many bytes from here on, or as many as there are."""
        try:
            text = self._stream.read(num_bytes)
        except (OSError, pa.ArrowException) as error:
            self._fail(error)
        self.offset += len(text)
        return text

    def seek(self, offset: int) -> None:
        """Goes to a place; a compressed file is read forward, from its beginning only to go back."""
        try:
            if self._compression is None:
                self.offset = self._stream.seek(offset)
                return
            if offset < self.offset:
                self.close()
                self._open()
            while self.offset < offset:
                block = self._stream.read(min(_BLOCK, offset - self.offset))
                if not block:
                    return
                self.offset += len(block)
        except (OSError, pa.ArrowException) as error:
            self._fail(error)

    def close(self) -> None:
        """Closes the file."""
        self._stream.close()
        for opened in reversed(self._closing):
            opened.close()

    def _pass_line(self) -> None:
        while block := self._stream.readline(_BLOCK):
            self.offset += len(block)
            if block.endswith(b"\n"):
                return

    def _fail(self, error: Exception) -> NoReturn:
        what = f"is damaged or cut short as a {self._compression} file" if self._compression else "cannot be read"
        raise InputError(f"{self._path}: {what} ({error}); make it anew") from error


class _Piece(_Lines):
    """The lines of a text in memory that is part of a file, from `offset` of it on."""

    def __init__(self, path: Path, text: bytes, offset: int) -> None:
        self._path = path
        self._compression = None
        self._closing = []
        self.offset = offset
        # A record that ends with its line must not look cut short.
        self._stream = io.BufferedReader(io.BytesIO(text + b"\n"), _BLOCK)


def _too_long(num_bytes: int) -> _Unreadable:
    return _Unreadable(f"line_too_long: {num_bytes:,} bytes, and {MAX_RECORD_BYTES:,} is the most that is read")


def _json_records(lines: _Lines) -> Iterator[Record]:
    """Every line is a record, but for those of whitespace only."""
    while True:
        start = lines.offset
        block = lines.peek()
        if not block:  # the end of the buffer, the last line, or one that is longer than the buffer
            try:
                line = lines.read()
            except _Unreadable as error:
                yield start, {}, str(error)
                continue
            if not line:
                return
            yield from _json_record(start, line)
            continue
        for line in block[:-1].split(b"\n"):
            try:
                text = line.decode()
                value, end = _scan(text, 0)
            except (ValueError, StopIteration, RecursionError):
                yield from _json_record(start, line.removeprefix(codecs.BOM_UTF8) if start == 0 else line)
            else:
                is_whole = end == len(text) or not text[end:].strip(" \t\r")
                if is_whole and type(value) is dict and _is_plain(text):
                    yield start, value, None
                else:
                    yield from _json_record(start, line)
            start += len(line) + 1
        lines.advance(len(block))


def _json_record(start: int, line: bytes) -> Iterator[Record]:
    """What a line is that needs a closer look: a record, an error, or nothing."""
    line = line.strip(_BLANKS)
    if line:
        try:
            yield start, _parse_object(line), None
        except _Unreadable as error:
            yield start, {}, str(error)


def _is_plain(text: str) -> bool:
    """Whether the text of an object can hold neither half a surrogate pair nor too many levels."""
    return ("\\u" not in text or not _SURROGATE.search(text)) and (
        len(text) <= 2 * _MAX_NESTING or text.count("[") + text.count("{") <= _MAX_NESTING
    )


def _parse_object(line: bytes) -> dict[str, Any]:
    """The object that is a line.

    Raises:
        _Unreadable: there is none, or it cannot be written again as UTF-8.
    """
    try:
        text = line.decode()
        value, end = _decode(text)
    except UnicodeDecodeError as error:
        raise _Unreadable(f"invalid_utf8: {error.reason} at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise _Unreadable(f"invalid_json: {error.msg} at character {error.pos}") from error
    except ValueError as error:
        raise _Unreadable(f"invalid_json: {error}") from error
    except RecursionError as error:
        raise _Unreadable("invalid_json: nested too deeply") from error
    if end != len(text):
        raise _Unreadable(f"invalid_json: something follows the value at character {end}")
    if type(value) is not dict:
        raise _Unreadable(f"not_an_object: it is {_JSON_NAMES[type(value)]}")
    if text.count("[") + text.count("{") > _MAX_NESTING and _is_deep(value):
        raise _Unreadable(f"invalid_json: nested more than {_MAX_NESTING} levels deep")
    if "\\u" in text and _SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise _Unreadable("invalid_utf8: half a surrogate pair, which no text can hold") from error
    return value


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"the number {text[:40]} is out of range")
    return number


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


_decoder = json.JSONDecoder(parse_float=_finite, parse_constant=_no_constant)
_decode = _decoder.raw_decode
_scan: Callable[[str, int], tuple[Any, int]] = _decoder.scan_once  # type: ignore[attr-defined]  # not in typeshed
"""`_decode` without its frame: StopIteration where no value begins."""
_JSON_NAMES = {
    list: "a list",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def _is_deep(value: dict[str, Any]) -> bool:
    level: list[Any] = [value]
    for _ in range(_MAX_NESTING):
        children = (child for node in level for child in (node.values() if type(node) is dict else node))
        level = [child for child in children if type(child) in (dict, list)]
        if not level:
            return False
    return True


class _RecordLines:
    """Lines as `csv.reader` asks for them; outlives an error, unlike a generator."""

    def __init__(self, lines: _Lines) -> None:
        self._lines = lines
        self.begin()

    def begin(self) -> None:
        """Starts a record."""
        self.start = self._lines.offset
        self.decoding_error: UnicodeDecodeError | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        line = self._lines.read()
        if not line:
            raise StopIteration
        num_bytes = self._lines.offset - self.start
        if num_bytes > MAX_RECORD_BYTES:
            raise _too_long(num_bytes)
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            self.decoding_error = error
            return line.decode(errors="surrogateescape")


def _split(lines: _Lines, delimiter: str) -> Iterator[tuple[int, list[str], str | None]]:
    """The records of a CSV file, after RFC 4180: where each begins, its fields, and why it cannot be read."""
    # The limit is the process's, and the only one there is; _RecordLines sees to the real one.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_RECORD_BYTES))
    source = _RecordLines(lines)
    # Strict, so that a lost quote becomes an error rather than one row that swallows the others in silence.
    reader = csv.reader(source, delimiter=delimiter, strict=True)
    while True:
        source.begin()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except _Unreadable as error:
            yield source.start, [], str(error)
            continue
        except csv.Error as error:
            yield source.start, [], f"invalid_csv: {error}"
            continue
        if source.decoding_error is not None:
            yield source.start, [], f"invalid_utf8: {source.decoding_error.reason}"
        elif fields:
            yield source.start, fields, None


def _read_header(lines: _Lines, delimiter: str) -> tuple[str, ...] | None:
    for _, fields, error in _split(lines, delimiter):
        if error is not None:
            raise InputError(f"{lines._path}: its header, the first record, cannot be read ({error}); correct it")
        twice = sorted({name for name in fields if fields.count(name) > 1})
        if twice:
            raise InputError(f"{lines._path}: its header names {twice[0]!r} more than once; give each column its own")
        return tuple(fields)
    return None


def _delimited_records(lines: _Lines, delimiter: str, columns: tuple[str, ...]) -> Iterator[Record]:
    for start, fields, error in _split(lines, delimiter):
        if error is not None:
            yield start, {}, error
        elif len(fields) != len(columns):
            yield start, {}, f"wrong_number_of_fields: {len(fields)}, and the header has {len(columns)}"
        else:
            yield start, dict(zip(columns, fields, strict=True)), None
