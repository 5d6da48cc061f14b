"""Whole runs of the command line with the simulated engine: what a job leaves, resume, refusal, signals, locks."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from seedx_batch import ledger, parts
from tests.jobs import LEDGER, ask, has_ended, parts_of, seedx_batch, start, wait_for_rows, write_job, write_rows

pytestmark = pytest.mark.process
TEXTS = [f"第{number}句话，" * (number % 5 + 1) for number in range(57)]


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job of 57 rows in six shards."""
    return write_job(tmp_path, write_rows(tmp_path / "rows.jsonl", TEXTS))


def test_a_run_from_an_empty_folder(job: Path) -> None:
    """A job ends with every row once, in input order, carried columns and all, in whole parts with footers."""
    done = seedx_batch("run", job)
    assert done.returncode == 0, done.stderr
    run = job.parent / "run"
    table = parts_of(run)
    assert table["id"].to_pylist() == [f"r{number}" for number in range(57)]
    assert table["source"].to_pylist() == TEXTS
    assert table["number"].to_pylist() == list(range(57))
    assert set(table["status"].to_pylist()) <= {"ok", "truncated"}
    assert all(table["translation"].to_pylist())
    paths = sorted((run / "data").iterdir())
    assert [path.name for path in paths] == [f"part-{index:05d}-of-00006.parquet" for index in range(6)]
    assert len({str(pq.read_schema(path).remove_metadata()) for path in paths}) == 1
    footers = [parts.read_footer(path) for path in paths]
    assert sum(footer.stats.num_rows for footer in footers) == 57
    assert len({footer.fingerprint for footer in footers}) == 1
    assert not list((run / ".state" / "journal").iterdir())
    assert not list((run / ".state" / "tmp").iterdir())
    assert 'datasets.load_dataset("' in done.stderr
    assert "第4句话" in (run / "report.html").read_text(encoding="utf-8")


def test_datasets_opens_the_run(job: Path) -> None:
    """load_dataset gives the rows and, by its name, the statistics of every shard; the card names the signature."""
    import datasets

    assert seedx_batch("run", job).returncode == 0
    run = job.parent / "run"
    cache = str(job.parent / "cache")
    rows = datasets.load_dataset(str(run), cache_dir=cache)["train"]
    assert rows.num_rows == 57
    assert rows["source"][:] == TEXTS
    stats = datasets.load_dataset(str(run), "stats", cache_dir=cache)["train"]
    assert stats.num_rows == 6
    assert sum(stats["num_rows"]) == 57
    assert sum(stats["output_tokens_sum"]) == sum(rows["num_output_tokens"])
    card = (run / "README.md").read_text(encoding="utf-8")
    assert parts.read_footer(next((run / "data").iterdir())).signature in card
    assert "- 'zh'" in card


def test_datasets_does_not_mix_runs_up(tmp_path: Path) -> None:
    """Two runs whose folders have the same name are two datasets, also where datasets has cached the first."""
    import datasets

    for name, size in (("a", 7), ("b", 9)):
        path = write_job(tmp_path / name, write_rows(tmp_path / name / "rows.jsonl", TEXTS[:size]))
        assert seedx_batch("run", path).returncode == 0
        loaded = datasets.load_dataset(str(tmp_path / name / "run"), cache_dir=str(tmp_path / "cache"))["train"]
        assert loaded["source"][:] == TEXTS[:size]
        stats = datasets.load_dataset(str(tmp_path / name / "run"), "stats", cache_dir=str(tmp_path / "cache"))["train"]
        assert sum(stats["num_rows"]) == size


def test_a_second_run_has_nothing_to_do(job: Path) -> None:
    """The same command again says so, starts no worker and touches no part."""
    assert seedx_batch("run", job).returncode == 0
    run = job.parent / "run"
    (run / "report.html").unlink()
    before = {path: path.stat().st_mtime_ns for path in (run / "data").iterdir()}
    launches = {line["launch"] for line in ledger.read(job.parent / LEDGER)}
    again = seedx_batch("run", job)
    assert again.returncode == 0
    assert "nothing left to do" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in (run / "data").iterdir()} == before
    assert {line["launch"] for line in ledger.read(job.parent / LEDGER)} == launches
    assert (run / "report.html").is_file()


