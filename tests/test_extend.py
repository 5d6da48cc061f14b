"""Rows that are added to the input of a run: nothing of the old is redone or lost, wherever it is broken off."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seedx_batch import launch, ledger, models, parts, retry, status
from seedx_batch.errors import ResumeRefused
from seedx_batch.plan import Plan
from seedx_batch.rundir import RunDirectory
from seedx_batch.spec import JobSpec
from tests.jobs import LEDGER, ask, parts_of, seedx_batch, start, wait_for_rows, write_job, write_rows
from tests.test_launch import TEXTS, slow_job
from tests.working import outcome, planned, prompts_of_all, work

Capture = pytest.CaptureFixture[str]


class Silent:
    """A view that shows nothing."""

    def say(self, message: str) -> None:
        pass

    def show(self, status: status.Status) -> None:
        pass


class Crash(BaseException):
    """What a kill is within a test."""


def resume(spec: JobSpec, run: RunDirectory, *, extend: bool, most: int) -> Plan:
    """What a launch does before it starts a worker; it is killed before it changes so many files' names."""
    left = most
    rename, put = os.rename, os.replace

    def counted(change: Callable[..., None]) -> Callable[..., None]:
        def do(source: Any, target: Any) -> None:
            nonlocal left
            if left == 0:
                raise Crash
            left -= 1
            change(source, target)

        return do

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "rename", counted(rename))
        patch.setattr(os, "replace", counted(put))
        model = models.resolve(spec.model, fetch=False)
        return launch._plan(spec, prompts_of_all(), model, run, Silent(), extend=extend, retry_failed=False)


def put_rows(folder: Path, name: str, first: int, num_rows: int, *, whole_line: bool = True) -> None:
    """Adds rows to a file of the input, after a line that may have had no end."""
    path = folder / name
    before = path.read_text() if path.exists() else ""
    if before and not before.endswith("\n"):
        before += "\n"
    lines = "\n".join(json.dumps({"id": f"r{row}", "source": f"text {row}"}) for row in range(first, first + num_rows))
    path.write_text(before + lines + ("\n" if whole_line else ""))


@settings(max_examples=20, deadline=None)
@given(
    size=st.integers(1, 8),
    additions=st.lists(st.tuples(st.booleans(), st.integers(1, 5), st.booleans()), min_size=1, max_size=3),
    first=st.sampled_from([0, 2, 5, 99, 99]),
    crashes=st.lists(st.integers(0, 6), max_size=3),
)
def test_any_extension(size: int, additions: list[tuple[bool, int, bool]], first: int, crashes: list[int]) -> None:
    """However far a run is, whatever is added, again and again, wherever launches are killed: no row that had ended
    runs again, every part keeps its rows, each row is seen at most once at every moment, and in the end all are there,
    in the order of the input."""
    with TemporaryDirectory() as root:
        folder = Path(root, "input")
        folder.mkdir()
        put_rows(folder, "0.jsonl", 0, size)
        run, made, spec = planned(Path(root), folder)
        num_ended = work(run, made, spec, (), "0", first)
        num_files, num_rows = 1, size
        for number, (is_new_file, count, whole_line) in enumerate(additions, 1):
            num_files += is_new_file
            put_rows(folder, f"{num_files - 1}.jsonl", num_rows, count, whole_line=whole_line)
            num_rows += count
            before = outcome(run)
            with pytest.raises(ResumeRefused, match="run it with --extend"):
                resume(spec, run, extend=False, most=99)
            for most in crashes:
                try:
                    resume(spec, run, extend=True, most=most)
                except Crash:
                    now = Plan.from_json(run.read_text(run.plan), "plan.json")
                    assert outcome(run) == before
                    assert status.glance(run, now).num_done == num_ended
            made = resume(spec, run, extend=True, most=99)
            assert outcome(run) == before
            assert status.glance(run, made).num_done == num_ended
            num_ended += work(run, made, spec, (), str(number), 99)
            assert num_ended == num_rows
            assert outcome(run).items() >= before.items()
        assert list(outcome(run)) == [f"r{row}" for row in range(num_rows)]
        assert not run.journaled()
        assert not retry.pending(run, made)
        paths = sorted(run.parts.iterdir())
        assert [path.name for path in paths] == [run.part_name(index, len(made.shards)) for index in range(len(paths))]
        footers = [parts.read_footer(path) for path in paths]
        assert [footer.shard for footer in footers] == list(made.shards)
        assert {footer.fingerprint for footer in footers} == {made.fingerprint}
        assert Plan.from_json(made.to_json(), "plan.json") == made


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"id": "x", "source": "x", "number": "ten"}, "column 'number': int64 -> JSON text"),
        ({"id": "x", "source": "x", "more": 1}, "column 'more': (absent) -> int64"),
    ],
)
def test_rows_with_other_columns(tmp_path: Path, row: dict[str, Any], told: str) -> None:
    """Rows that the parts have no columns for are refused, with --extend too, which then is not offered."""
    path = write_rows(tmp_path / "rows.jsonl", ["a", "b"])
    run, _, spec = planned(tmp_path, path)
    path.write_text(path.read_text() + json.dumps(row) + "\n")
    for extend in (False, True):
        with pytest.raises(ResumeRefused) as refused:
            resume(spec, run, extend=extend, most=99)
        assert told in str(refused.value)
        assert "--extend" not in str(refused.value)


