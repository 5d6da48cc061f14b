"""The files of a model's folder: weights that are all there and whole, and describing files that can be read.

Headers are read, weights are not; must never know a job.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seedx_batch.doctor.findings import Finding

_INDEX = "model.safetensors.index.json"
_DESCRIBING = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model")
_POINTER = b"version https://git-lfs"
_MAX_HEADER_BYTES = 100 << 20  # safetensors' own bound
_LARGE_BYTES = 4 << 20
_BITS = {"BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "C64": 64}
_FETCH = "fetch it again: git lfs pull, or huggingface-cli download"


@dataclass(frozen=True, slots=True)
class _Shard:
    """What a safetensors file's header says; `fault` where the file is not what that says."""

    tensors: frozenset[str]
    num_parameters: int
    fault: str = ""


def examine(folder: Path) -> list[Finding]:
    """A finding for every file that is missing or broken, or one that says that all is well."""
    broken = [*_describing(folder)]
    safetensors = sorted(path.name for path in folder.glob("*.safetensors"))
    index, fault = _index(folder)
    if fault:
        return [*broken, fault]
    if not index and not safetensors:
        return [*broken, _other_weights(folder)]
    names = sorted(set(index.values())) if index else safetensors
    num_bytes = num_parameters = 0
    for name in names:
        path = folder / name
        if not path.is_file():
            broken.append(Finding("weights", "fault", f"{name} is not there", f"it, as {_INDEX} says", _FETCH))
            continue
        shard = _read(path)
        absent = [tensor for tensor, place in index.items() if place == name and tensor not in shard.tensors]
        if shard.fault or absent:
            told = shard.fault or f"has no {absent[0]}" + (f" and {len(absent) - 1} more" if len(absent) > 1 else "")
            broken.append(Finding("weights", "fault", f"{name} {told}", "a whole file", _FETCH))
        num_bytes += path.stat().st_size
        num_parameters += shard.num_parameters
    if any(finding.name == "weights" for finding in broken):
        return broken
    told = f"{num_bytes / (1 << 30):.2f} GiB, {num_parameters / 1e6:,.0f} M parameters"
    told = f"{len(names)} file{'s' * (len(names) > 1)}, {told}"
    return [*broken, Finding("weights", "ok", told)]


def _describing(folder: Path) -> Iterator[Finding]:
    for name in _DESCRIBING:
        path = folder / name
        if not path.is_file():
            continue
        if _is_pointer(path):
            yield Finding(name, "fault", "a pointer of Git LFS", "the file itself", _FETCH)
        elif path.suffix == ".json" and (fault := _json_fault(path)):
            yield Finding(name, "fault", f"no valid JSON: {fault}", "JSON", _FETCH)


def _json_fault(path: Path) -> str:
    if path.stat().st_size > _LARGE_BYTES:  # of a large vocabulary only that it is whole
        return "" if path.read_bytes().rstrip().endswith(b"}") else "it is cut off"
    try:
        json.loads(path.read_bytes())
    except (ValueError, OSError) as error:
        return str(error)
    return ""


def _index(folder: Path) -> tuple[dict[str, str], Finding | None]:
    """The shard of every tensor, where an index says so."""
    path = folder / _INDEX
    if not path.is_file():
        numbered = [re.search(r"-of-(\d+)\.safetensors$", found.name) for found in folder.glob("*-of-*.safetensors")]
        if any(numbered):
            found = f"{len(numbered)} shards without {_INDEX}"
            return {}, Finding("weights", "fault", found, "the index beside them", _FETCH)
        return {}, None
    if _is_pointer(path):
        return {}, Finding("weights", "fault", f"{_INDEX} is a pointer of Git LFS", "the file itself", _FETCH)
    try:
        shards: dict[str, str] = json.loads(path.read_bytes())["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        return {}, Finding("weights", "fault", f"{_INDEX} cannot be read: {error}", "a weight_map", _FETCH)
    return shards, None


def _other_weights(folder: Path) -> Finding:
    files = [path for path in folder.iterdir() if path.suffix in (".bin", ".gguf", ".pt")]
    pointers = [path.name for path in files if _is_pointer(path)]
    if pointers:
        return Finding(
            "weights", "fault", f"{', '.join(pointers)}: pointers of Git LFS", "the files themselves", _FETCH
        )
    if not files:
        return Finding("weights", "fault", f"none in {folder}", "*.safetensors", _FETCH)
    return Finding(
        "weights", "note", f"{', '.join(path.name for path in files)}: only safetensors files are looked into"
    )


def _read(path: Path) -> _Shard:
    if _is_pointer(path):
        return _Shard(frozenset(), 0, "is a pointer of Git LFS")
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
            return _Shard(frozenset(), 0, f"is cut off or no safetensors file ({size:,} bytes)")
        try:
            header: dict[str, Any] = json.loads(file.read(length))
            tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
            spans = sorted((*entry["data_offsets"], name) for name, entry in tensors.items())
            fault = _layout_fault(tensors, spans, size - 8 - length)
            num = sum(math.prod(entry["shape"]) for entry in tensors.values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return _Shard(frozenset(), 0, f"has a broken header: {error!r}")
    return _Shard(frozenset(tensors), num, fault)


def _layout_fault(tensors: dict[str, Any], spans: Sequence[tuple[int, int, str]], num_bytes: int) -> str:
    """What does not agree between a header and the bytes behind it."""
    end = 0
    for start, stop, name in spans:
        entry = tensors[name]
        wanted = math.prod(entry["shape"]) * _num_bits(entry["dtype"])
        if start != end or (stop - start) * 8 != wanted:
            return f"has a header that contradicts itself at {name}"
        end = stop
    if end != num_bytes:
        return f"is {'cut off' if num_bytes < end else 'too long'}: {num_bytes:,} bytes of weights in place of {end:,}"
    return ""


def _num_bits(dtype: str) -> int:
    """As the name says: BF16, F8_E4M3, I64."""
    told = re.match(r"[A-Z]+(\d+)", dtype)
    return _BITS[dtype] if dtype in _BITS or told is None else int(told[1])


def _is_pointer(path: Path) -> bool:
    if path.stat().st_size > 1024:
        return False
    return path.read_bytes().startswith(_POINTER)
