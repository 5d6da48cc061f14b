"""What only vLLM does: refusals in its words, its versions, its processes and their ends."""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from seedx_batch.errors import EngineConfigError, EngineDied, EngineError, RowRejected, SpecError
from seedx_batch.records import Request, RequestId, RowKey
from tests.engine.tiny_engine import EXTRA_EOS, make_model
from tests.tiny_models import tiny_seed_x

if TYPE_CHECKING:
    from seedx_batch.engine.vllm import VllmEngine

pytestmark = pytest.mark.engine

ROOT = Path(__file__).parents[2]
GREEDY = {"temperature": 0.0, "max_tokens": 8, "ignore_eos": True}


@pytest.fixture
def engine(vllm_engine: "VllmEngine") -> Iterator["VllmEngine"]:
    """The session's engine, idle."""
    yield vllm_engine
    while vllm_engine.num_unfinished:
        vllm_engine.step()


def generate(engine: "VllmEngine", prompt: str, params: dict[str, Any]) -> Any:
    """The first candidate."""
    engine.add(Request(RequestId(RowKey(0, 0), 0), engine.encode(prompt), params))
    outputs = []
    while engine.num_unfinished:
        outputs += engine.step()
    return outputs[0].candidates[0]


def test_unknown_parameter_is_named(engine: "VllmEngine") -> None:
    """Every sampling parameter that this vLLM lacks is a fault of its own."""
    with pytest.raises(SpecError) as caught:
        engine.check_params({"temprature": 1.0, "beams": 4, "max_tokens": 3})
    assert [fault.where for fault in caught.value.faults] == ["decoding.temprature", "decoding.beams"]


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"structured_outputs": {"regex": "((["}}, "regex"),
        ({"structured_outputs": {"json": {"type": "no such type"}}}, "refuses"),
        ({"stop_token_ids": ["a"]}, "stop_token_ids"),
        ({"logprobs": 100}, "100"),
    ],
)
def test_impossible_value_is_refused_in_vllms_words(engine: "VllmEngine", params: dict[str, Any], words: str) -> None:
    """Values are checked by vLLM itself, with the model it has, before any row is read."""
    with pytest.raises(SpecError, match=words):
        engine.check_params(params)
    assert engine.num_unfinished == 0


