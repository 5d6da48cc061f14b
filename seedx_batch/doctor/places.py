"""Folders that a job writes to: whether that works there, with locks and syncing, and how much room is left.

A folder that is not there yet is tried where it would be made; nothing is left behind.
"""

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from seedx_batch.doctor.findings import Finding
from seedx_batch.durable import sync_folder

_GIB, _MIB = 1 << 30, 1 << 20
_ROOM = (64 * _MIB, _GIB)  # bytes: below the first nothing can be saved, below the second little
_SKEW_S = 60.0


def examine(name: str, folder: Path, now: float) -> list[Finding]:
    """Whether a folder can be written as the program writes it, and the room there.

    Args:
        name: what the folder is to the job.
        now: this machine's clock.
    """
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    told = str(folder) if place == folder.absolute() else f"{folder} (to be made in {place})"
    if not place.is_dir():
        return [
            Finding(name, "fault", f"{place} is no folder", "a folder", "choose another place, or move the file away")
        ]
    return [_writing(name, place, told, now), _room(f"room for {name}", place)]


def _writing(name: str, place: Path, told: str, now: float) -> Finding:
    try:
        trial = Path(tempfile.mkdtemp(prefix=".seedx-batch-doctor-", dir=place))
    except OSError as error:
        remedy = "make it writable, or choose another place"
        return Finding(name, "fault", f"{place}: {error.strerror}", "the right to write there", remedy)
    try:
        return _try(name, trial, told, now)
    except OSError as error:
        return Finding(
            name, "fault", f"{place}: {error.strerror}", "files that can be synced", "choose another file system"
        )
    finally:
        shutil.rmtree(trial, ignore_errors=True)


def _try(name: str, trial: Path, told: str, now: float) -> Finding:
    path = trial / "file"
    with path.open("wb") as file:
        file.write(b"x")
        file.flush()
        os.fsync(file.fileno())
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            remedy = "mount it with locks (Lustre: -o flock), or choose another file system"
            return Finding(name, "fault", f"{told}: no locks ({error.strerror})", "file locks", remedy)
    sync_folder(trial)
    skew = path.stat().st_mtime - now
    if abs(skew) > _SKEW_S:
        found = f"{told}: its clock differs by {skew:+,.0f} s"
        return Finding(
            name, "warn", found, f"at most {_SKEW_S:.0f} s", "synchronise this machine's and the server's clocks"
        )
    try:
        os.link(path, trial / "link")
    except OSError:
        return Finding(name, "note", f"{told}: writable, locks, syncs; without hard links parts are renamed into place")
    return Finding(name, "ok", f"{told}: writable, locks, syncs")


def _room(name: str, place: Path) -> Finding:
    free = shutil.disk_usage(place).free
    told = f"{free / _GIB:.1f} GiB free"
    least, good = _ROOM
    remedy = "free space there, or choose another place"
    if free < least:
        return Finding(name, "fault", told, f"{least // _MIB} MiB", remedy)
    return Finding(name, "ok", told) if free >= good else Finding(name, "warn", told, "1 GiB", remedy)
