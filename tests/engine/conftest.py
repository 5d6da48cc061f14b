"""One real vLLM engine for the session, on a tiny model in this process, and the same tests for the simulated one."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from seedx_batch.engine import Engine
from seedx_batch.engine.simulated import SimulatedEngine
from tests.engine.tiny_engine import MAX_MODEL_LEN, MAX_NUM_SEQS, make_model, make_settings

CACHE = Path(os.environ.get("SEEDX_BATCH_CACHE") or Path(__file__).parents[2] / ".cache") / "tests"
"""Kept between runs: sampling compiles a kernel, which takes 15 s the first time."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with a real engine do not answer for the warnings of vLLM and torch."""
    for item in items:
        if item.get_closest_marker("engine"):
            item.add_marker(pytest.mark.filterwarnings("ignore"))


@pytest.fixture(scope="session")
def vllm_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The session's real engine; what only a new process could set (LD_PRELOAD) is left as it is.

    It is one that beam search could use: all else must be the same to it.
    """
    settings = make_settings(make_model(tmp_path_factory.mktemp("model")), CACHE, beam_width=2)
    os.environ.update({name: value for name, value in settings.env.items() if name != "LD_PRELOAD"})
    from seedx_batch.engine.vllm import VllmEngine

    engine = VllmEngine(settings.args)
    yield engine
    engine.close()


@pytest.fixture(params=["simulated", pytest.param("vllm", marks=pytest.mark.engine)])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Each engine in turn, with nothing unfinished before and after."""
    engine: Engine
    if request.param == "simulated":
        engine = SimulatedEngine(MAX_NUM_SEQS, MAX_MODEL_LEN)
    else:
        engine = request.getfixturevalue("vllm_engine")
    yield engine
    while engine.num_unfinished:
        engine.step()
