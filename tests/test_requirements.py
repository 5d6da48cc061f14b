"""Proves that the locks are complete, and that a Python which is not ours loses nothing to a set-up.

Must never know the network: the packages that pip finds here are made by the tests.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import venv
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
LEFT_OUT = {"torchaudio", "torchcodec", "torchvision", "triton"}


def lock(name: str) -> list[Requirement]:
    """The pins of one lock."""
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    return [Requirement(line) for line in lines if not line.startswith("#")]


def load_missing() -> ModuleType:
    """requirements/missing.py, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("missing", ROOT / "requirements/missing.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["cpu.lock", "dev.lock"])
def test_locks_pin_every_line(name: str) -> None:
    """Every line of a lock is one package at one version, under its normal name, and needed for text."""
    for pin in lock(name):
        assert re.fullmatch(r"==[0-9][0-9a-z.]*", str(pin.specifier)), pin
        assert pin.name == canonicalize_name(pin.name)
        assert pin.name not in LEFT_OUT


def test_locks_do_not_overlap() -> None:
    """The second lock only adds to the first, so the two can be installed together."""
    assert not {pin.name for pin in lock("cpu.lock")} & {pin.name for pin in lock("dev.lock")}


@pytest.mark.parametrize(
    ("extras", "names"), [(["cpu", "packaged"], ["cpu.lock"]), (["cpu", "packaged", "dev"], ["cpu.lock", "dev.lock"])]
)
def test_locks_meet_pyproject(extras: list[str], names: list[str]) -> None:
    """Every requirement of pyproject.toml is pinned at a version that it allows."""
    pinned = {
        pin.name: next(iter(pin.specifier)).version
        for name in names
        for pin in lock(name)
        if not pin.marker or pin.marker.evaluate()
    }
    for line in load_missing().wanted(extras):
        wanted = Requirement(line)
        assert wanted.specifier.contains(pinned[canonicalize_name(wanted.name)]), line


def test_locks_are_complete() -> None:
    """What the pinned packages require is pinned as well: with --no-deps nothing else would bring it."""
    pins = {
        pin.name: pin.specifier
        for name in ("cpu.lock", "dev.lock")
        for pin in lock(name)
        if not pin.marker or pin.marker.evaluate()
    }
    reached = {(name, "") for name in pins}
    pending = list(reached)
    num_seen = 0
    while pending:
        name, extra = pending.pop()
        requires = requirements_here(name, pins.get(name, SpecifierSet()))
        num_seen += bool(requires)
        for requirement in map(Requirement, requires):
            if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
                continue
            needed = canonicalize_name(requirement.name)
            assert needed in pins or needed in LEFT_OUT, f"{name} requires {requirement}"
            new = {(needed, each) for each in requirement.extras or {""}} - reached
            reached |= new
            pending += new
    assert num_seen, "none of the pinned packages is installed here"


def requirements_here(name: str, pin: SpecifierSet) -> list[str]:
    """What a package requires, if it is installed here as pinned; torch's build for GPUs names CUDA's libraries too."""
    try:
        found = distribution(name)
    except PackageNotFoundError:
        return []
    if not pin.contains(found.version, prereleases=True) or (name == "torch" and not found.version.endswith("+cpu")):
        return []
    return found.requires or []


def test_missing_names_what_is_not_installed(capsys: pytest.CaptureFixture[str]) -> None:
    """Only packages that are not there are asked for; one that is too old is left alone, with a warning."""
    lines = ["no-such-package>=1", "pytest>=1", "pytest>=999", "other-package ; python_version < '3'"]
    assert list(load_missing().missing(lines)) == ["no-such-package>=1"]
    warning = capsys.readouterr().err
    assert "pytest>=999; left as it is" in warning
    assert warning.count("\n") == 1


def write_package(folder: Path, name: str, version: str, requires: str = "") -> list[Path]:
    """A package of one module, as files of a site-packages folder."""
    about = folder / f"{name}-{version}.dist-info"
    (folder / name).mkdir(parents=True)
    about.mkdir()
    contents = {
        folder / name / "__init__.py": f"__version__ = {version!r}\n",
        about / "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        + (f"Requires-Dist: {requires}\n" if requires else ""),
        about / "WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        about / "RECORD": "",
    }
    for path, text in contents.items():
        path.write_text(text)
    return list(contents)


def write_wheel(folder: Path, name: str, version: str, requires: str = "") -> None:
    """A wheel of one module, as pip finds it with --find-links."""
    source = folder / f"{name}-{version}.source"
    paths = write_package(source, name, version, requires)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path in paths:
            wheel.write(path, path.relative_to(source))


@pytest.mark.process
def test_set_up_replaces_nothing_in_a_container(tmp_path: Path) -> None:
    """A real pip adds what is missing and fits the container's torch, though a newer torch is to be had."""
    project, container, wheels = tmp_path / "project", tmp_path / "container", tmp_path / "wheels"
    (project / "requirements").mkdir(parents=True)
    for name in ("setup.sh", "missing.py", "cpu.lock", "dev.lock"):
        shutil.copy(ROOT / "requirements" / name, project / "requirements" / name)
    (project / "pyproject.toml").write_text(
        '[project]\nname = "seedx-batch"\ndependencies = ["reader>=1"]\n'
        '[project.optional-dependencies]\npackaged = ["numpy>=9"]\n'
    )
    venv.create(container, with_pip=True)
    site = next(container.glob("lib/python*/site-packages"))
    vendors = {
        "torch": "2.9.0",
        "torch_npu": "2.9.0",
        "vllm": "0.18.0+empty",
        "vllm_ascend": "0.18.0",
        "numpy": "1.26.4",
    }
    for name, version in vendors.items():
        write_package(site, name, version)
    wheels.mkdir()
    write_wheel(wheels, "torch", "9.0")
    write_wheel(wheels, "numpy", "9.0")
    write_wheel(wheels, "reader", "1.5", requires="torch>=2")
    write_wheel(wheels, "reader", "2.0", requires="torch>=9")
    before = {path: path.read_bytes() for name in vendors for path in site.glob(f"{name}*/*") if path.is_file()}

    environment = {
        "PATH": f"{container}/bin:/usr/bin:/bin",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheels),
    }
    setup = [project / "requirements/setup.sh"]
    first = subprocess.run(setup, env=environment, capture_output=True, text=True, check=True)
    assert first.stdout.strip() == str(container / "bin/python3")
    assert "adding to" in first.stderr
    assert (site / "reader/__init__.py").read_text() == "__version__ = '1.5'\n"
    assert before == {path: path.read_bytes() for name in vendors for path in site.glob(f"{name}*/*") if path.is_file()}
    assert "numpy 1.26.4, wanted is numpy>=9; left as it is" in first.stderr

    second = subprocess.run(setup, env=environment, capture_output=True, text=True, check=True)
    assert (second.stdout, "adding to" in second.stderr) == (first.stdout, False)
