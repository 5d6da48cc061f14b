"""Which model a job means on this machine: where it lies, and what identifies it.

Must never know the engine: it reads names, sizes and digests of a model's files, not its weights.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seedx_batch import packaged
from seedx_batch.errors import ModelUnavailable
from seedx_batch.spec import ModelSpec

SIMULATED = "simulated"
_DESCRIBING = ("config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja")
_MAX_HEADER_BYTES = 100 << 20  # safetensors' own bound


@dataclass(frozen=True, slots=True)
class Model:
    """A model as this machine has it.

    Args:
        location: what vLLM is given: a folder or a hub name.
        folder: its folder, where there is one on this machine.
        revision: the hub's commit, where the name is a hub name.
        identity: JSON values that are equal if and only if results can be expected to be.
    """

    location: str
    folder: Path | None
    revision: str | None
    identity: dict[str, Any]

    @property
    def is_simulated(self) -> bool:
        """Whether the job is a rehearsal without a model."""
        return self.location == SIMULATED


def cache_folder() -> Path:
    """Where prepared models and compiled graphs are kept: $SEEDX_BATCH_CACHE, or `.cache` here."""
    return Path(os.environ.get("SEEDX_BATCH_CACHE") or ".cache").absolute()


def resolve(spec: ModelSpec, *, fetch: bool) -> Model:
    """The model that a job names.

    Args:
        fetch: ask the hub for what is not on this machine; otherwise such a model has no folder and its
            identity is its name alone.

    Raises:
        ModelUnavailable: it is a folder or a package that is not there, or the hub does not give it.
    """
    name = spec.name
    if name == SIMULATED:
        return Model(SIMULATED, None, None, {"simulated": True})
    if packaged.is_packaged(name):
        folder = packaged.folder(name, cache_folder())
        ready = packaged.is_prepared(name, cache_folder())
        if fetch and not ready:
            raise ModelUnavailable(f"'{name}' is not prepared", f"run `seedx-batch prepare {name}`")
        return Model(str(folder), folder if ready else None, None, describe(folder) if ready else {})
    folder = Path(name).expanduser()
    if folder.is_dir():
        return Model(str(folder), folder, None, describe(folder))
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise ModelUnavailable(f"there is no folder '{name}'", "give a model folder or a hub name such as org/model")
    return _from_hub(name, spec.revision, fetch=fetch)


def describe(folder: Path) -> dict[str, Any]:
    """What identifies the model in a folder: digests of its describing files and of its weights' headers.

    Raises:
        ModelUnavailable: the folder holds no model.
    """
    if not (folder / "config.json").is_file():
        raise ModelUnavailable(f"'{folder}' holds no config.json", "give the folder of a Hugging Face model")
    _read_config(folder)
    described = {name: _digest((folder / name).read_bytes()) for name in _DESCRIBING if (folder / name).is_file()}
    index = folder / "model.safetensors.index.json"
    weights = [index] if index.is_file() else []
    weights += sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin", ".gguf"))
    return described | {path.name: _weights(path) for path in weights}


def _weights(path: Path) -> str:
    size = path.stat().st_size
    if path.suffix == ".json":
        return _digest(path.read_bytes())
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little") if path.suffix == ".safetensors" else 0
        header = file.read(min(length, _MAX_HEADER_BYTES))
    return f"{_digest(header)}/{size}"


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _from_hub(name: str, revision: str | None, *, fetch: bool) -> Model:
    if os.environ.get("VLLM_USE_MODELSCOPE", "").lower() in ("1", "true"):
        return Model(name, None, revision, {"hub": "modelscope", "revision": revision})
    # Imported here: the hub's client is needed only for hub names, and plans must start at once.
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        config = Path(hf_hub_download(name, "config.json", revision=revision, local_files_only=not fetch))
    except (LocalEntryNotFoundError, EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        if not fetch:
            return Model(name, None, revision, {})
        reason = " ".join(str(error).split())[:200]
        raise ModelUnavailable(
            f"'{name}' is no folder here and the hub does not give it ({reason})",
            "download it to a folder and give that, or set HF_ENDPOINT or VLLM_USE_MODELSCOPE",
        ) from error
    # .../snapshots/<commit>/config.json: workers that start later load the same commit.
    return Model(name, config.parent, config.parent.name, {"hub": "huggingface", "revision": config.parent.name})


def config_of(model: Model) -> dict[str, Any]:
    """The model's config.json, or {} where it is not on this machine."""
    if model.folder is None:
        return {}
    return _read_config(model.folder)


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        tree = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelUnavailable(f"the config.json in '{folder}' cannot be read ({error})") from error
    if not isinstance(tree, dict):
        raise ModelUnavailable(f"the config.json in '{folder}' is no object")
    return tree
