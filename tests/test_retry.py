"""Failed rows that run again: all others stay as they are, the old part is whole until the new one is, and a kill costs
nothing."""

import json
import os
import signal
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seedx_batch import launch, ledger, parts, plan, retry, status
from seedx_batch.parts import OpenShard
from seedx_batch.plan import Plan
from seedx_batch.records import Completion
from seedx_batch.rundir import RunDirectory
from tests.jobs import LEDGER, ask, parts_of, seedx_batch, start, wait_for_rows, write_job, write_rows
from tests.test_launch import slow_job
from tests.working import outcome, planned, prompts_of_all, work

NUM_ROWS = 11
TEXTS = [f"text {number}" for number in range(NUM_ROWS)]
Capture = pytest.CaptureFixture[str]


IDS = [f"r{number}" for number in range(NUM_ROWS)]


@settings(max_examples=20, deadline=None)
@given(
    failing=st.sets(st.sampled_from(IDS)),
    still=st.sets(st.sampled_from(IDS)),
    stops=st.lists(st.integers(0, 6), max_size=3),
    first=st.sampled_from([4, 7, 99, 99, 99]),
    is_broken_off=st.booleans(),
)
def test_any_round(failing: set[str], still: set[str], stops: list[int], first: int, is_broken_off: bool) -> None:
    """Whichever rows failed, fail again, and wherever the workers are killed: what had not failed is what it was, every
    failed row ends exactly once more, and until a shard's last one has, its old part is there, whole."""
    with TemporaryDirectory() as folder:
        run, made, spec = planned(Path(folder), write_rows(Path(folder, "rows.jsonl"), TEXTS))
        num_first = work(run, made, spec, failing, "old", first)
        before = outcome(run)
        done = failing & set(IDS[:num_first])
        if is_broken_off:  # before plan.json was written
            retry.begin(run, made, ("error",), plan.completion_schema(spec, prompts_of_all()))
            run.sweep(keep=retry.pending(run, made))
            assert outcome(run) == before
        made = retry.begin(run, made, ("error",), plan.completion_schema(spec, prompts_of_all()))
        left = NUM_ROWS - num_first + len(done)
        num_rows = 0
        for most in [*stops, 99]:
            assert status.glance(run, made).num_done == NUM_ROWS - left + num_rows
            num_rows += work(run, made, spec, still, "new", most)
            run.sweep(keep=retry.pending(run, made))
            seen = outcome(run)
            assert seen.keys() >= before.keys()
            for name, ended in before.items():
                assert seen[name] == ended or (name in failing and seen[name].startswith("new"))
        assert num_rows == left
        assert status.glance(run, made).num_done == NUM_ROWS
        assert not run.journaled()
        assert not retry.pending(run, made)
        again = set(IDS[num_first:]) | done
        mark = {name: "new" if name in again else "old" for name in IDS}
        assert outcome(run) == {
            name: f"{mark[name]}{':' if name in (still if name in again else failing) else ''} {name}" for name in IDS
        }
        footers = [parts.read_footer(run.part(index, 4)) for index in range(4)]
        for footer, path in zip(footers, sorted(run.parts.iterdir()), strict=True):
            rows = pq.read_table(path).to_pylist()
            assert footer.stats.statuses.get("error", 0) == sum(row["status"] == "error" for row in rows)
            assert footer.stats.output_tokens.total == sum(row["num_output_tokens"] for row in rows)
        assert {footer.fingerprint for footer in footers} == {made.fingerprint}
        assert [footer.shard for footer in footers] == list(made.shards)


def test_a_plan_with_a_round_comes_back(tmp_path: Path) -> None:
    """What runs again is kept in plan.json."""
    _, made, _ = planned(tmp_path, write_rows(tmp_path / "rows.jsonl", TEXTS))
    made = replace(made, retry=plan.Retry(2, ("error",), {3: 5}), max_tokens={"max": 9})
    assert Plan.from_json(made.to_json(), "plan.json") == made


@pytest.mark.parametrize(
    ("before", "after", "raised"),
    [
        (16, 17, True),
        (16, 16, False),
        (16, 15, False),
        ({"max": 9, "ratio": 2}, {"max": 9, "ratio": 3}, True),
        ({"max": 9, "ratio": 2}, 9, True),
        (9, {"max": 20, "ratio": 2}, False),
        ({"max": 9, "ratio": 2}, {"max": 9, "ratio": 1, "plus": 5}, False),
        ({"max": 9, "column": "number"}, {"max": 99, "column": "number"}, True),
        ({"max": 9, "column": "number"}, 99, False),
    ],
)
def test_what_a_larger_budget_is(tmp_path: Path, before: Any, after: Any, raised: bool) -> None:
    """A budget is larger where no row can get less than before."""
    rows = write_rows(tmp_path / "rows.jsonl", TEXTS)
    old = launch.load(write_job(tmp_path, rows, decoding={"max_tokens": before}), [], None)
    made = plan.make(old, *launch.understand(old, fetch=False))
    new = launch.load(write_job(tmp_path, rows, decoding={"max_tokens": after}), [], None)
    assert plan.is_raised(made, new) is raised


