"""What the real vllm-ascend makes of the engine arguments of every job that names Ascend, without a card.

Knows the stand-in for torch_npu only by its being on PYTHONPATH; must never start an engine.

`python -m tests.ascend.contract` records it as the expectation, in an environment of tests/compat/make_env.py with
PYTHONPATH=.:tests/ascend/standin:ENVIRONMENT/ascend-site.
"""

import json
from importlib import metadata
from pathlib import Path
from typing import Any

from seedx_batch import platforms
from seedx_batch.engine.config_probe import probe
from seedx_batch.spec import load
from tests.tiny_models import tiny_seed_x

HERE = Path(__file__).parent
JOBS = HERE.parents[1] / "jobs"

CARD = {
    "dtype": "bfloat16",
    "max_model_len": 8192,
    "max_num_seqs": 16,
    "tensor_parallel_size": 1,
    "load_format": "safetensors",
}
"""The engine arguments of the reference figures, as somebody would give them without this program."""

_SEED_X = {
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 65269,
    "sliding_window": 4096,
    "max_position_embeddings": 32768,
    "torch_dtype": "bfloat16",
}
_ENV = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
_MATTERS = ("VLLM_", "HCCL_", "PYTORCH_NPU_", "TASK_QUEUE_")
"""Variables of which a change is recorded; others are other libraries', or depend on the machine."""


def installed_version() -> str:
    """The version of the vllm-ascend that is importable here."""
    return metadata.version("vllm-ascend")


def expectation(version: str) -> Path:
    """The file with what was recorded for a version of vllm-ascend."""
    return HERE / "expected" / f"{version}.json"


def ascend_jobs() -> dict[str, Path]:
    """The jobs of the repository that name Ascend, by name."""
    specs = {path: load(path) for path in sorted(JOBS.glob("*.yaml"))}
    return {spec.name: path for path, spec in specs.items() if spec.engine.platform == "ascend"}


def seed_x_folder(folder: Path) -> Path:
    """A folder that has all of Seed-X that a configuration is made of: its shape and a tokenizer, no weights."""
    tiny_seed_x(folder)
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | _SEED_X), encoding="utf-8")
    return folder


def of_card(model: Path, **more: Any) -> dict[str, Any]:
    """What becomes of the reference arguments alone (and more), with nothing of this program around them."""
    return recordable(probe({"model": str(model), **CARD, **more}, _ENV))


def of_job(job: Path, model: Path) -> dict[str, Any]:
    """What becomes of a job's engine arguments, as the program itself would give them."""
    settings = settings_of(job, model)
    return recordable(probe(settings.args, _ENV | settings.env))


def settings_of(job: Path, model: Path) -> platforms.EngineSettings:
    """What the program would start a job's engine with, this model in the place of the job's own."""
    spec = load(job, [f"model.name={json.dumps(str(model))}"])
    return platforms.of_job(spec, model, num_output_tokens=1, cache=model.parent, environ={})


def recordable(configuration: dict[str, Any]) -> dict[str, Any]:
    """A configuration without what another machine or build of torch would have otherwise."""
    changed, versions = configuration["changed_env"].items(), configuration["versions"].items()
    return configuration | {
        "versions": {name: version for name, version in versions if name.startswith("vllm")},
        "changed_env": {name: change for name, change in changed if name.startswith(_MATTERS)},
        "warnings": [text for text in configuration["warnings"] if not text.startswith("Triton")],
    }


def configurations(folder: Path) -> dict[str, dict[str, Any]]:
    """Every configuration that is recorded, by the job's name or `card`."""
    model = seed_x_folder(folder)
    return {"card": of_card(model), **{name: of_job(path, model) for name, path in ascend_jobs().items()}}


def main() -> None:
    """Record what the vllm-ascend that is installed here makes of every job."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        found = configurations(Path(folder) / "seed-x")
    path = expectation(installed_version())
    path.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
