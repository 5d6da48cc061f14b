"""The program's lists of what each vLLM knows are those of the vLLM that is installed."""

import dataclasses
import json
from importlib import resources

import pytest

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("vllm_engine")]  # vLLM is imported as for an engine


def listed(name: str) -> set[str]:
    """What a list says about the vLLM that is installed."""
    import vllm

    version = ".".join(vllm.__version__.split(".")[:2])
    tree = json.loads(resources.files("seedx_batch").joinpath(name).read_text(encoding="utf-8"))
    return {field for field, versions in tree.items() if version in versions}


def test_engine_args_are_listed() -> None:
    """engine_args.json has every public field of EngineArgs and no other."""
    from vllm.engine.arg_utils import EngineArgs

    fields = {field.name for field in dataclasses.fields(EngineArgs)}
    assert listed("engine_args.json") == {field for field in fields if not field.startswith("_")}