def fail(run: Path, failing: Collection[str]) -> None:
    """Writes the parts of a run as they would be had some rows failed."""
    directory = RunDirectory(run)
    for path in sorted(directory.parts.iterdir()):
        table, footer = parts.read_part(path), parts.read_footer(path)
        completion = parts.completion_schema("translation", [], False)
        carried, batches = parts.divide(table, completion)
        opened = OpenShard(footer.shard, table.schema, completion)
        for batch in carried.to_batches():
            opened.carry(batch)
        for ended in (each for batch in batches for each in parts.from_batch(batch, footer.shard.index)):
            is_failing = table["id"][ended.key.position].as_py() in failing
            opened.complete(Completion(ended.key, "error", error="gone: for now") if is_failing else ended)
        temporary = directory.temporary("part")
        parts.write_part(temporary, opened.table(), replace(footer, stats=opened.stats()))
        directory.replace(temporary, path)


@pytest.mark.process
def test_errors_run_again(tmp_path: Path, capsys: Capture) -> None:
    """--retry-failed gives the rows that an undisturbed run gives, twins too, touches no part without errors, and the
    statistics and the card follow; rows that cannot succeed fail again, and there is nothing to do after."""
    texts = [f"text {number % 20}" for number in range(40)] + [""]  # every text but the last has a twin
    job = write_job(tmp_path, write_rows(tmp_path / "rows.jsonl", texts))
    run = tmp_path / "run"
    assert ask(capsys, "run", job)[0] == 0
    whole = parts_of(run)
    fail(run, ["r3", "r7", "r23", "r39"])
    seedx_batch("finalize", run)
    before = {path.name: (path.stat().st_ino, pq.read_table(path)) for path in sorted((run / "data").iterdir())}
    code, _, message = ask(capsys, "run", job, "--retry-failed")
    assert code == 0, message
    assert "run again: 5" in message
    # Whether a row or its twin is the one that was generated is all that may differ.
    same = [name for name in whole.column_names if name not in ("deduplicated", "num_cached_tokens")]
    assert parts_of(run).select(same) == whole.select(same)
    after = {path.name: (path.stat().st_ino, pq.read_table(path)) for path in sorted((run / "data").iterdir())}
    untouched = [name for name in before if before[name][0] == after[name][0]]
    assert untouched == ["part-00001-of-00005.parquet"]
    for name, (_, table) in before.items():
        kept = [row for row in table.to_pylist() if row["status"] != "error"]
        assert all(row in after[name][1].to_pylist() for row in kept)
    stats = pq.read_table(run / "stats.parquet")
    assert (sum(stats["num_error"].to_pylist()), sum(stats["num_rows"].to_pylist())) == (1, 41)
    assert "| error | 1 |" in (run / "README.md").read_text()
    shown = json.loads(seedx_batch("status", run, "--json").stdout)
    assert (shown["phase"], shown["num_done"], shown["stats"]["num_error"]) == ("finished", 41, 1)
    assert "nothing left to do" in ask(capsys, "run", job)[2]


@pytest.mark.process
def test_a_larger_budget(tmp_path: Path, capsys: Capture) -> None:
    """With --retry-failed, and not without, max_tokens may be raised: rows that were cut off run again with the larger
    one, the others stay, and from then on the larger one is the job's."""
    job = write_job(
        tmp_path, write_rows(tmp_path / "rows.jsonl", [f"a text of words, {number * 7919}" for number in range(55)])
    )
    assert ask(capsys, "run", job)[0] == 0
    before = parts_of(tmp_path / "run").to_pylist()
    cut = [row for row in before if row["status"] == "truncated"]
    assert 0 < len(cut) < 55
    larger = ("--set", "decoding.max_tokens=40")
    code, _, message = ask(capsys, "run", job, *larger)
    assert (code, "max_tokens.max: 16 -> 40" in message) == (78, True)
    code, _, message = ask(capsys, "run", job, "--retry-failed", "--set", "decoding.max_tokens=8")
    assert (code, "max_tokens.max: 16 -> 8" in message) == (78, True)
    code, _, message = ask(capsys, "run", job, "--retry-failed", *larger)
    assert code == 0, message
    assert f"run again: {len(cut)}" in message
    after = parts_of(tmp_path / "run").to_pylist()
    for was, now in zip(before, after, strict=True):
        assert was == now if was["status"] == "ok" else now["num_output_tokens"] <= 40 and now != was
    assert "nothing left to do" in ask(capsys, "run", job, *larger)[2]
    code, _, message = ask(capsys, "run", job)
    assert (code, "max_tokens.max: 40 -> 16" in message) == (78, True)
    assert "max:16" in (tmp_path / "run/README.md").read_text()
    assert "max:40" in (tmp_path / "run/README.md").read_text()


