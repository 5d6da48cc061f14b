"""Broken model folders: each fault is found by the file that has it, and a whole folder has none."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seedx_batch.doctor import Finding, model_files

INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9942981696\n"


def safetensors(path: Path, tensors: dict[str, tuple[str, list[int], int]], **changed: Any) -> None:
    """A file with tensors of zeros: dtype, shape and number of bytes of each."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]} | changed
        end += size
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(end))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of two shards, with an index."""
    safetensors(tmp_path / FIRST, {"a": ("BF16", [4, 8], 64), "b": ("F8_E4M3", [16], 16)})
    safetensors(tmp_path / SECOND, {"c": ("F32", [2], 8), "d": ("BOOL", [], 1)})
    places = {"a": FIRST, "b": FIRST, "c": SECOND, "d": SECOND}
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {"total_size": 89}, "weight_map": places}))
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    return tmp_path


def test_a_whole_model(folder: Path) -> None:
    """All shards agree with the index and with their headers; parameters are counted from these."""
    found = model_files.examine(folder)
    assert [(finding.name, finding.state) for finding in found] == [("weights", "ok")]
    assert found[0].found == "2 files, 0.00 GiB, 0 M parameters"


def cut(name: str, num_bytes: int) -> Callable[[Path], None]:
    """A file that is so much shorter, or with a negative number longer."""

    def change(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-num_bytes] if num_bytes > 0 else content + bytes(-num_bytes))

    return change


def replaced(name: str, text: str) -> Callable[[Path], None]:
    """A file with another content."""
    return lambda folder: (folder / name).write_text(text) and None


def removed(*names: str) -> Callable[[Path], None]:
    """Files that are not there."""
    return lambda folder: [(folder / name).unlink() for name in names] and None


def shifted(folder: Path) -> None:
    """A header whose offsets are not those of its shapes."""
    safetensors(folder / SECOND, {"c": ("F32", [3], 8), "d": ("BOOL", [], 1)})


def other_tensors(folder: Path) -> None:
    """A shard with other tensors than the index says."""
    safetensors(folder / SECOND, {"c": ("F32", [2], 8)})


def gap(folder: Path) -> None:
    """A header that leaves bytes out."""
    safetensors(folder / SECOND, {"c": ("F32", [2], 8)}, data_offsets=[4, 12])
    (folder / SECOND).write_bytes((folder / SECOND).read_bytes() + bytes(4))
    places = {"a": FIRST, "b": FIRST, "c": SECOND}
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))


BROKEN: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "a shard is missing": (removed(SECOND), "weights", f"{SECOND} is not there"),
    "a shard is cut off": (cut(FIRST, 5), "weights", f"{FIRST} is cut off: 75 bytes of weights in place of 80"),
    "a shard is too long": (cut(FIRST, -5), "weights", f"{FIRST} is too long"),
    "a shard is a stub": (replaced(FIRST, "abc"), "weights", f"{FIRST} is cut off or no safetensors file (3 bytes)"),
    "a shard is no such file": (replaced(FIRST, "<html>" * 99), "weights", f"{FIRST} is cut off or no safetensors"),
    "a shard is a pointer": (replaced(SECOND, POINTER), "weights", f"{SECOND} is a pointer of Git LFS"),
    "a header contradicts itself": (shifted, "weights", f"{SECOND} has a header that contradicts itself at c"),
    "a header leaves a gap": (gap, "weights", f"{SECOND} has a header that contradicts itself at c"),
    "a tensor is missing": (other_tensors, "weights", f"{SECOND} has no d"),
    "the index is a pointer": (replaced(INDEX, POINTER), "weights", f"{INDEX} is a pointer of Git LFS"),
    "the index is cut off": (cut(INDEX, 5), "weights", f"{INDEX} cannot be read"),
    "the index is missing": (removed(INDEX), "weights", "2 shards without"),
    "there are no weights": (removed(INDEX, FIRST, SECOND), "weights", "none in"),
    "the tokenizer is a pointer": (replaced("tokenizer.json", POINTER), "tokenizer.json", "a pointer of Git LFS"),
    "the config is no JSON": (replaced("config.json", "{"), "config.json", "no valid JSON"),
}


def ills(found: list[Finding]) -> list[Finding]:
    """What is not well."""
    return [finding for finding in found if finding.state != "ok"]


@pytest.mark.parametrize("what", BROKEN)
def test_each_fault_is_found_and_nothing_else(folder: Path, what: str) -> None:
    """One broken file gives one fault that names it and says how to get a whole one."""
    breaks, name, told = BROKEN[what]
    breaks(folder)
    (finding,) = ills(model_files.examine(folder))
    assert (finding.name, finding.state) == (name, "fault")
    assert told in finding.found
    assert "git lfs pull" in finding.remedy


def test_a_header_of_nonsense(folder: Path) -> None:
    """A header that is JSON but no header is a fault of its file, not of this program."""
    for nonsense in ('{"a": 1}', "[]", '{"a": {"dtype": "BF16", "shape": ["x"], "data_offsets": [0, 1]}}', "{"):
        text = nonsense.encode()
        (folder / FIRST).write_bytes(len(text).to_bytes(8, "little") + text + b"x")
        assert [finding.state for finding in ills(model_files.examine(folder))] == ["fault"]


def test_several_faults_are_told_at_once(folder: Path) -> None:
    """Every broken file has a finding."""
    removed(SECOND)(folder)
    cut(FIRST, 1)(folder)
    replaced("tokenizer.json", POINTER)(folder)
    assert len(ills(model_files.examine(folder))) == 3


def test_one_file_needs_no_index(folder: Path) -> None:
    """A model in one file has none; older files are only known to be there."""
    removed(INDEX, FIRST, SECOND)(folder)
    safetensors(folder / "model.safetensors", {"a": ("F4", [4], 2)})
    assert ills(model_files.examine(folder)) == []
    removed("model.safetensors")(folder)
    (folder / "pytorch_model.bin").write_bytes(b"x")
    assert [finding.state for finding in model_files.examine(folder)] == ["note"]
    replaced("pytorch_model.bin", POINTER)(folder)
    assert [finding.state for finding in model_files.examine(folder)] == ["fault"]


def test_a_large_tokenizer_is_only_looked_at(folder: Path) -> None:
    """Of a file of many megabytes it is known whether it is whole."""
    text = json.dumps({"vocab": "x" * (5 << 20)})
    replaced("tokenizer.json", text)(folder)
    assert ills(model_files.examine(folder)) == []
    cut("tokenizer.json", 1)(folder)
    assert [finding.found for finding in ills(model_files.examine(folder))] == ["no valid JSON: it is cut off"]
