"""Input files of any number of rows, made quickly and alike in every call: an id, a text of 5 to 40 words, two columns.

Must never know what is measured with them.
"""

import random
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

_WORDS = [f"word{number:03d}" for number in range(997)]
_NUM_TEXTS = 20_011
_ROWS_PER_BLOCK = 100_000


def write(path: Path, num_rows: int) -> Path:
    """A JSONL or a parquet file, as its name says; made only where it is not there."""
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"unfinished-{path.name}")
    if path.suffix == ".parquet":
        blocks = (_table(rows) for rows in _blocks(num_rows))
        first = next(blocks)
        with pq.ParquetWriter(unfinished, first.schema) as writer:
            writer.write_table(first)
            for block in blocks:
                writer.write_table(block)
    else:
        with unfinished.open("w", encoding="utf-8") as file:
            for rows in _blocks(num_rows):
                file.write("".join(_line(*row) for row in rows))
    unfinished.rename(path)
    return path


Record = tuple[str, str, int, str]


def _blocks(num_rows: int) -> Iterator[list[Record]]:
    draw = random.Random(0)
    texts = [" ".join(draw.choices(_WORDS, k=draw.randint(5, 40))) for _ in range(_NUM_TEXTS)]
    for start in range(0, num_rows, _ROWS_PER_BLOCK):
        # The number makes every text another one: nothing is merged.
        yield [
            (f"r{number:08d}", f"{number} {texts[number * 7919 % _NUM_TEXTS]}", 1990 + number % 30, f"d{number % 7}")
            for number in range(start, min(num_rows, start + _ROWS_PER_BLOCK))
        ]


def _line(name: str, source: str, year: int, domain: str) -> str:
    return f'{{"id": "{name}", "source": "{source}", "year": {year}, "domain": "{domain}"}}\n'


def _table(rows: list[Record]) -> pa.Table:
    columns = [pa.array(column) for column in zip(*rows, strict=True)]
    return pa.Table.from_arrays(columns, names=["id", "source", "year", "domain"])
