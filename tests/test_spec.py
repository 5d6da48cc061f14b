"""The job spec: what it accepts, and how it refuses."""

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from seedx_batch import spec
from seedx_batch.errors import SpecError
from seedx_batch.spec import BeamDecoding, MaxTokens, SampleDecoding

MINIMAL = """
name: t
input: {path: rows.jsonl}
prompt: {preset: seed-x, target_lang: zh}
model: {name: some/model}
"""

JOBS = sorted((Path(__file__).parent.parent / "jobs").glob("*.yaml"))


def faults(text: str, *overrides: str) -> list[str]:
    """The lines of the refusal."""
    with pytest.raises(SpecError) as refusal:
        spec.parse(text, "job.yaml", overrides)
    return str(refusal.value).splitlines()


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_the_jobs_in_the_tree_are_valid(path: Path) -> None:
    """Every job that ships can be read, is named after its file and runs in a folder of that name."""
    job = spec.load(path)
    assert (job.name, job.directory) == (path.stem, Path("runs") / path.stem)


def test_defaults() -> None:
    """A minimal job is greedy, 512 tokens, 5000 rows a shard, in runs/NAME."""
    job = spec.parse(MINIMAL, "job.yaml")
    assert job.directory == Path("runs/t")
    assert isinstance(job.decoding, SampleDecoding)
    assert job.decoding.greedy
    assert job.decoding.merges
    assert job.decoding.max_tokens == MaxTokens(max=512)
    assert job.output.rows_per_shard == 5000


def test_every_fault_at_once() -> None:
    """Several faults are all told, each with its place and a suggestion where there is one."""
    text = """
name: t
input: {path: 5, idd: id}
prompt: {target_lang: zh}
model: {name: x, max_model_len: 1}
decoding: {temperatur: 0, max_tokens: {max: 0}}
engine: {max_num_seq: 16, dtype: float}
outptu: {}
"""
    told = faults(text)
    for wanted in (
        "job.yaml: engine.max_num_seq: no such key, did you mean 'max_num_seqs'?",
        "job.yaml: engine.dtype: decides the results, write it as model.dtype",
        "job.yaml: input.idd: no such key, did you mean 'id'?",
        "job.yaml: prompt.preset: is missing",
        "job.yaml: decoding.temperatur: no such key, did you mean 'temperature'?",
        "job.yaml: outptu: no such key, did you mean 'output'?",
    ):
        assert wanted in told
    for place in ("input.path", "model.max_model_len", "decoding.max_tokens.max"):
        assert len([line for line in told if line.startswith(f"job.yaml: {place}: ")]) == 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("decoding.n=2", "n > 1 with temperature 0"),
        ("decoding.min_tokens=600", "min_tokens is more than max_tokens allows"),
        ("decoding.method=bream", "no such method"),
        ("decoding.max_tokens={max: 5, ratio: 2, column: c}", "`column` and `ratio` are two rules"),
        ("decoding.structured_outputs={regex: a, choice: [b]}", "exactly one of"),
        ("name=a b", "name"),
        ("executor.kind=slurm", "executor.kind"),
        ("engine.platform=tpu", "engine.platform"),
        ("input=5", "job.yaml: input: "),
        ("decoding.temperature=-1", "greater than or equal to 0"),
        ("decoding={method: beam, beam_width: 2, num_return: 3}", "num_return is more than beam_width"),
        ("decoding={method: beam, early_stopping: maybe}", "decoding.early_stopping"),
        ("decoding={method: beam, temperature: 1}", "decoding.temperature: no such key"),
    ],
)
def test_values_that_mean_nothing(change: str, told: str) -> None:
    """What cannot be meant is refused in words."""
    assert any(told in line for line in faults(MINIMAL, change))


@pytest.mark.parametrize("text", ["", "[1, 2]", "a: [", "name: a\nname: b", "plain"])
def test_no_job_at_all(text: str) -> None:
    """A text that is no mapping, no YAML, or names a key twice is refused and names the file."""
    assert faults(text)[0].startswith("job.yaml: ")


def test_missing_file(tmp_path: Path) -> None:
    """A job file that is not there is a fault, not a traceback."""
    with pytest.raises(SpecError, match="cannot be read"):
        spec.load(tmp_path / "none.yaml")


