"""A record: what one engine made of prompts, in one parquet file that other machines can read.

One row group for each prompt, so that reading needs the memory of one prompt's logits; needs numpy and pyarrow alone.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from seedx_batch.errors import InputError, StorageError
from seedx_batch.records import Prompt

FORMAT = 1
NUM_LIKELIEST = 20
"""Of each place of a greedy continuation so many tokens are kept, however much is kept of the places scored."""
_HEADER = b"seedx-batch.parity"
_INT, _FLOAT = pa.int32(), pa.float32()

Floats = np.ndarray[Any, np.dtype[np.float32]]
Ints = np.ndarray[Any, np.dtype[np.int32]]


@dataclass(frozen=True, slots=True)
class Header:
    """What made a record.

    Args:
        name: what tables call the engine: `vllm bfloat16`.
        model: the model's name, and `identity` what identifies it.
        prompts: the set's name, and `mark` of its prompts.
        scored: whose greedy continuation the logits are of: this engine's `own`, or another record's name.
        num_kept: tokens that are kept of each place that was scored; None for all of the vocabulary.
    """

    name: str
    engine: str
    dtype: str
    model: str
    identity: dict[str, Any]
    prompts: str
    mark: str
    max_tokens: int
    scored: str
    vocab_size: int
    num_kept: int | None
    versions: dict[str, str]
    hardware: dict[str, Any]
    signature: str


@dataclass(frozen=True, slots=True)
class Likeliest:
    """The likeliest tokens of some places, most likely first, with log-probabilities: both [places, tokens]."""

    token_ids: Ints
    logprobs: Floats


@dataclass(frozen=True, slots=True)
class Recorded:
    """What an engine made of one prompt.

    Args:
        output_token_ids: its own greedy continuation, and `likeliest` of each place.
        scored_token_ids: the tokens whose places were scored.
        logits: [places, vocabulary] of these places, up to a constant of each place; None where only `kept` was kept.
    """

    name: str
    prompt: Prompt
    prompt_token_ids: list[int]
    output_token_ids: list[int]
    output_text: str
    likeliest: Likeliest
    scored_token_ids: list[int]
    logits: Floats | None
    kept: Likeliest | None


_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("prompt", pa.string()),  # JSON: a text or messages
        ("prompt_token_ids", pa.list_(_INT)),
        ("output_token_ids", pa.list_(_INT)),
        ("output_text", pa.string()),
        ("likeliest_ids", pa.list_(_INT)),
        ("likeliest_logprobs", pa.list_(_FLOAT)),
        ("scored_token_ids", pa.list_(_INT)),
        ("kept_ids", pa.list_(_INT)),  # null where all are kept
        ("kept", pa.list_(_FLOAT)),  # log-probabilities of these, or else the logits of the whole vocabulary
    ]
)


def likeliest(logits: Floats, num_tokens: int) -> Likeliest:
    """The likeliest tokens of places; equal ones in the order of their ids."""
    num_tokens = min(num_tokens, logits.shape[1])
    some = np.sort(np.argpartition(-logits, num_tokens - 1, axis=1)[:, :num_tokens], axis=1)
    order = np.argsort(-np.take_along_axis(logits, some, axis=1), axis=1, kind="stable")
    token_ids = np.take_along_axis(some, order, axis=1).astype(np.int32)
    highest = logits.max(axis=1, keepdims=True)
    total = np.log(np.exp((logits - highest).astype(np.float64)).sum(axis=1, keepdims=True)) + highest
    return Likeliest(token_ids, (np.take_along_axis(logits, token_ids, axis=1) - total).astype(np.float32))


@contextmanager
def writing(path: Path, header: Header) -> Iterator["Writer"]:
    """A record being written; it appears whole or not at all.

    Raises:
        StorageError: the file cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    schema = _SCHEMA.with_metadata({_HEADER: json.dumps({"format": FORMAT, **asdict(header)}, ensure_ascii=False)})
    try:
        with pq.ParquetWriter(
            unfinished,
            schema,
            compression="zstd",
            compression_level=1,
            use_dictionary=False,
            column_encoding={"kept.list.element": "BYTE_STREAM_SPLIT"},
            write_page_checksum=True,
        ) as writer:
            yield Writer(writer, schema)
        unfinished.replace(path)
    except OSError as error:
        raise StorageError(f"'{path}' cannot be written: {error}") from error
    finally:
        unfinished.unlink(missing_ok=True)