def test_parts_of_another_plan_are_still_refused(tmp_path: Path) -> None:
    """Only parts that were named after an earlier number of shards are renamed, and never over another one."""
    run = RunDirectory(tmp_path)
    run.create()
    for name in ((0, 3), (1, 3), (1, 5), (2, 4)):
        run.part(*name).write_text(str(name))
    run.rename_parts(5, [3])
    assert sorted(path.name for path in run.parts.iterdir()) == [
        run.part_name(*name) for name in ((0, 5), (1, 3), (1, 5), (2, 4))
    ]
    assert run.part(1, 5).read_text() == "(1, 5)"


@pytest.mark.process
def test_extending_a_run(tmp_path: Path, capsys: Capture) -> None:
    """--extend does the new rows alone: old parts are the same files under new names, load_dataset gives all rows in
    order, card and statistics follow; with nothing new it changes nothing, and a first run may have it too."""
    import datasets

    job = write_job(tmp_path, write_rows(tmp_path / "rows.jsonl", TEXTS))
    run = tmp_path / "run"
    assert ask(capsys, "run", job, "--extend")[0] == 0
    assert "nothing left to do" in ask(capsys, "run", job, "--extend")[2]
    before = [path.stat().st_ino for path in sorted((run / "data").iterdir())]
    texts = [*TEXTS, *(f"more {number}" for number in range(8))]
    write_rows(tmp_path / "rows.jsonl", texts)
    code, _, message = ask(capsys, "run", job)
    assert (code, "run it with --extend" in message) == (78, True)
    with pytest.raises(Crash):
        resume(launch.load(job, [], None), RunDirectory(run), extend=True, most=4)
    assert {path.name[-13:-8] for path in (run / "data").iterdir()} == {"00006", "00007"}
    shown = json.loads(seedx_batch("status", run, "--json").stdout)
    assert (shown["num_done"], shown["num_rows"], shown["phase"]) == (57, 65, "stopped")
    assert shown["stats"]["num_rows"] == 57
    code, _, message = ask(capsys, "run", job, "--extend")
    assert code == 0, message
    assert ledger.read(tmp_path / LEDGER)[-2]["num_rows"] == 8
    assert [path.stat().st_ino for path in sorted((run / "data").iterdir())][:6] == before
    loaded = datasets.load_dataset(str(run), cache_dir=str(tmp_path / "cache"))["train"]
    assert loaded["source"][:] == texts
    stats = datasets.load_dataset(str(run), "stats", cache_dir=str(tmp_path / "cache"))["train"]
    assert (stats.num_rows, sum(stats["num_rows"])) == (7, 65)
    assert "65 rows made by" in (run / "README.md").read_text()
    assert "nothing left to do" in ask(capsys, "run", job)[2]
    (tmp_path / "fresh").mkdir()
    assert ask(capsys, "run", write_job(tmp_path / "fresh", tmp_path / "rows.jsonl"))[0] == 0
    same = [name for name in loaded.column_names if name not in ("deduplicated", "num_cached_tokens")]
    assert parts_of(run).select(same) == parts_of(tmp_path / "fresh/run").select(same)
    write_rows(tmp_path / "rows.jsonl", [*texts[:-1], "another", "one more"])
    code, _, message = ask(capsys, "run", job, "--extend")
    assert (code, "rows were inserted or changed, the first among rows 57 to 64" in message) == (78, True)


@pytest.mark.process
def test_a_run_that_is_under_way_is_extended(tmp_path: Path) -> None:
    """Rows are added to a job that was killed in the middle of a shard: what it had saved is not generated again."""
    job = slow_job(tmp_path, 6000)
    process = start(job)
    wait_for_rows(job, 300)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    saved = json.loads(seedx_batch("status", tmp_path / "run", "--json").stdout)["num_done"]
    texts = [f"{number} {number * 7919}" for number in range(6500)]
    write_rows(tmp_path / "rows.jsonl", texts)
    done = seedx_batch("run", job, "--extend")
    assert done.returncode == 0, done.stderr
    assert "rows were added: 6,000 -> 6,500" in done.stderr
    assert ledger.read(job.parent / LEDGER)[-2]["num_rows"] == 6500 - saved
    assert parts_of(tmp_path / "run")["source"].to_pylist() == texts
