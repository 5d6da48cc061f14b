"""Ray Data LLM with checkpoints: python ray_data.py SETTINGS.json

The engine tokenises and detokenises, which saves two actors; that, batches of 32 and no dashboard served it best.
"""

import json
import sys
from pathlib import Path
from typing import Any

import ray
from ray.data import DataContext
from ray.data.checkpoint import CheckpointConfig
from ray.data.llm import build_processor, vLLMEngineProcessorConfig

_ROWS_PER_BATCH = 32
_NUM_BLOCKS = 4


def main() -> None:
    """Does what the settings say: model, engine, rows, output, checkpoints."""
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False)
    DataContext.get_current().checkpoint_config = CheckpointConfig(
        id_column="id", checkpoint_path=settings["checkpoints"], delete_checkpoint_on_success=False
    )
    config = vLLMEngineProcessorConfig(
        model_source=settings["model"],
        engine_kwargs={
            **{name: value for name, value in settings["engine"].items() if name != "model"},
            "distributed_executor_backend": "mp",
        },
        placement_group_config={"bundles": [{"CPU": 1}]},
        concurrency=1,
        batch_size=_ROWS_PER_BATCH,
        chat_template_stage=True,
        tokenize_stage=False,
        detokenize_stage=False,
        log_engine_metrics=False,
    )
    processor = build_processor(config, preprocess=ask, postprocess=answer)
    rows = ray.data.read_json(settings["rows"], override_num_blocks=_NUM_BLOCKS)
    processor(rows).write_json(settings["output"])


def ask(row: dict[str, Any]) -> dict[str, Any]:
    """A row as the processor takes it."""
    return {
        "id": row["id"],
        "source": row["source"],
        "messages": [{"role": "user", "content": row["source"]}],
        "sampling_params": {"temperature": 0, "max_tokens": row["budget"], "ignore_eos": True},
    }


def answer(row: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a row."""
    return {
        "id": row["id"],
        "source": row["source"],
        "text": row["generated_text"],
        "num_output_tokens": row["num_generated_tokens"],
    }


if __name__ == "__main__":
    main()