def test_norwegian_is_no_boolean() -> None:
    """`no` in a job is the language, as in YAML 1.2."""
    job = spec.parse(MINIMAL.replace("zh", "no"), "job.yaml")
    assert job.prompt.target_lang == "no"


def test_overrides_win() -> None:
    """--set values are YAML, create sections, and win over the file."""
    job = spec.parse(MINIMAL, "job.yaml", ["engine.max_num_seqs=64", "decoding.stop=[a, b]", "model.name=other"])
    assert (job.engine.arguments, job.decoding.stop, job.model.name) == ({"max_num_seqs": 64}, ["a", "b"], "other")


@pytest.mark.parametrize("override", ["engine", "=5", "name.deep=1", "a b=1"])
def test_overrides_that_are_none(override: str) -> None:
    """An override that cannot be applied says so itself."""
    assert faults(MINIMAL, override)[0].startswith(("--set", "job.yaml"))


def test_beam_has_its_own_keys() -> None:
    """Beam search has the words and the defaults of transformers, but for the width and the budget."""
    job = spec.parse(
        MINIMAL, "job.yaml", ["decoding={method: beam, beam_width: 4, early_stopping: never, max_tokens: 9}"]
    )
    assert isinstance(job.decoding, BeamDecoding)
    assert (job.decoding.early_stopping, job.decoding.max_tokens.max) == ("never", 9)
    plain = spec.parse(MINIMAL, "job.yaml", ["decoding={method: beam}"]).decoding
    assert isinstance(plain, BeamDecoding)
    assert (plain.beam_width, plain.max_tokens.max, plain.length_penalty, plain.early_stopping) == (4, 512, 1.0, False)
    assert (plain.num_return, plain.length_normalizer, plain.merges) == (1, "output", True)


def test_null_is_vllms_own_default() -> None:
    """An engine argument that is null is passed on, so that it wins over a platform's default."""
    job = spec.parse(MINIMAL, "job.yaml", ["engine={block_size: null, max_num_seqs: 4}"])
    assert job.engine.arguments == {"block_size": None, "max_num_seqs": 4}
    assert spec.parse(job.to_yaml(), "again") == job


def test_only_result_sections_are_results() -> None:
    """Engine, executor, name and run_dir are not among what decides results."""
    one = spec.parse(MINIMAL, "job.yaml")
    other = spec.parse(MINIMAL, "job.yaml", ["engine.max_num_seqs=5", "executor.grace_s=9", "name=u", "run_dir=x"])
    assert one.results() == other.results()
    assert one.results() != spec.parse(MINIMAL, "job.yaml", ["decoding.max_tokens=5"]).results()


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "temperature": st.floats(0.1, 2),
            "top_p": st.floats(0.01, 1),
            "n": st.integers(1, 8),
            "max_tokens": st.integers(1, 9999)
            | st.fixed_dictionaries({"max": st.integers(1, 99), "ratio": st.floats(0.1, 9)}),
            "stop": st.lists(st.text(max_size=8), max_size=3),
            "seed": st.integers(0, 2**40),
            "structured_outputs": st.fixed_dictionaries({"json": st.just({"type": "object"})}),
        },
    )
)
@example({"stop": ["\x85", "a\u2028b", "\u2029"]})
def test_a_job_survives_its_own_yaml(decoding: dict[str, object]) -> None:
    """What a worker reads back from RUN/job.yaml is the job that was asked for."""
    tree = {"name": "t", "input": {"path": "a"}, "prompt": {"preset": "p"}, "model": {"name": "m"}}
    job = spec.JobSpec.model_validate(
        tree | {"decoding": {"temperature": 1.0} | decoding, "engine": {"block_size": 32}}
    )
    assert spec.parse(job.to_yaml(), "again") == job


def test_schema_completes_engine_keys() -> None:
    """The JSON Schema knows vLLM's engine arguments and allows no others."""
    engine = spec.schema()["$defs"]["EngineSpec"]
    assert {"max_num_seqs", "block_size", "platform"} <= engine["properties"].keys()
    assert engine["additionalProperties"] is False
    assert "dtype" not in engine["properties"]
