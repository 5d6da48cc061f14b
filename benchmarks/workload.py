"""The rows, the job and the engine's settings that all systems of a comparison get.

Must never know a system.
"""

import itertools
import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seedx_batch import models, platforms
from seedx_batch.spec import parse

REPOSITORY = Path(__file__).parent.parent
FOLDER = REPOSITORY / ".cache" / "bench"
SITE = FOLDER / "site"
"""What systems find installed beside their own packages; see engine_counts.py."""

MODEL = "package:smollm2-135m"
MAX_MODEL_LEN = 2048

_TEXTS = REPOSITORY / "data" / "zh_en.jsonl"
_SHORTEST, _LONGEST = 4, 96
_MEDIAN_LOG, _SPREAD_LOG = 3.1, 0.7  # median 22, mean 28: a few rows are several times as long as most


def varied(num_rows: int) -> list[int]:
    """Output lengths as translations have them: log-normal, 4 to 96 tokens; the same ones in every call."""
    draw = random.Random(num_rows)
    lengths = (round(draw.lognormvariate(_MEDIAN_LOG, _SPREAD_LOG)) for _ in range(num_rows))
    return [min(_LONGEST, max(_SHORTEST, length)) for length in lengths]


def write_rows(path: Path, budgets: Sequence[int]) -> Path:
    """JSONL rows with `id`, an English `source` of their own and `budget`, the number of tokens to be generated."""
    texts = [json.loads(line)["reference"] for line in _TEXTS.read_text(encoding="utf-8").splitlines()]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for number, (budget, text) in enumerate(zip(budgets, itertools.cycle(texts), strict=False)):
            # The number makes texts that come again different: they are not to be merged.
            row = {"id": f"r{number:06d}", "source": f"{number}. {text}", "budget": budget}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path


@dataclass(frozen=True, slots=True)
class Engine:
    """What an engine gets, whoever runs it: environment variables, and vLLM's EngineArgs by name."""

    env: dict[str, str]
    args: dict[str, Any]


def job(rows: Path, run_dir: Path, prompt: dict[str, str], max_num_seqs: int, rows_per_shard: int) -> dict[str, Any]:
    """A job over rows with forced lengths, all that it leaves open being what a user gets by default."""
    return {
        "name": "benchmark",
        "run_dir": str(run_dir),
        "input": {"path": str(rows)},
        "prompt": prompt,
        "model": {"name": MODEL, "max_model_len": MAX_MODEL_LEN},
        "decoding": {"temperature": 0, "ignore_eos": True, "max_tokens": {"column": "budget", "max": 1024}},
        "output": {"rows_per_shard": rows_per_shard},
        "engine": {"max_num_seqs": max_num_seqs, "max_num_batched_tokens": 4096, "enforce_eager": True},
    }


def engine(of: dict[str, Any]) -> Engine:
    """The environment and the arguments that this project would start the engine of such a job with."""
    subprocess.run([sys.executable, "-m", "seedx_batch", "prepare", MODEL], check=True, env=environment())
    spec = parse(json.dumps(of), "the benchmark's job")
    model = models.resolve(spec.model, fetch=True)
    settings = platforms.settings(spec.model, spec.engine, model.folder, 1, models.cache_folder(), os.environ)
    return Engine(settings.env, settings.args)


def environment(**more: str) -> dict[str, str]:
    """This process's environment, with this project and these scripts to be imported first."""
    paths = [REPOSITORY, REPOSITORY / "benchmarks", SITE, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(str(path) for path in paths if str(path)), **more}
