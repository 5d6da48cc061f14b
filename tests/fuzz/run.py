"""Fuzzes every target for a while with atheris: `make fuzz`. A line for each: executions, findings.

python tests/fuzz/run.py [--seconds 20] [--seed 1] [--executions 0] [TARGET ...]
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
MAX_BYTES = 4096
TIMEOUT_S = 20
MEMORY_MIB = 3000


def main() -> int:
    """Fuzzes the targets that were named, or all; the exit code is 1 if one has a finding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*")
    parser.add_argument("--seconds", type=int, default=20, help="for each target")
    parser.add_argument("--executions", type=int, default=0, help="for each target, instead of a time")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    given, rest = parser.parse_known_args()
    if given.inside:
        return _fuzz(given.inside, rest)
    if rest:
        parser.error(f"not understood: {' '.join(rest)}")
    names = re.findall(r"^@target\ndef (\w+)", (HERE / "targets.py").read_text(encoding="utf-8"), re.MULTILINE)
    unknown = set(given.targets) - set(names)
    if unknown:
        parser.error(f"no such target: {', '.join(sorted(unknown))}; there are: {', '.join(names)}")
    num_findings = sum(_run(name, given) for name in given.targets or names)
    print(f"{'all':<16} {num_findings} findings")
    return int(num_findings > 0)


def _run(name: str, given: argparse.Namespace) -> int:
    """One target in a process of its own, as a finding may be a crash of the interpreter."""
    found = HERE / "found" / name
    found.mkdir(parents=True, exist_ok=True)
    bound = [f"-runs={given.executions}"] if given.executions else [f"-max_total_time={given.seconds}"]
    ended = subprocess.run(
        [
            *[sys.executable, __file__, "--inside", name, *bound, f"-seed={given.seed}", f"-max_len={MAX_BYTES}"],
            *[f"-timeout={TIMEOUT_S}", f"-rss_limit_mb={MEMORY_MIB}", f"-artifact_prefix={found}/"],
            *["-print_final_stats=1", "-verbosity=1"],
        ],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    told = re.search(r"stat::number_of_executed_units: (\d+)", ended.stderr)
    count = int(told[1]) if told else 0
    findings = int(ended.returncode != 0)
    print(f"{name:<16} {count:>9,} executions  {findings} findings  seed {given.seed}", flush=True)
    if findings:
        (found / "log").write_text(ended.stdout + ended.stderr, encoding="utf-8")
        lines = [line for line in (ended.stdout + ended.stderr).splitlines() if line.strip() and line[0] != "#"]
        print("\n".join(f"    {line[:200]}" for line in lines[-25:]), flush=True)
    return findings


def _fuzz(name: str, arguments: list[str]) -> int:
    import atheris

    with atheris.instrument_imports(include=["seedx_batch", "jinja2", "ruamel"]):
        from tests.fuzz.targets import TARGETS

    corpus = HERE / "corpus" / name
    with tempfile.TemporaryDirectory() as grown:  # the first folder is where libFuzzer puts what it finds of interest
        corpora = [grown, *([str(corpus)] if corpus.is_dir() else [])]
        atheris.Setup([sys.argv[0], *arguments, *corpora], TARGETS[name])
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
