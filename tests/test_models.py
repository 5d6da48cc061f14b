"""What a model's name means on this machine, and what identifies the model."""

import json
import struct
from pathlib import Path

import pytest

from seedx_batch import models
from seedx_batch.errors import ModelUnavailable
from seedx_batch.spec import ModelSpec


def make_model(folder: Path, **config: object) -> Path:
    """A folder that looks like a model's: a config, a tokenizer, and weights with a safetensors header."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "mistral"} | config))
    (folder / "tokenizer.json").write_text("{}")
    header = json.dumps({"w": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
    return folder


def test_a_folder_is_itself(tmp_path: Path) -> None:
    """A folder's model lies there, and its config can be read."""
    folder = make_model(tmp_path / "m", vocab_size=7)
    model = models.resolve(ModelSpec(name=str(folder)), fetch=True)
    assert (model.location, model.folder) == (str(folder), folder)
    assert models.config_of(model)["vocab_size"] == 7


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_identity_follows_every_file(tmp_path: Path, name: str) -> None:
    """A change in the config, the tokenizer or the weights' header is another model; a copy elsewhere is the same."""
    first, copy = make_model(tmp_path / "a"), make_model(tmp_path / "b")
    assert models.describe(first) == models.describe(copy)
    path = copy / name
    path.write_bytes(path.read_bytes() + b" ")
    assert models.describe(first) != models.describe(copy)


@pytest.mark.parametrize("name", ["/nowhere/model", "./model", "a/b/c"])
def test_a_path_that_does_not_exist(name: str) -> None:
    """A name that can only be a path, and is none, is refused at once, whether or not the hub may be asked."""
    with pytest.raises(ModelUnavailable, match="there is no folder"):
        models.resolve(ModelSpec(name=name), fetch=False)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    """A folder without config.json is refused, and told so."""
    with pytest.raises(ModelUnavailable, match=r"holds no config\.json"):
        models.resolve(ModelSpec(name=str(tmp_path)), fetch=True)


def test_a_hub_name_that_is_not_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A hub name without network: a plan goes on without it, a run is refused with what to do."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    spec = ModelSpec(name="no-such-org/no-such-model")
    assert models.resolve(spec, fetch=False).folder is None
    with pytest.raises(ModelUnavailable, match="HF_ENDPOINT"):
        models.resolve(spec, fetch=True)


def test_a_packaged_model_that_is_not_prepared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """package:NAME that was not made ready: a plan goes on, a run says how to prepare it."""
    monkeypatch.setenv("SEEDX_BATCH_CACHE", str(tmp_path))
    spec = ModelSpec(name="package:gemma3-270m")
    assert models.resolve(spec, fetch=False).folder is None
    with pytest.raises(ModelUnavailable, match="seedx-batch prepare package:gemma3-270m"):
        models.resolve(spec, fetch=True)


def test_a_rehearsal_has_no_model() -> None:
    """`simulated` is no model, and its results can never be taken for a model's."""
    model = models.resolve(ModelSpec(name="simulated"), fetch=True)
    assert model.is_simulated
    assert model.identity == {"simulated": True}


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "[" * 100_000, "\xff"])
def test_a_config_that_is_none(text: str, tmp_path: Path) -> None:
    """A config.json that holds no object is the model's fault, told with its folder."""
    folder = make_model(tmp_path / "m")
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelUnavailable, match=r"the config\.json in '.*m' "):
        models.resolve(ModelSpec(name=str(folder)), fetch=True)
