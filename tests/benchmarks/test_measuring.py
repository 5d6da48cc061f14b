"""Figures of benchmarks: trees of processes, medians, ratios, tables."""

import os
import subprocess
import sys
from pathlib import Path

import measuring
import pytest

_PARENT_OF_A_SLEEPER = (
    "import subprocess, sys, time; "
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True); "
    "print(child.pid, flush=True); "
)


def test_a_run_tells_the_exit_code_and_the_memory(tmp_path: Path) -> None:
    """The exit code is the command's own, and what it holds is seen: 64 MiB and Python."""
    code = "held = bytearray(64 << 20); held[::4096] = b'1' * len(held[::4096]); import time; time.sleep(1); exit(3)"
    run = measuring.run([sys.executable, "-c", code], tmp_path / "log", os.environ)
    assert run.exit_code == 3
    assert 64 < run.peak_mib < 200


@pytest.mark.parametrize("leaves", [True, False])
def test_nothing_outlives_a_run(tmp_path: Path, leaves: bool) -> None:
    """A process in a session of its own is killed with the rest, whether its parent ended or was killed."""
    code = _PARENT_OF_A_SLEEPER + ("" if leaves else "time.sleep(600)")
    log = tmp_path / "log"
    kill_when = None if leaves else lambda: log.read_text().endswith("\n")
    run = measuring.run([sys.executable, "-c", code], log, os.environ, kill_when)
    assert run.exit_code == (0 if leaves else None)
    assert int(log.read_text()) not in measuring.descendants(os.getpid())
    stat = Path(f"/proc/{log.read_text().strip()}/stat")
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def test_descendants_are_found_at_any_depth() -> None:
    """A child's child is found from here, and this process is not its own descendant."""
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT_OF_A_SLEEPER + "child.wait()"], stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        grandchild = int(child.stdout.readline())
        found = measuring.descendants(os.getpid())
        measuring.kill_tree()
    assert {child.pid, grandchild} <= set(found)
    assert os.getpid() not in found


def test_an_orphans_work_is_not_that_of_others(tmp_path: Path) -> None:
    """What a process worked that outlived its parent, and was killed, counts as the run's own."""
    burn = "import time\nwhile time.process_time() < 0.5: pass\nprint(flush=True)\ntime.sleep(600)"
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {burn!r}], stdout=sys.stdout)"
    before = measuring.own_busy_s()
    log = tmp_path / "log"
    measuring.run(
        [sys.executable, "-c", f"{code}; import time; time.sleep(600)"], log, os.environ, lambda: bool(log.read_bytes())
    )
    assert measuring.own_busy_s() - before >= 0.5


def test_what_others_disturbed_is_left_out() -> None:
    """Runs in which others had more than a tenth of the machine do not count, and their number is told."""
    records = [{"others": 0.02}, {"others": 0.3}, {"others": 0.1}]
    assert measuring.quiet(records) == [records[0], records[2]]
    assert measuring.left_out(records).startswith("Left out: 1 of 3 runs")


def test_medians_come_with_their_spread() -> None:
    """One value is told alone, several with the least and the most, none as a dash."""
    assert measuring.middle([]) == "-"
    assert measuring.middle([1234.56]) == "1,234.6"
    assert measuring.middle([3, 1, 2], 2) == "2.00 (1.00 to 3.00)"


def test_ratios_are_of_the_same_round() -> None:
    """A ratio is taken within a round; a round that only one of the two has is left out."""
    assert measuring.ratios({0: 2.0, 1: 3.0, 2: 9.0}, {0: 1.0, 1: 2.0}) == [2.0, 1.5]


def test_records_are_kept_between_runs(tmp_path: Path) -> None:
    """What was kept comes back in order; where nothing was kept there is nothing."""
    path = tmp_path / "folder" / "results.jsonl"
    assert measuring.kept(path) == []
    measuring.keep(path, {"round": 0})
    measuring.keep(path, {"round": 1})
    assert [record["round"] for record in measuring.kept(path)] == [0, 1]


def test_tables_are_markdown() -> None:
    """The first column is aligned to the left and the others to the right."""
    assert measuring.table(["", "s"], [["ours", "1"]]) == "|  | s |\n| --- | ---: |\n| ours | 1 |"
