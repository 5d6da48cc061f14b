"""The same with Ray Data's map_batches: python ray_data.py ROWS.jsonl FOLDER"""

import sys
from pathlib import Path

import pyarrow as pa
import ray


def echo(batch: pa.Table) -> pa.Table:
    """The prompt of every row, as its answer."""
    texts = batch.column("source").to_pylist()
    answers = [f"Translate the following English sentence into Chinese:\n{text} <zh>" for text in texts]
    return batch.append_column("translation", pa.array(answers, pa.string()))


def main() -> None:
    """Reads, maps and writes."""
    rows, folder = sys.argv[1], Path(sys.argv[2])
    ray.init(include_dashboard=False, logging_level="error")
    ray.data.DataContext.get_current().enable_progress_bars = False
    ray.data.read_json(rows).map_batches(echo, batch_format="pyarrow").write_parquet(str(folder / "rows"))


if __name__ == "__main__":
    main()