class Writer:
    """Takes the prompts of a record, one by one."""

    def __init__(self, writer: pq.ParquetWriter, schema: pa.Schema) -> None:
        self._writer = writer
        self._schema = schema

    def add(self, recorded: Recorded) -> None:
        """Writes one prompt."""
        kept = recorded.kept
        values = recorded.logits if kept is None else kept.logprobs
        columns = [
            [recorded.name],
            [json.dumps(recorded.prompt, ensure_ascii=False)],
            [recorded.prompt_token_ids],
            [recorded.output_token_ids],
            [recorded.output_text],
            _one_list(recorded.likeliest.token_ids),
            _one_list(recorded.likeliest.logprobs),
            [recorded.scored_token_ids],
            [None] if kept is None else _one_list(kept.token_ids),
            _one_list(values),
        ]
        arrays = [
            column if isinstance(column, pa.Array) else pa.array(column, field.type)
            for column, field in zip(columns, self._schema, strict=True)
        ]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))


class Record:
    """A record on disk.

    Raises:
        InputError: the file is none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = pq.ParquetFile(path, page_checksum_verification=True)
        except (OSError, pa.ArrowInvalid) as error:
            raise InputError(f"'{path}' cannot be read as a record: {error}") from error
        tree: Mapping[str, Any] = json.loads((self._file.schema_arrow.metadata or {}).get(_HEADER, b"{}"))
        if tree.get("format") != FORMAT:
            raise InputError(f"'{path}' is no record of this program's format {FORMAT}; make it with `parity record`")
        self.header = Header(**{name: value for name, value in tree.items() if name != "format"})

    def __len__(self) -> int:
        return int(self._file.num_row_groups)

    def __getitem__(self, number: int) -> Recorded:
        """The prompt of that number, from 0.

        Raises:
            InputError: the file is damaged.
        """
        if not 0 <= number < len(self):
            raise IndexError(number)
        try:
            row = self._file.read_row_group(number)
        except (OSError, pa.ArrowInvalid) as error:
            raise InputError(f"'{self.path}' is damaged: {error}") from error
        output, scored = _values(row, "output_token_ids"), _values(row, "scored_token_ids")
        kept = _values(row, "kept").reshape(len(scored), -1)
        is_whole = row.column("kept_ids").null_count == 1
        return Recorded(
            name=row.column("name")[0].as_py(),
            prompt=json.loads(row.column("prompt")[0].as_py()),
            prompt_token_ids=_values(row, "prompt_token_ids").tolist(),
            output_token_ids=output.tolist(),
            output_text=row.column("output_text")[0].as_py(),
            likeliest=Likeliest(
                _values(row, "likeliest_ids").reshape(len(output), -1),
                _values(row, "likeliest_logprobs").reshape(len(output), -1),
            ),
            scored_token_ids=scored.tolist(),
            logits=kept if is_whole else None,
            kept=None if is_whole else Likeliest(_values(row, "kept_ids").reshape(len(scored), -1), kept),
        )

    def prompts(self) -> list[Recorded]:
        """Every prompt without its logits."""
        columns = [name for name in _SCHEMA.names if not name.startswith("kept")]
        empty = Likeliest(np.zeros((0, 0), np.int32), np.zeros((0, 0), np.float32))
        return [
            Recorded(
                name=row["name"],
                prompt=json.loads(row["prompt"]),
                prompt_token_ids=row["prompt_token_ids"],
                output_token_ids=row["output_token_ids"],
                output_text=row["output_text"],
                likeliest=empty,
                scored_token_ids=row["scored_token_ids"],
                logits=None,
                kept=empty,
            )
            for row in self._file.read(columns).to_pylist()
        ]


def _one_list(values: Any) -> pa.Array:
    """An array with all values in one list."""
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.ListArray.from_arrays(pa.array([0, len(flat)], pa.int32()), flat)


def _values(row: pa.Table, name: str) -> np.ndarray[Any, Any]:
    return np.asarray(row.column(name).combine_chunks().flatten().to_numpy(zero_copy_only=False))
