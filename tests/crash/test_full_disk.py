"""A real file system of 50 MB: it fills in mid-run, becomes read-only, and is what it was when it is mended."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from seedx_batch.rundir import RunDirectory
from tests.jobs import parts_of, seedx_batch, write_job, write_rows

pytestmark = pytest.mark.process
NUM_ROWS = 1_600


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, in memory."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=50m", "tmpfs", str(path)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"this user may not mount a tmpfs: {mounted.stderr.strip()}")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.fixture
def job(tmp_path: Path, disk: Path) -> Path:
    """A job whose output is about 4 MB, in a run directory on that file system."""
    # What does not compress and is carried makes parts large, and journals not.
    texts = [os.urandom(2_500).hex() for _ in range(NUM_ROWS)]
    rows = write_rows(tmp_path / "rows.jsonl", texts)
    job = write_job(tmp_path, rows, output={"rows_per_shard": 200}, model={"max_model_len": 100_000})
    job.write_text(job.read_text().replace(str(tmp_path / "run"), str(disk / "run")))
    return job


def test_a_disk_that_fills_in_mid_run(job: Path, disk: Path) -> None:
    """Exit 74 and a line that says what to free, also without a byte left; freed, the same command ends with all."""
    filler = disk / "filler"
    filler.write_bytes(bytes(50_000_000))
    full = seedx_batch("run", job)
    assert full.returncode == 74, full.stderr
    told = next(line for line in full.stderr.splitlines() if line.startswith("error: "))
    assert "No space left on device; free space there (" in told
    assert "MB are left), and run the same command again; finished rows are kept" in told
    assert str(disk / "run") in told
    assert "Traceback" not in full.stderr
    run = RunDirectory(disk / "run")
    before = {path: path.stat().st_mtime_ns for path in run.parts.iterdir()}
    assert 0 < len(before) < 8
    fill(disk / "more")
    fuller = seedx_batch("run", job)
    assert fuller.returncode == 74
    assert "No space left on device; free space there (0.0 MB are left)" in fuller.stderr
    filler.unlink()
    done = seedx_batch("run", job)
    assert done.returncode == 0, done.stderr
    assert parts_of(run.path)["number"].to_pylist() == list(range(NUM_ROWS))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert seedx_batch("validate", run.path).returncode == 0


def test_a_disk_that_becomes_read_only(job: Path, disk: Path) -> None:
    """A read-only run directory is told with 74, and may be validated all the same."""
    assert seedx_batch("run", job, "--limit", "10").returncode == 0
    run = disk / "run-limit-10"
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    refused = seedx_batch("run", job, "--limit", "10")
    assert refused.returncode == 74, refused.stderr
    assert "Read-only file system; make it writable, or choose another run_dir" in refused.stderr
    checked = seedx_batch("validate", run)
    assert checked.returncode == 0, checked.stderr


def fill(path: Path) -> None:
    """Writes until nothing fits."""
    with path.open("wb", buffering=0) as file:
        size = 1 << 20
        while size:
            try:
                if file.write(bytes(size)) < size:
                    size //= 2
            except OSError:
                size //= 2
