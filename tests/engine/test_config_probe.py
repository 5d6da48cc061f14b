"""What vLLM makes of arguments is told without an engine, and what it refuses is one error."""

import os
from pathlib import Path

import pytest

from seedx_batch.engine.config_probe import probe
from seedx_batch.errors import EngineConfigError
from tests.engine.tiny_engine import MAX_MODEL_LEN, MAX_NUM_SEQS, make_model, make_settings

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model."""
    return make_model(tmp_path_factory.mktemp("model"))


def test_tells_the_configuration(model: Path, tmp_path: Path) -> None:
    """The program's own settings are taken over as they are, and vLLM's choices stand beside them."""
    settings = make_settings(model, tmp_path)
    told = probe(settings.args, settings.env)
    assert told["platform_class"] == "vllm.platforms.cpu.CpuPlatform"
    assert told["worker_cls"] == "vllm.v1.worker.cpu_worker.CPUWorker"
    assert (told["max_model_len"], told["max_num_seqs"], told["dtype"]) == (MAX_MODEL_LEN, MAX_NUM_SEQS, "float32")
    assert told["changed_args"] == {}
    assert {"vllm", "torch"} <= told["versions"].keys()
    assert not settings.env.keys() & told["changed_env"].keys() - {"LD_PRELOAD"}


def test_tells_what_was_changed(model: Path, tmp_path: Path) -> None:
    """What the platform does otherwise than asked is told with both values, and so is a variable that it sets."""
    settings = make_settings(model, tmp_path)
    asked = {**settings.args, "compilation_config": {"cudagraph_mode": "FULL"}, "enforce_eager": False}
    env = {name: value for name, value in settings.env.items() if name != "VLLM_WORKER_MULTIPROC_METHOD"}
    told = probe(asked, env)
    assert told["changed_args"] == {"compilation_config.cudagraph_mode": ["FULL", "NONE"]}
    if "VLLM_WORKER_MULTIPROC_METHOD" not in os.environ:
        assert told["changed_env"]["VLLM_WORKER_MULTIPROC_METHOD"] == [None, "spawn"]


def test_refusal_is_told_in_vllms_words(model: Path, tmp_path: Path) -> None:
    """An argument that vLLM refuses is named with what is wrong, on one line."""
    settings = make_settings(model, tmp_path)
    with pytest.raises(EngineConfigError, match=r"max_num_seqs: Input should be greater than or equal to 1") as raised:
        probe({**settings.args, "max_num_seqs": 0}, settings.env)
    assert "\n" not in str(raised.value)


def test_no_answer_in_time(model: Path, tmp_path: Path) -> None:
    """A probe that takes too long is ended and told."""
    settings = make_settings(model, tmp_path)
    with pytest.raises(EngineConfigError, match="did not answer within"):
        probe(settings.args, settings.env, timeout_s=0.01)


def test_a_broken_process_is_told(model: Path, tmp_path: Path) -> None:
    """Where vLLM's process cannot even start, its last words are in the error."""
    settings = make_settings(model, tmp_path)
    broken = tmp_path / "vllm.py"
    broken.write_text("import os; os.write(2, b'the end'); os._exit(3)", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
        with pytest.raises(EngineConfigError, match=r"ended with 3 and no answer:\nthe end"):
            probe(settings.args, settings.env)


def test_tells_what_beam_search_asks_for(model: Path, tmp_path: Path) -> None:
    """The scheduler and the connector of a beam search are accepted as they are."""
    settings = make_settings(model, tmp_path, beam_width=4)
    told = probe(settings.args, settings.env)
    assert told["changed_args"] == {}
    assert told["async_scheduling"] is False
