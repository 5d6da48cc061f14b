"""datatrove's InferenceRunner with checkpoints: python datatrove_runner.py SETTINGS.json

A server that is asked for its readiness every second instead of every five, and checkpoints of 32, served it best.
"""

import json
import sys
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.inference.run_inference import InferenceConfig, InferenceRunner
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter

_ROWS_PER_CHUNK = 32
_WINDOWS = 2


async def ask(document: Document, generate: Any) -> Any:
    """One request for one document."""
    return await generate(
        {
            "messages": [{"role": "user", "content": document.text}],
            "temperature": 0,
            "max_tokens": document.metadata["budget"],
            "ignore_eos": True,
        }
    )


def main() -> None:
    """Does what the settings say: model, engine, rows, output, checkpoints."""
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    given = {name: value for name, value in settings["engine"].items() if name not in ("model", "max_model_len")}
    config = InferenceConfig(
        server_type="vllm",
        model_name_or_path=settings["model"],
        model_max_context=settings["engine"]["max_model_len"],
        max_concurrent_generations=_WINDOWS * settings["engine"]["max_num_seqs"],
        model_kwargs={name.replace("_", "-"): value for name, value in given.items() if value is not False},
        server_start_timeout_sec=300,
        server_ready_delay_sec=1,
        server_log_folder=str(Path(settings["checkpoints"]) / "server"),
    )
    rows = Path(settings["rows"])
    runner = InferenceRunner(
        rollout_fn=ask,
        config=config,
        output_writer=JsonlWriter(settings["output"], "${rank}_${chunk_index}.jsonl", compression=None),
        checkpoints_local_dir=str(Path(settings["checkpoints"]) / "chunks"),
        records_per_chunk=_ROWS_PER_CHUNK,
    )
    LocalPipelineExecutor(
        pipeline=[JsonlReader(str(rows.parent), glob_pattern=rows.name, text_key="source"), runner],
        logging_dir=str(Path(settings["checkpoints"]) / "logs"),
    ).run()


if __name__ == "__main__":
    main()