@pytest.mark.process
def test_killed_while_rows_run_again(tmp_path: Path) -> None:
    """kill -9 of the group in mid-retry: the old parts are whole and visible, status tells what is left, the same
    command goes on, with and without the flag, and no row runs a third time."""
    num_rows = 15_000
    job = slow_job(tmp_path, num_rows)
    assert seedx_batch("run", job).returncode == 0
    whole = parts_of(tmp_path / "run")
    failing = [f"r{number}" for number in range(num_rows) if number % 7]
    fail(tmp_path / "run", failing)
    visible = {row["id"]: row for row in parts_of(tmp_path / "run").to_pylist()}
    done_before = num_rows - len(failing)
    for flag in (["--retry-failed"], [], ["--retry-failed"]):
        earlier = {line["launch"] for line in ledger.read(job.parent / LEDGER)}
        process = start(job, *flag)
        wait_for_rows(job, 300, earlier)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        seen = parts_of(tmp_path / "run").to_pylist()
        assert [row["id"] for row in seen] == list(visible)
        assert all(row == visible[row["id"]] or visible[row["id"]]["status"] == "error" for row in seen)
        shown = json.loads(seedx_batch("status", tmp_path / "run", "--json").stdout)
        assert done_before < shown["num_done"] < num_rows
        assert shown["phase"] != "finished"
        done_before = shown["num_done"]
    assert seedx_batch("run", job).returncode == 0
    assert ledger.read(job.parent / LEDGER)[-2]["num_rows"] == num_rows - done_before
    same = [name for name in whole.column_names if name not in ("deduplicated", "num_cached_tokens")]
    assert parts_of(tmp_path / "run").select(same) == whole.select(same)
    assert (
        f"| ok | {sum(row['status'] == 'ok' for row in whole.to_pylist()):,} |"
        in (tmp_path / "run/README.md").read_text()
    )


@pytest.mark.process
def test_columns_of_every_type_are_kept(tmp_path: Path, capsys: Capture) -> None:
    """Rows that do not run again keep every value, whatever the input's types are that parquet stores otherwise."""
    rows = 20
    table = pa.table(
        {
            "id": [f"r{number}" for number in range(rows)],
            "source": [f"text {number}" for number in range(rows)],
            "seconds": pa.array(range(rows), pa.timestamp("s")),
            "nanoseconds": pa.array(range(rows), pa.timestamp("ns", "UTC")),
            "lasts": pa.array(range(rows), pa.duration("us")),
            "time": pa.array(range(rows), pa.time32("s")),
            "small": pa.array([None if number % 3 else number for number in range(rows)], pa.uint8()),
            "half": pa.array([float("nan") if number % 5 else 0.5 for number in range(rows)], pa.float32()),
            "large": pa.array([b"\\xff" * number for number in range(rows)], pa.large_binary()),
            "price": pa.array(range(rows), pa.decimal128(10, 2)),
            "nested": [[{"a": [number, None], "b": str(number)}] * (number % 3) for number in range(rows)],
            "map": pa.array([[("k", number)] for number in range(rows)], pa.map_(pa.string(), pa.int32())),
            "word": pa.array([f"w{number % 2}" for number in range(rows)]).dictionary_encode(),
            "nothing": pa.nulls(rows),
        }
    )
    pq.write_table(table, tmp_path / "rows.parquet")
    job = write_job(tmp_path, tmp_path / "rows.parquet", output={"rows_per_shard": 7})
    assert ask(capsys, "run", job)[0] == 0
    before = parts_of(tmp_path / "run")
    fail(tmp_path / "run", ["r3", "r19"])
    code, _, message = ask(capsys, "run", job, "--retry-failed")
    assert code == 0, message
    after = parts_of(tmp_path / "run")
    assert after.schema == before.schema
    assert str(after.to_pylist()) == str(before.to_pylist())  # as text, in which NaN equals itself
