"""The same with datasets.map in batches: python datasets_map.py ROWS.jsonl FOLDER"""

import sys
from pathlib import Path
from typing import Any

import datasets


def echo(batch: dict[str, list[Any]]) -> dict[str, list[str]]:
    """The prompt of every row, as its answer."""
    return {
        "translation": [
            f"Translate the following English sentence into Chinese:\n{text} <zh>" for text in batch["source"]
        ]
    }


def main() -> None:
    """Reads, maps and writes."""
    rows, folder = sys.argv[1], Path(sys.argv[2])
    cache = str(folder / "cache")
    read = datasets.load_dataset("json", data_files=rows, split="train", cache_dir=cache)
    read.map(echo, batched=True).to_parquet(folder / "rows.parquet")


if __name__ == "__main__":
    datasets.disable_progress_bars()
    main()
