"""The same with datatrove's InferenceRunner and its dummy server: python datatrove_runner.py ROWS.jsonl FOLDER

Its server answers every request with one and the same text.
"""

import sys
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.inference.run_inference import InferenceConfig, InferenceRunner
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import ParquetWriter

_NUM_IN_FLIGHT = 512
_ROWS_PER_CHUNK = 5_000


async def ask(document: Document, generate: Any) -> Any:
    """One request for one document."""
    prompt = f"Translate the following English sentence into Chinese:\n{document.text} <zh>"
    return await generate({"messages": [{"role": "user", "content": prompt}], "temperature": 0, "max_tokens": 96})


def main() -> None:
    """Reads, asks and writes, with checkpoints."""
    rows, folder = Path(sys.argv[1]), Path(sys.argv[2])
    config = InferenceConfig(
        server_type="dummy",
        model_name_or_path="dummy",
        max_concurrent_generations=_NUM_IN_FLIGHT,
        server_ready_delay_sec=1,
    )
    runner = InferenceRunner(
        rollout_fn=ask,
        config=config,
        output_writer=ParquetWriter(str(folder / "rows"), "${rank}_${chunk_index}.parquet"),
        checkpoints_local_dir=str(folder / "chunks"),
        records_per_chunk=_ROWS_PER_CHUNK,
    )
    reader = JsonlReader(str(rows.parent), glob_pattern=rows.name, text_key="source")
    LocalPipelineExecutor(pipeline=[reader, runner], logging_dir=str(folder / "logs")).run()


if __name__ == "__main__":
    main()
