"""The command line: what it imports, how it speaks, how it ends."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.jobs import REPOSITORY, ask, environment, seedx_batch, write_job, write_rows

Capture = pytest.CaptureFixture[str]
HEAVY = ("torch", "transformers", "vllm", "datasets", "ray")
IMPORTS = """
import sys
from seedx_batch.cli import main
sys.argv = ["seedx-batch", *sys.argv[1:]]
try:
    main()
except SystemExit:
    pass
print("LOADED", *[name for name in {heavy!r} if name in sys.modules], file=sys.stderr)
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["plan", "jobs/zh_en.yaml"],
        ["schema"],
        ["run", "--help"],
        ["doctor", "jobs/zh_en.yaml"],
        ["parity", "compare", "--help"],
    ],
    ids=" ".join,
)
def test_light_commands_import_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    """Help, schema and plan answer without torch, transformers, vLLM or datasets; that is what makes them quick."""
    asked = subprocess.run(
        [sys.executable, "-c", IMPORTS.format(heavy=HEAVY), *arguments],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=environment({"HF_HUB_OFFLINE": "1", "SEEDX_BATCH_CACHE": str(tmp_path)}),
        check=True,
    )
    assert asked.stdout
    assert asked.stderr.splitlines()[-1] == "LOADED"


def test_help_names_every_exit_code(capsys: Capture) -> None:
    """--help tells the exit codes that the error tree has."""
    told = " ".join(ask(capsys, "--help")[1].split())
    for code in ("0", "64", "65", "66", "69", "74", "75", "78"):
        assert f"{code} " in told


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["walk"], 64, "No such command"),
        (["run"], 64, "Missing argument"),
        (["run", "none.yaml"], 78, "none.yaml: cannot be read"),
        (["run", "x.yaml", "--limit", "0"], 64, "--limit"),
        (["status", "nowhere"], 78, "holds no run"),
        (["prepare", "package:none"], 78, "package:none"),
    ],
)
def test_refusals(
    arguments: list[str], code: int, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """What cannot be done ends with the right code and a line that names it, and never with a traceback."""
    monkeypatch.chdir(tmp_path)
    ended, _, message = ask(capsys, *arguments)
    assert ended == code
    assert told in message


def test_schema_is_json(capsys: Capture) -> None:
    """`schema` prints a JSON Schema of the job."""
    assert json.loads(ask(capsys, "schema")[1])["required"] == ["name", "input", "prompt", "model"]


def test_plan_shows_the_job_and_writes_nothing(tmp_path: Path, capsys: Capture) -> None:
    """`plan` tells files, rows, shards, lengths, faults of a sample, and leaves no trace."""
    rows = write_rows(tmp_path / "rows.jsonl", ["你好", "", "再见"] * 9)
    job = write_job(tmp_path, rows)
    told = ask(capsys, "plan", job)[1]
    for wanted in (
        "27 rows in 3 shards",
        "rows.jsonl: 27 rows",
        "9 sampled rows: empty_text",
        "first prompt:",
        "你好 <en>",
    ):
        assert wanted in told
    assert not (tmp_path / "run").exists()
    shown = json.loads(ask(capsys, "plan", job, "--json")[1])
    assert (shown["num_rows"], shown["num_shards"], shown["sample"]["errors"]) == (27, 3, {"empty_text": 9})
    assert shown["estimate"] is None


@pytest.mark.process
def test_plan_estimates_from_a_trial(tmp_path: Path, capsys: Capture) -> None:
    """After a trial with --limit, plan tells hours from its measured rate, and how much is done."""
    job = write_job(tmp_path, write_rows(tmp_path / "rows.jsonl", [f"{number} words" for number in range(5000)]))
    assert seedx_batch("run", job, "--limit", "3000").returncode == 0
    shown = json.loads(ask(capsys, "plan", job, "--json")[1])
    assert shown["estimate"]["rows_per_s"] > 0
    assert shown["estimate"]["from"].endswith("run-limit-3000")
    assert shown["num_rows_left"] == 5000


def test_plan_faults_are_the_runs(tmp_path: Path, capsys: Capture) -> None:
    """A job that run would refuse is refused by plan too, with every fault of prompt and model at once."""
    job = write_job(
        tmp_path, write_rows(tmp_path / "r.jsonl", ["a"]), prompt={"target_lang": "xx"}, model={"name": "./no"}
    )
    ended, _, message = ask(capsys, "plan", job)
    assert ended == 78
    assert "target_lang" in message
    assert "model.name: there is no folder './no'" in message
