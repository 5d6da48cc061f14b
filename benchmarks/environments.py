"""Virtual environments for what this project is compared with, made once under .cache/bench/ and kept.

Must never know what runs in them.
"""

import fcntl
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).parent.parent / ".cache" / "bench"


def python_of(name: str, requirements: Sequence[str]) -> Path:
    """The Python of the environment of that name; made first, or made anew where it has other requirements.

    Args:
        requirements: as pip takes them on its command line, options included.

    Raises:
        CalledProcessError: pip could not install them; what it said is on the terminal.
    """
    folder = FOLDER / name
    python = folder / "bin" / "python"
    made_of = folder / "requirements.txt"  # written last: an environment without it is not whole
    wanted = "".join(f"{requirement}\n" for requirement in requirements)
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two benchmarks may want it at the same time
        if made_of.is_file() and made_of.read_text(encoding="utf-8") == wanted:
            return python
        if folder.exists():
            shutil.rmtree(folder)
        print(f"making the environment {name}: {' '.join(requirements)}", file=sys.stderr, flush=True)
        venv.create(folder, with_pip=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements]
        subprocess.run(install, check=True, stdout=sys.stderr)
        made_of.write_text(wanted, encoding="utf-8")
    return python


def versions_of(python: Path, packages: Sequence[str]) -> dict[str, str]:
    """The versions of some packages in an environment, by name.

    Raises:
        CalledProcessError: one of them is not installed there.
    """
    code = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]), sep='\\n')"
    done = subprocess.run([python, "-c", code, *packages], check=True, capture_output=True, text=True)
    return dict(zip(packages, done.stdout.split(), strict=True))