def test_a_changed_result_is_refused_with_a_diff(job: Path) -> None:
    """Another max_tokens is refused line by line with exit 78; another max_num_seqs is not."""
    assert seedx_batch("run", job).returncode == 0
    refused = seedx_batch("run", job, "--set", "decoding.max_tokens=8", "--set", "prompt.explain=true")
    assert refused.returncode == 78
    assert "decoding.max_tokens.max: 16 -> 8" in refused.stderr
    assert "prompt.explain: false -> true" in refused.stderr
    assert seedx_batch("run", job, "--set", "engine.max_num_seqs=3").returncode == 0


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda path: write_rows(path, [*TEXTS, "more"]), "rows were appended"),
        (lambda path: write_rows(path, [*TEXTS[:-1], "x" * 9]), "rows were changed, the first among rows 50 to 56"),
        (lambda path: path.rename(path.with_name("other.jsonl")), "rows.jsonl: is gone"),
    ],
    ids=["appended", "changed", "renamed"],
)
def test_an_edited_input_is_refused(
    tmp_path: Path, edit: Callable[[Path], object], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows that are not the ones that were planned are refused with 78, and told which file changed, how and where."""
    job = write_job(tmp_path, write_rows(tmp_path / "rows.jsonl", TEXTS))
    assert seedx_batch("run", job).returncode == 0
    edit(tmp_path / "rows.jsonl")
    code, _, message = ask(capsys, "run", job)
    assert code == 78
    assert told in message
    assert "take the change back" in message


def test_an_input_that_changes_while_it_is_read(tmp_path: Path) -> None:
    """A worker that meets other rows than were counted ends with 66, what has finished is kept, and no row is mixed."""
    job = slow_job(tmp_path)
    rows = tmp_path / "rows.jsonl"
    before = rows.read_bytes()
    process = start(job)
    wait_for_rows(job, 300)
    rows.write_bytes(before.replace(b'"source": "24', b'"source": "42'))
    _, message = process.communicate(timeout=120)
    assert process.returncode == 66, message
    assert "put it back as it was and run the same command again" in message
    assert seedx_batch("run", job).returncode == 78
    rows.write_bytes(before)
    done = json.loads(seedx_batch("status", tmp_path / "run", "--json").stdout)["num_done"]
    assert done >= 300
    assert seedx_batch("run", job).returncode == 0
    assert ledger.read(job.parent / LEDGER)[-2]["num_rows"] == 25_000 - done
    assert parts_of(tmp_path / "run")["source"].to_pylist() == [f"{number} {number * 7919}" for number in range(25_000)]


def test_fresh_wants_an_empty_folder(job: Path) -> None:
    """--fresh runs in a new folder and refuses one that holds anything, which it leaves as it is."""
    assert seedx_batch("run", job, "--fresh").returncode == 0
    before = parts_of(job.parent / "run")
    refused = seedx_batch("run", job, "--fresh")
    assert refused.returncode == 78
    assert "is not empty" in refused.stderr
    assert parts_of(job.parent / "run") == before


def test_a_limit_has_a_folder_of_its_own(job: Path) -> None:
    """--limit does the first rows somewhere else, so that the whole job is not in its way afterwards."""
    assert seedx_batch("run", job, "--limit", "13").returncode == 0
    assert parts_of(job.parent / "run-limit-13")["source"].to_pylist() == TEXTS[:13]
    assert not (job.parent / "run").exists()
    assert seedx_batch("run", job).returncode == 0
    assert parts_of(job.parent / "run").num_rows == 57


def slow_job(tmp_path: Path, num_rows: int = 25_000) -> Path:
    """A job that takes the simulated engine seconds."""
    rows = write_rows(tmp_path / "rows.jsonl", [f"{number} {number * 7919}" for number in range(num_rows)])
    return write_job(
        tmp_path, rows, output={"rows_per_shard": 1000}, executor={"checkpoint_s": 0.1}, decoding={"max_tokens": 40}
    )


def test_killed_again_and_again(tmp_path: Path) -> None:
    """kill -9 of the whole group at five moments: every row ends once, nothing that was saved is generated again."""
    job = slow_job(tmp_path)
    run = tmp_path / "run"
    saved_before = 0
    for least in (1, 300, 500, 1000, 2000):
        earlier = {line["launch"] for line in ledger.read(job.parent / LEDGER)}
        process = start(job)
        wait_for_rows(job, least, earlier)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        saved = json.loads(seedx_batch("status", run, "--json").stdout)["num_done"]
        assert saved > saved_before
        saved_before = saved
    done = seedx_batch("run", job)
    assert done.returncode == 0, done.stderr
    table = parts_of(run)
    assert table["number"].to_pylist() == list(range(25_000))
    # The last launch did what had not been saved, and all launches together no row twice. (A launch that is killed
    # between saving and telling has told less than it saved.)
    last = ledger.read(job.parent / LEDGER)[-2]
    assert (last["event"], last["num_rows"]) == ("checkpoint", 25_000 - saved_before)
    rows = table.select(["deduplicated", "num_output_tokens"]).to_pylist()
    generated = sum(row["num_output_tokens"] for row in rows if not row["deduplicated"])
    assert ledger.totals(run / ".state/ledger")["num_output_tokens"] <= generated
    (tmp_path / "other").mkdir()
    assert seedx_batch("run", slow_job(tmp_path / "other")).returncode == 0
    same = ["id", "translation", "finish_reason", "status", "num_prompt_tokens", "num_output_tokens"]
    assert parts_of(tmp_path / "other/run").select(same) == table.select(same)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP])
def test_a_stop_signal(tmp_path: Path, number: signal.Signals) -> None:
    """A stop signal ends the run with 75, finished rows saved; the same command goes on from there."""
    job = slow_job(tmp_path)
    process = start(job)
    wait_for_rows(job, 300)
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 75, told
    assert "the same command goes on" in told
    assert ledger.read_last(tmp_path / LEDGER)["event"] == "stopped"  # type: ignore[index]
    assert seedx_batch("run", job).returncode == 0
    assert parts_of(tmp_path / "run")["number"].to_pylist() == list(range(25_000))


def test_ctrl_c_twice(tmp_path: Path) -> None:
    """Ctrl-C reaches the whole group; a second one leaves at once, with 75, and the run can go on."""
    job = slow_job(tmp_path)
    process = start(job)
    wait_for_rows(job, 300)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 75
    assert seedx_batch("run", job).returncode == 0
    assert parts_of(tmp_path / "run").num_rows == 25_000


def test_a_worker_ends_with_its_parent(tmp_path: Path) -> None:
    """When only the main process is killed, its worker saves what has finished and ends; then the folder is free."""
    job = slow_job(tmp_path)
    process = start(job)
    wait_for_rows(job, 300)
    worker = next(line["pid"] for line in ledger.read(tmp_path / LEDGER) if line["event"] == "started")
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 60
    while not has_ended(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert has_ended(worker), (Path(f"/proc/{worker}/status").read_text(), ledger.read(tmp_path / LEDGER)[-3:])
    assert seedx_batch("run", job).returncode == 0


def test_one_run_at_a_time(tmp_path: Path) -> None:
    """A second run in the same folder is told who holds it, and leaves with 75 without a trace."""
    job = slow_job(tmp_path)
    process = start(job)
    wait_for_rows(job, 300)
    second = seedx_batch("run", job)
    assert second.returncode == 75
    assert f"process {process.pid} on" in second.stderr
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_progress_without_a_terminal(tmp_path: Path) -> None:
    """Where the output is no terminal, progress is plain lines without carriage returns."""
    done = seedx_batch("run", slow_job(tmp_path))
    assert "\r" not in done.stderr
    assert "small: " in done.stderr


def test_status_while_it_runs_and_after(tmp_path: Path) -> None:
    """status reads a run while it goes on; rows only grow, and at the end the statistics are those of the rows."""
    job = slow_job(tmp_path, 20_000)
    process = start(job)
    wait_for_rows(job, 300)
    first = json.loads(seedx_batch("status", tmp_path / "run", "--json").stdout)
    assert 0 < first["num_done"] <= 20_000
    process.communicate(timeout=120)
    last = json.loads(seedx_batch("status", tmp_path / "run", "--json").stdout)
    assert (last["num_done"], last["phase"], last["num_committed"]) == (20_000, "finished", 20)
    rows = parts_of(tmp_path / "run")
    assert last["stats"]["output_tokens_sum"] == sum(rows["num_output_tokens"].to_pylist())
    assert "20,000 of 20,000" in seedx_batch("status", tmp_path / "run").stdout
