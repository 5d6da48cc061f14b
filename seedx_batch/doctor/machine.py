"""The machine that is looked at: a tree of files, an environment, installed packages, and commands with a time limit.

Everything is asked through it, so that a recorded machine can stand in for this one; it must never know what is wanted.
"""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

_ABSENT, _SILENT = 127, 124  # as the shell and timeout(1) say it
_LEAVING_S = 1.0


class Answer(NamedTuple):
    """What a command said, and its exit code."""

    code: int
    text: str

    @property
    def reason(self) -> str:
        """The last thing it said, for a message."""
        if self.code == _ABSENT:
            return "there is no such command"
        lines = [line.strip() for line in self.text.splitlines() if line.strip()]
        return lines[-1][:300] if lines else f"it ended with {self.code} and no word"


Run = Callable[[Sequence[str], float], Answer]


def run(command: Sequence[str], limit_s: float) -> Answer:
    """Runs a command; one that is silent for too long is left alone.

    A tool that waits for a hung driver cannot even be killed, and must not be waited for.
    """
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    except OSError:
        return Answer(_ABSENT, "")
    try:
        text, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        process.kill()
        try:
            process.communicate(timeout=_LEAVING_S)
        except subprocess.TimeoutExpired:
            return Answer(_SILENT, f"no answer within {limit_s:.0f} s, and it cannot be killed: the driver hangs")
        return Answer(_SILENT, f"no answer within {limit_s:.0f} s")
    return Answer(process.returncode, text)


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine.

    Args:
        root: where its files are.
        site: folders of its Python packages.
        python: major and minor number.
        run: gives the answer of a command, within so many seconds.
        now: its clock, in seconds since 1970.
    """

    root: Path = Path("/")
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    site: Sequence[str] = field(default_factory=lambda: sys.path)
    python: tuple[int, int] = sys.version_info[:2]
    arch: str = platform.machine()
    run: Run = run
    now: Callable[[], float] = time.time

    def path(self, name: str | Path) -> Path:
        """Where a file of the machine is, by its absolute name there."""
        return self.root / str(name).lstrip("/")

    def read(self, name: str | Path) -> str | None:
        """A small file's text; None where it cannot be read."""
        try:
            return self.path(name).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None

    def version(self, package: str) -> str | None:
        """The version of a package; nothing is imported."""
        found = self._distribution(package)
        return None if found is None else found.version

    def read_in(self, package: str, name: str) -> str | None:
        """The text of a package's file, by its path in site-packages."""
        found = self._distribution(package)
        path = None if found is None else Path(str(found.locate_file(name)))
        return path.read_text(encoding="utf-8", errors="replace") if path is not None and path.is_file() else None

    def _distribution(self, package: str) -> metadata.Distribution | None:
        return next(iter(metadata.distributions(name=package, path=list(self.site))), None)
