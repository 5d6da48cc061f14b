"""Verdicts, and that comparing needs no model and no engine."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seedx_batch.errors import InputError
from seedx_batch.parity import comparison, table
from seedx_batch.parity.comparison import Thresholds
from seedx_batch.parity.recording import Record
from tests.jobs import ask, environment
from tests.parity.made import logits, recorded, write

BLOCKED = ("torch", "vllm", "transformers", "tokenizers", "datasets", "huggingface_hub", "jinja2", "pydantic", "ruamel")
WITHOUT = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ImportError(f"{{name}} is not here")

sys.meta_path.insert(0, Blocked())
from seedx_batch.cli import main
sys.argv = ["seedx-batch", *sys.argv[1:]]
main()
"""


def of_noise(folder: Path, name: str, noise: float, seed: int, **changes: Any) -> Record:
    """A record of an engine that is so far from `exact`, on its tokens."""
    exact = logits(1)
    scores = exact + noise * logits(seed)
    given = recorded(scores, free=exact + 0.01 * noise * logits(seed), scored=exact.argmax(axis=1).tolist())
    return write(folder / f"{name}.parquet", [given], **changes)


@pytest.fixture
def exact(tmp_path: Path) -> Record:
    """The reference."""
    return write(tmp_path / "exact.parquet", [recorded(logits(1))], name="transformers float32", dtype="float32")


def judged(exact: Record, engine: Record, noise: Record | None) -> dict[str, Any]:
    told = comparison.report(exact, engine, noise, None, Thresholds())
    verdict: dict[str, Any] = told["verdict"]
    return verdict


def test_thresholds_decide_without_a_floor(exact: Record, tmp_path: Path) -> None:
    """Half a percent of error passes, two percent do not."""
    assert judged(exact, of_noise(tmp_path, "good", 0.005, 2), None)["passed"]
    verdict = judged(exact, of_noise(tmp_path, "bad", 0.02, 2), None)
    assert not verdict["passed"]
    assert [one["holds"] for one in verdict["criteria"]] == [False, True, True]


def test_a_floor_beyond_a_threshold_takes_its_place(exact: Record, tmp_path: Path) -> None:
    """Where transformers itself misses a threshold in that dtype, 1.5 times its error is the limit, as is told."""
    noise = of_noise(tmp_path, "noise", 0.02, 3)
    engine = of_noise(tmp_path, "engine", 0.025, 2)
    verdict = judged(exact, engine, noise)
    assert verdict["passed"]
    assert not verdict["passed_absolutely"]
    assert not judged(exact, of_noise(tmp_path, "bad", 0.035, 2), noise)["passed"]
    text = table.as_text(comparison.report(exact, engine, noise, None, Thresholds()))
    assert "The noise floor itself is beyond the threshold of: mean relative error" in text
    assert "**passed**" in text


def test_a_floor_of_another_dtype_excuses_nothing(exact: Record, tmp_path: Path) -> None:
    """A float32 engine is not measured by bfloat16's noise."""
    noise = of_noise(tmp_path, "noise", 0.02, 3)
    assert not judged(exact, of_noise(tmp_path, "engine", 0.02, 2, dtype="float32"), noise)["passed"]


def test_a_floor_within_the_threshold_tightens_nothing(exact: Record, tmp_path: Path) -> None:
    """The card's threshold stays where the noise is below it."""
    noise = of_noise(tmp_path, "noise", 0.001, 3)
    assert judged(exact, of_noise(tmp_path, "engine", 0.008, 2), noise)["passed"]


def test_what_is_not_a_number_fails(exact: Record, tmp_path: Path) -> None:
    """An engine that overflows does not pass, and the report is still JSON."""
    broken = logits(1)
    broken[3, 5] = np.nan
    tokens = logits(1).argmax(axis=1).tolist()
    engine = write(tmp_path / "nan.parquet", [recorded(broken, free=logits(1), scored=tokens)])
    told = comparison.report(exact, engine, None, None, Thresholds())
    assert not told["verdict"]["passed"]
    assert json.loads(table.as_json(told))["comparisons"][0]["totals"]["kl"] is None
    assert "FAILED" in table.as_text(told)


def test_near_ties_are_counted_apart(exact: Record, tmp_path: Path) -> None:
    """A text that leaves the reference's at a near-tie lowers the match rate that is shown, not what decides."""
    one = logits(1)
    one[4, :2] = one[4].max() + np.array([1.0, 0.9])
    other = one.copy()
    other[4, 1] += 0.15
    other[5:] = logits(3)[5:]
    tokens = one.argmax(axis=1).tolist()
    reference = write(tmp_path / "reference.parquet", [recorded(one)], dtype="float32")
    engine = write(tmp_path / "engine.parquet", [recorded(one, free=other, scored=tokens)])
    told = comparison.report(reference, engine, None, None, Thresholds())
    totals = told["comparisons"][0]["totals"]
    assert totals["token_match"] < 0.98
    assert (totals["num_divergences"], totals["num_near_ties"], totals["token_match_apart"]) == (1, 1, 1.0)
    assert told["verdict"]["passed"]
    assert not comparison.report(reference, engine, None, None, Thresholds(near_tie=0.05))["verdict"]["passed"]


@pytest.mark.parametrize(
    ("changes", "told"), [({"mark": "76543210"}, "of other prompts"), ({"vocab_size": 51}, "of other models")]
)
def test_what_cannot_be_compared_is_told(exact: Record, tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    """Records of other prompts or other models are refused."""
    with pytest.raises(InputError, match=told):
        judged(exact, of_noise(tmp_path, "engine", 0.001, 2, **changes), None)


def test_compares_where_nothing_heavy_is_installed(exact: Record, tmp_path: Path) -> None:
    """`parity compare` needs neither torch, vLLM nor transformers, nor anything but numpy, pyarrow and click."""
    good, bad = of_noise(tmp_path, "good", 0.001, 2), of_noise(tmp_path, "bad", 0.1, 2)
    for engine, code in ((good, 0), (bad, comparison.NOT_EQUAL)):
        compared = subprocess.run(
            [sys.executable, "-c", WITHOUT.format(blocked=BLOCKED), "parity", "compare", exact.path, engine.path],
            capture_output=True,
            text=True,
            env=environment({}),
            check=False,
        )
        assert compared.returncode == code, compared.stderr
        assert "mean relative error" in compared.stdout


def test_the_command_line(exact: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Options reach the verdict, and the report goes to files of both kinds."""
    engine = of_noise(tmp_path, "engine", 0.02, 2)
    given = ["parity", "compare", exact.path, engine.path]
    assert ask(capsys, *given)[0] == 65
    outputs = ["-o", tmp_path / "p.json", "-o", tmp_path / "p.md"]
    code, printed, _ = ask(capsys, *given, "--max-relative-error", "0.05", "--json", *outputs)
    assert code == 0
    assert json.loads(printed) == json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))
    assert (tmp_path / "p.md").read_text(encoding="utf-8").startswith("# Parity: vllm bfloat16 against")
    assert ask(capsys, "parity", "compare", exact.path, tmp_path / "none")[0] == 66
    assert ask(capsys, *given, "-o", tmp_path / "none/p.json")[0] == 74
    code, _, message = ask(capsys, "parity", tmp_path / "no-model")
    assert (code, "no-model" in message) == (78, True)
