"""The README's commands and the quickstart on real vLLM with a real model, from a copy of the tree."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Collection
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from seedx_batch import ledger, models, packaged, status
from seedx_batch.prompts import Prompts
from seedx_batch.records import Row, RowKey
from seedx_batch.spec import load
from tests.jobs import REPOSITORY, parts_of

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]
LEDGER = ".state/ledger/rank-00000.jsonl"
READMES = ("README.md", "README.zh-CN.md")


def blocks(name: str) -> list[str]:
    """The shell blocks of a README."""
    return re.findall(r"^```bash\n(.*?)^```", (REPOSITORY / name).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the files under version control, with this machine's environment and prepared models."""
    folder = tmp_path_factory.mktemp("clone")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=True).stdout
    for name in tracked.decode().split("\0"):
        if name and (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((REPOSITORY / name).read_bytes())
            (folder / name).chmod((REPOSITORY / name).stat().st_mode)
    (folder / ".venv").symlink_to(REPOSITORY / ".venv")
    (folder / ".cache").symlink_to(models.cache_folder())
    return folder


def shell(block: str, clone: Path) -> str:
    """Runs a shell block in the copy; what it printed."""
    ended = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block], cwd=clone, capture_output=True, text=True, timeout=900, check=False
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stdout + ended.stderr


@pytest.fixture(scope="module")
def quickstart(clone: Path) -> Path:
    """The run directory after every shell block of both READMEs was executed, in order."""
    told = [shell(block, clone) for name in READMES for block in blocks(name)]
    assert "load it: datasets.load_dataset" in told[0]
    assert "translation" in told[1]
    assert "nothing left to do" in told[len(blocks(READMES[0]))]
    return clone / "runs/quickstart"


def test_both_readmes_have_the_same_commands() -> None:
    """The Chinese README shows the commands of the English one."""
    assert blocks(READMES[0]) == blocks(READMES[1])
    assert len(blocks(READMES[0])) >= 3


def test_rows_out_are_rows_in(quickstart: Path) -> None:
    """Every row of the input is there once, in order, with a translation in Latin letters that is no copy."""
    rows = [json.loads(line) for line in (REPOSITORY / "data/zh_en.jsonl").read_text(encoding="utf-8").splitlines()]
    table = parts_of(quickstart)
    for column in ("id", "source", "reference"):
        assert table[column].to_pylist() == [row[column] for row in rows]
    translated = [row for row in table.to_pylist() if row["status"] in ("ok", "truncated")]
    assert len(translated) == len(rows)
    latin = [
        row for row in translated if len(re.findall(r"[A-Za-z]", row["translation"])) > len(row["translation"]) / 2
    ]
    assert len(latin) > 0.9 * len(rows)


def test_statistics_equal_a_recount(quickstart: Path) -> None:
    """stats.parquet equals the rows, and the rows' prompt tokens equal a recount with the model's tokenizer."""
    from tokenizers import Tokenizer

    spec = load(REPOSITORY / "jobs/quickstart.yaml")
    tokenizer = Tokenizer.from_file(str(packaged.folder(spec.model.name, models.cache_folder()) / "tokenizer.json"))
    prompts = Prompts.build(spec.prompt)
    rows = parts_of(quickstart).to_pylist()
    for row in rows:
        prompt = prompts.render(Row(RowKey(0, 0), row["id"], row))
        assert row["num_prompt_tokens"] == len(tokenizer.encode(prompt).ids)
        # The text leaves out the stop string's tokens and what decoding strips.
        text = len(tokenizer.encode(row["translation"], add_special_tokens=False).ids)
        assert row["status"] == "truncated" or abs(row["num_output_tokens"] - text) <= 4
    stats = pq.read_table(quickstart / "stats.parquet").to_pylist()
    for kind in ("prompt", "cached", "output"):
        counts = [row[f"num_{kind}_tokens"] for row in rows]
        assert sum(shard[f"{kind}_tokens_sum"] for shard in stats) == sum(counts)
        assert max(shard[f"{kind}_tokens_max"] for shard in stats) == max(counts)
        assert min(shard[f"{kind}_tokens_min"] for shard in stats) == min(counts)
    assert sum(shard["num_rows"] for shard in stats) == len(rows)


def test_killed_three_times(quickstart: Path, clone: Path) -> None:
    """kill -9 of the group at three moments of a real run: no row twice, none lost, none generated again.

    Texts equal those of the undisturbed run but for near-ties, which depend on the batch a row is in; they are counted.
    """
    command = ["./run_job.sh", "jobs/quickstart.yaml", "--limit", "96"]
    command += ["--set", "executor.checkpoint_s=0.2", "--set", "engine.max_num_seqs=8"]
    run = clone / "runs/quickstart-limit-96"
    for least in (None, 1, 9):  # rows of that launch; None: while the engine loads
        earlier = {line["launch"] for line in ledger.read(run / LEDGER)}
        process = subprocess.Popen(command, cwd=clone, stderr=subprocess.DEVNULL, start_new_session=True)
        wait_for(process, run, earlier, least)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    saved = status.read(run).num_done
    ended = subprocess.run(command, cwd=clone, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    rows = parts_of(run).to_pylist()
    assert [row["id"] for row in rows] == parts_of(quickstart)["id"].to_pylist()[:96]
    generated = sum(row["num_output_tokens"] for row in rows if not row["deduplicated"])
    told = ledger.totals(run / ".state/ledger")["num_output_tokens"]
    last = ledger.read(run / LEDGER)[-2]
    assert 0 < saved < 96
    assert last["num_rows"] == 96 - saved  # what was saved was not generated again
    assert told <= generated
    print(f"the engine's ledger tells of {told} tokens, the rows hold {generated}")
    undisturbed = parts_of(quickstart)["translation"].to_pylist()[:96]
    differing = sum(row["translation"] != text for row, text in zip(rows, undisturbed, strict=True))
    print(f"{differing} of 96 rows differ from the undisturbed run")
    assert differing <= 10


def wait_for(process: subprocess.Popen[bytes], run: Path, earlier: Collection[str], least: int | None) -> None:
    """Waits until this launch's worker has its engine and so many rows; with None, until it has begun to load."""
    events = ("started",) if least is None else ("checkpoint",)
    while process.poll() is None:
        last = ledger.read_last(run / LEDGER) or {"launch": "", "event": ""}
        is_new = last["launch"] not in earlier
        if is_new and last["event"] in events and last.get("num_rows", 0) >= (least or 0):
            return
        time.sleep(0.05)
