"""Every job that names Ascend is accepted by the real vllm-ascend, and becomes the engine that was recorded."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from seedx_batch.spec import load
from tests.ascend import contract

pytestmark = [
    pytest.mark.compat,
    pytest.mark.skipif(find_spec("vllm_ascend") is None, reason="needs vllm-ascend (make compat)"),
]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seed-X without its weights."""
    return contract.seed_x_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def expected() -> dict[str, Any]:
    """What was recorded for the vllm-ascend that is installed here, by job."""
    tree: dict[str, Any] = json.loads(contract.expectation(contract.installed_version()).read_text(encoding="utf-8"))
    return tree


@pytest.fixture(scope="session", params=[pytest.param(path, id=name) for name, path in contract.ascend_jobs().items()])
def configured(request: pytest.FixtureRequest, model: Path) -> tuple[Path, dict[str, Any]]:
    """A job, and what becomes of its engine arguments."""
    return request.param, contract.of_job(request.param, model)


def test_card_is_as_recorded(model: Path, expected: dict[str, Any]) -> None:
    """The reference arguments alone become the engine that was recorded: the plugin is the one that we know."""
    assert contract.of_card(model) == expected["card"]


def test_job_is_as_recorded(configured: tuple[Path, dict[str, Any]], expected: dict[str, Any]) -> None:
    """Worker, block size, graphs, dtype, environment, warnings: all is as it was recorded for this job."""
    job, configuration = configured
    assert configuration == expected[load(job).name]


def test_job_gets_what_it_asks_for(configured: tuple[Path, dict[str, Any]], model: Path) -> None:
    """The plugin takes over every argument and every variable of the program's as it is, and asks for no other."""
    job, configuration = configured
    ours = contract.settings_of(job, model).env
    assert configuration["platform_class"] == "vllm_ascend.platform.NPUPlatform"
    assert configuration["changed_args"] == {}
    assert {"HCCL_OP_EXPANSION_MODE", "PYTORCH_NPU_ALLOC_CONF", "VLLM_WORKER_MULTIPROC_METHOD"} <= ours.keys()
    assert not ours.keys() & configuration["changed_env"].keys()
    assert not [text for text in configuration["warnings"] if "HCCL_OP_EXPANSION_MODE" in text]


def test_contract_notices_what_the_plugin_changes(model: Path) -> None:
    """A block size that the plugin does not do is told as changed, so an empty list of changes means something."""
    configuration = contract.of_card(model, block_size=64)
    assert configuration["changed_args"] == {"block_size": [64, 128]}