def test_lacking_repetition_detection_is_said_at_the_start(
    engine: "VllmEngine", monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where this vLLM has it the check passes; where it does not, the job is told before it starts."""
    from vllm import sampling_params

    params = {**GREEDY, "repetition_detection": {"max_pattern_size": 4, "min_count": 3}}
    engine.check_params(params)
    monkeypatch.delattr(sampling_params, "RepetitionDetectionParams")
    with pytest.raises(EngineConfigError, match="repetition_detection"):
        engine.check_params(params)


def test_repetition_ends_a_text(engine: "VllmEngine") -> None:
    """A text that can only repeat itself is ended for that reason."""
    params = {
        **GREEDY,
        "max_tokens": 60,
        "structured_outputs": {"regex": "(ab){30}"},
        "repetition_detection": {"max_pattern_size": 4, "min_count": 3},
    }
    candidate = generate(engine, "hello", params)
    assert candidate.finish_reason == "repetition"
    assert candidate.num_output_tokens < 60


def test_structured_outputs_bind(engine: "VllmEngine") -> None:
    """A text is one of the choices it was given."""
    params = {"temperature": 0.0, "max_tokens": 30, "structured_outputs": {"choice": ["yes", "no"]}}
    assert generate(engine, "hello", params).text.strip() in ("yes", "no")


def test_further_eos_of_the_generation_config_ends_a_text(engine: "VllmEngine") -> None:
    """generation_config="vllm" leaves out the file's sampling, but its list of eos tokens still holds."""
    sampled = {"temperature": 1.0, "max_tokens": 40, "seed": 1}
    whole = generate(engine, "hello", {**sampled, "ignore_eos": True})
    assert EXTRA_EOS in whole.text
    ended = generate(engine, "hello", sampled)
    assert ended.finish_reason == "stop"
    assert ended.text == whole.text[: whole.text.find(EXTRA_EOS)]


def test_bad_request_is_one_rows_fault(engine: "VllmEngine") -> None:
    """What vLLM refuses of one request is that row's rejection, and the engine goes on."""
    with pytest.raises(RowRejected) as caught:
        engine.add(Request(RequestId(RowKey(0, 1), 0), [1, 5], {**GREEDY, "max_tokens": 0}))
    assert caught.value.kind == "refused"
    with pytest.raises(RowRejected):
        engine.add(Request(RequestId(RowKey(0, 1), 0), [1, 10**7], GREEDY))
    assert engine.num_unfinished == 0
    assert generate(engine, "hello", GREEDY).num_output_tokens == 8


def test_shared_params_are_prepared_once(engine: "VllmEngine") -> None:
    """One params object of many rows gives one SamplingParams; a changed copy another."""
    assert engine._params(GREEDY) is engine._params(GREEDY)
    assert engine._params({**GREEDY, "max_tokens": 3}).max_tokens == 3
    assert engine._params(GREEDY).max_tokens == 8


def test_prompt_begins_with_bos_once(engine: "VllmEngine") -> None:
    """The engine's tokenizer adds BOS to a text; without it, or with two, the first prompt is a fault."""
    ids = engine.encode("hello")
    engine.check_prompt("hello", ids)
    for wrong in (ids[1:], [1, *ids]):
        with pytest.raises(SpecError, match="<s>"):
            engine.check_prompt("hello", wrong)


def test_messages_without_chat_template_are_a_fault(engine: "VllmEngine") -> None:
    """A chat job on a model that has no template says so, with the remedy."""
    with pytest.raises(SpecError, match=r"no chat template, give prompt\.chat_template"):
        engine.encode([{"role": "user", "content": "hello"}])


def test_a_broken_step_is_the_engines_death(engine: "VllmEngine", monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever comes out of vLLM's step in this process is EngineDied, and so is every call after it."""

    def broken() -> None:
        raise RuntimeError("out of memory\nin a kernel")

    engine.add(Request(RequestId(RowKey(0, 0), 0), engine.encode("hello"), GREEDY))
    with monkeypatch.context() as patch:
        patch.setattr(engine._engine, "step", broken)
        with pytest.raises(EngineDied, match="out of memory in a kernel"):
            engine.step()
    try:
        with pytest.raises(EngineDied):
            engine.step()
        with pytest.raises(EngineDied):
            engine.add(Request(RequestId(RowKey(0, 1), 0), engine.encode("hello"), GREEDY))
    finally:
        engine._died = None  # the session's engine is well


def test_unknown_vllm_is_refused_by_name(engine: "VllmEngine", monkeypatch: pytest.MonkeyPatch) -> None:
    """A vLLM that lacks what is used of it is refused with what is lacking, before anything is loaded."""
    from vllm.v1.engine.llm_engine import LLMEngine

    from seedx_batch.engine.vllm import VllmEngine

    monkeypatch.setattr(LLMEngine, "add_request", lambda self, request_id, prompt: None)
    monkeypatch.delattr(LLMEngine, "step")
    with pytest.raises(EngineConfigError, match=r"lacks LLMEngine\.add_request\(params=\), LLMEngine\.step"):
        VllmEngine({"model": "nowhere"})


def test_model_that_cannot_be_loaded(vllm_engine: "VllmEngine", tmp_path: Path) -> None:
    """No folder, an empty one, an unknown architecture, no weights or half of them: an error with its reason."""
    from seedx_batch.engine.vllm import VllmEngine

    empty = tmp_path / "empty"
    empty.mkdir()
    strange = tiny_seed_x(tmp_path / "strange")
    config = json.loads((strange / "config.json").read_text())
    (strange / "config.json").write_text(json.dumps({**config, "architectures": ["NoSuchForCausalLM"]}))
    torn = tiny_seed_x(tmp_path / "torn")
    os.truncate(torn / "model.safetensors", 1000)
    bare = tiny_seed_x(tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    args = {"dtype": "float32", "max_model_len": 64, "enforce_eager": True, "kv_cache_memory_bytes": 1 << 22}
    for folder, words in (
        (tmp_path / "nowhere", "nowhere"),
        (empty, "empty"),
        (strange, "NoSuchForCausalLM"),
        (torn, "(?i)header|incomplete|safetensor"),
        (bare, "(?i)cannot find any model weights"),
    ):
        with pytest.raises(EngineError, match=words) as caught:
            VllmEngine({**args, "model": str(folder)})
        assert len(str(caught.value)) < 500
        assert "\n" not in str(caught.value)


def test_unknown_or_impossible_argument_is_a_config_error(vllm_engine: "VllmEngine", tmp_path: Path) -> None:
    """Arguments that vLLM refuses are EngineConfigError, in its words."""
    from seedx_batch.engine.vllm import VllmEngine

    model = str(tiny_seed_x(tmp_path / "model"))
    for args, words in (
        ({"no_such": 1}, "no_such"),
        ({"max_model_len": 10**6}, "max_model_len"),
        ({"dtype": "int3"}, "int3|half"),
    ):
        with pytest.raises(EngineConfigError, match=words):
            VllmEngine({"model": model, **args})


def own_processes(scenario: str, tmp_path: Path) -> dict[str, Any]:
    """What a program with an engine in processes of its own reports, in a session of its own."""
    from tests.engine.conftest import CACHE

    model = make_model(tmp_path / "model")
    command = [sys.executable, "-m", "tests.engine.separate_processes", scenario, str(model), str(CACHE)]
    environ = {name: value for name, value in os.environ.items() if name != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    done = subprocess.run(
        command, cwd=ROOT, env=environ, start_new_session=True, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def test_signals_to_the_group_leave_the_engine_at_work(tmp_path: Path) -> None:
    """Ctrl-C or a scheduler's signal reaches every process; ours hears it, the rows in flight are answered, all end."""
    report = own_processes("signals", tmp_path)
    assert report["heard"] == [1, 2, 12, 15]
    assert report["answered"] == ["length"] * 6
    assert report["num_processes"] >= 1
    assert report["left"] == []
    assert report["close_s"] < 10


def test_steps_are_told_by_the_engines_own_clock(tmp_path: Path) -> None:
    """An engine of its own steps on while this process sleeps: its steps follow one another, and begin with work."""
    steps = own_processes("steps", tmp_path)["steps"]
    ends = [number for number, (began, _) in enumerate(steps) if number and began < steps[number - 1][0]]
    first, second = steps[: ends[0]], steps[ends[0] + 1 : ends[1]]
    for one, (added_at, answered_at) in ((first, steps[ends[0]]), (second, steps[ends[1]])):
        assert added_at <= one[0][0] <= one[0][1]
        assert all(began == ended for (_, ended), (began, _) in itertools.pairwise(one))
        assert one[-1][1] <= answered_at
    assert first[-1][1] < second[0][0]


def test_killed_engine_process_is_no_hang(tmp_path: Path) -> None:
    """An engine process that the kernel kills is EngineDied in the step that waits for it, and in every call after."""
    report = own_processes("killed", tmp_path)
    assert report["errors"] == ["vLLM's engine died; its log says why"] * 3
    assert report["left"] == []


def test_loading_can_be_stopped(tmp_path: Path) -> None:
    """A stop signal while the engine loads ends the loading, and leaves no process behind."""
    assert own_processes("stopped", tmp_path) == {"raised": "while loading", "left": []}


def test_nothing_but_vllm_py_needs_vllm(tmp_path: Path) -> None:
    """Without vLLM the module says so in one sentence."""
    package = tmp_path / "vllm"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('libhccl.so: cannot open shared object file')")
    code = (
        "from seedx_batch.errors import EngineConfigError\n"
        "try: import seedx_batch.engine.vllm\n"
        "except EngineConfigError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "vLLM cannot be imported here: libhccl.so: cannot open shared object file"
