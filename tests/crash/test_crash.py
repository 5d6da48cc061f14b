"""Crashes: whatever a power cut leaves of a run's calls, nothing that was promised is lost, and the run goes on."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from seedx_batch import durable, journal, parts, rundir
from tests.crash.disk import Disk, Fate, after
from tests.crash.enumerate import SEED, crash
from tests.crash.small import Small, small
from tests.crash.tap import Call
from tests.jobs import environment

HEX = re.compile(r"[0-9a-f]{32}")
SYSCALL = re.compile(r"(?:\d+ +)?(\w+)\((.*)")
RECORDED_AS = {
    "openat": "create",
    "write": "write",
    "fallocate": "allocate",
    "fsync": "fsync",
    "rename": "rename",
    "link": "link",
    "unlink": "unlink",
    "unlinkat": "unlink",
    "mkdir": "mkdir",
}
OTHERS_THAT_CHANGE = (
    "pwrite64,writev,pwritev,pwritev2,fdatasync,sync_file_range,syncfs,renameat,renameat2,linkat,symlink,symlinkat,"
    "mkdirat,rmdir,creat,truncate,ftruncate,copy_file_range,sendfile,splice,mknod,mknodat,setxattr,fsetxattr"
)


def test_no_crash_costs_what_was_promised() -> None:
    """After each call of a run, and of runs that follow a crash, no legal loss loses, tears or doubles a row."""
    tally = crash(SEED, num_random=0, share=0.04, num_seconds=1)
    assert tally.failures == []
    assert tally.num_states > 2000
    assert tally.num_resumed > 80


def test_a_disk_loses_what_is_not_synced() -> None:
    """The model: a synced write whose name is not is gone, a name may come without content, a rename is whole."""
    calls = [
        Call("create", "/r/a"),
        Call("write", "/r/a", content=b"1234"),
        Call("fsync", "/r/a"),
        Call("rename", "/r/b", other="/r/a"),
    ]
    seen = {tuple(after("/r", calls).tree(fates).items()) for fates in after("/r", calls).states(mock.Mock(), 0)}
    assert seen == {(), (("a", b"1234"),), (("b", b"1234"),)}
    seen = {
        tuple(after("/r", calls[:2]).tree(fates).items()) for fates in after("/r", calls[:2]).states(mock.Mock(), 0)
    }
    assert seen == {(), (("a", b""),), (("a", b"12"),), (("a", b"\0\0\0\0"),), (("a", b"1234"),)}
    disk = Disk.of("/r", {"d": None, "d/a": b"12"})
    disk.apply(Call("write", "/r/d/a", content=b"34"))
    disk.apply(Call("write", "/r/d/a", content=b"56"))
    assert disk.tree([Fate.KEPT] * 3 + [Fate.LOST, Fate.KEPT])["d/a"] == b"12\0\x0056"


def no_sync(*_: object) -> None:
    """Forgets to wait for the disk."""


def write_only(path: Path, content: bytes | bytearray) -> None:
    """Forgets to wait for the disk after writing."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    durable.write_all(fd, content)
    os.close(fd)


def sync_again(path: Path, _: object) -> None:
    """Takes a second sync's word for what the first one may have lost."""
    fd = os.open(path, os.O_RDWR)
    os.fsync(fd)
    os.close(fd)


def sweep_only(sweep: object) -> object:
    """Forgets to wait for the names of parts before it removes their journals."""

    def forgetful(run: rundir.RunDirectory, **keep: object) -> None:
        with mock.patch.object(rundir, "sync_folder", no_sync):
            sweep(run, **keep)  # type: ignore[operator]

    return forgetful


def create_only(create: object) -> object:
    """Forgets to wait for the names of the folders that it makes."""

    def forgetful(run: rundir.RunDirectory) -> None:
        with mock.patch.object(rundir, "sync_folder", no_sync), mock.patch.object(durable, "sync_folder", no_sync):
            create(run)  # type: ignore[operator]

    return forgetful


@pytest.mark.process
@pytest.mark.parametrize(
    ("where", "name", "forgetful"),
    [
        (parts, "write", write_only),
        (journal, "_renew", sync_again),
        (rundir.RunDirectory, "create", create_only(rundir.RunDirectory.create)),
        (rundir.RunDirectory, "sweep", sweep_only(rundir.RunDirectory.sweep)),
    ],
    ids=["part not synced", "failed sync repeated", "new folders not synced", "swept before synced"],
)
def test_a_forgotten_sync_is_noticed(where: object, name: str, forgetful: object) -> None:
    """The enumeration fails for a program that leaves one of its syncs out."""
    with mock.patch.object(where, name, forgetful):
        assert crash(SEED, num_random=0, share=0.0, num_seconds=0, stops=True).failures


@pytest.fixture(scope="module")
def job() -> Iterator[Small]:
    """The small run, and the calls it makes."""
    with small() as made:
        yield made


@pytest.mark.process
def test_nothing_is_written_unrecorded(job: Small, tmp_path: Path) -> None:
    """The kernel sees the command line change the folder by the calls that are recorded here, and by no others."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    job.clear()
    trace = tmp_path / "trace"
    wanted = f"trace={','.join(RECORDED_AS)},{OTHERS_THAT_CHANGE}"
    path = tmp_path / "job.yaml"
    path.write_text(job.spec.to_yaml())
    command = ["strace", "-f", "-y", "-s", "0", "-e", wanted, "-e", "signal=none", "-o", str(trace)]
    command += [sys.executable, "-m", "seedx_batch", "run", str(path)]
    ended = subprocess.run(command, env=environment({}), capture_output=True, text=True, check=False, timeout=300)
    if "ptrace" in ended.stderr and not job.run.plan.exists():
        pytest.skip(f"strace may not trace here: {ended.stderr.strip()}")
    assert ended.returncode == 0, ended.stderr
    folder = str(job.root)
    recorded = {(call.name, HEX.sub("*", call.path.removeprefix(folder))) for call in job.tap.calls}
    traced = {
        (name, HEX.sub("*", path.removeprefix(folder)))
        for name, path in changes(trace.read_text(errors="replace"), folder)
        if "/.state/logs/" not in path
    }
    assert traced - recorded == set()
    assert {call for call in recorded - traced if call[0] not in ("open", "close")} == set()


def changes(text: str, folder: str) -> Iterator[tuple[str, str]]:
    """What of a trace changes files below a folder: as what it is recorded, and the path that it changes."""
    for line in text.splitlines():
        found = SYSCALL.match(line)
        if found is None or " = -1 " in line:
            continue
        name, arguments = found[1], found[2]
        # A file's name in quotes, or behind a descriptor in angle brackets; of two names the second is the new one.
        paths = [each for each in re.findall(r'["<]([^">]+)[">]', arguments) if each.startswith(folder)]
        if not paths or (name == "openat" and not re.search("O_WRONLY|O_RDWR|O_CREAT|O_TRUNC", arguments)):
            continue
        yield RECORDED_AS.get(name, name), paths[0] if name == "openat" else paths[-1]
