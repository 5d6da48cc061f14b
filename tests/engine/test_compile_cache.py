"""What an earlier start compiled is found again."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.engine.tiny_engine import make_model

pytestmark = pytest.mark.engine
ROOT = Path(__file__).parents[2]
PROGRAM = """
import os, sys
from pathlib import Path
from seedx_batch import platforms
from seedx_batch.records import Request, RequestId, RowKey
from seedx_batch.spec import EngineSpec, ModelSpec

spec = ModelSpec(name=sys.argv[1], dtype="float32", max_model_len=256)
section = EngineSpec.model_validate({"platform": "cpu", "max_num_seqs": 4, "enforce_eager": False})
settings = platforms.settings(spec, section, Path(sys.argv[1]), 1, Path(sys.argv[2]), os.environ)
os.environ.update(settings.env)
from seedx_batch.engine.vllm import VllmEngine
engine = VllmEngine(settings.args)
params = {"temperature": 0.0, "max_tokens": 8, "ignore_eos": True}
engine.add(Request(RequestId(RowKey(0, 0), 0), engine.encode("hello the world"), params))
while not (outputs := engine.step()):
    pass
print("text:", outputs[0].candidates[0].text)
engine.close()
"""


def test_a_second_start_loads_what_the_first_compiled(tmp_path: Path) -> None:
    """The compiled model is loaded rather than made again, and gives the same text."""
    model = make_model(tmp_path / "model")
    texts, logs = [], []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(model), str(tmp_path / "cache")],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        texts.append([line for line in done.stdout.splitlines() if line.startswith("text:")])
        logs.append(done.stderr)
    assert "saved AOT compiled function" in logs[0]
    assert "Directly load AOT compilation" in logs[1]
    assert "Compiling model again" not in logs[1]
    assert texts[0] == texts[1] != []


def test_mending_changes_only_what_lacks_the_method(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function that torch loads gets the method that vLLM calls; vLLM's own, which has it, stays as it is."""
    import torch

    from seedx_batch.engine import compile_cache

    def plain() -> None: ...

    own = SimpleNamespace(finalize_loading="its own")
    loads = iter([plain, own])
    monkeypatch.setattr(
        torch.compiler,
        "load_compiled_function",
        lambda file: SimpleNamespace(_artifacts=SimpleNamespace(compiled_fn=next(loads))),
    )
    compile_cache.mend()
    once = torch.compiler.load_compiled_function
    compile_cache.mend()
    assert torch.compiler.load_compiled_function is once
    assert once("file")._artifacts.compiled_fn.finalize_loading(None) is None
    assert once("file")._artifacts.compiled_fn.finalize_loading == "its own"
