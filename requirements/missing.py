"""Says what this Python lacks of the project's dependencies, and what it has.

Installs nothing, and must never know which Python that is.
"""

import argparse
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path

try:
    from packaging.requirements import Requirement
    from packaging.version import InvalidVersion, Version
except ImportError:  # pip carries a copy, and is needed anyhow where something is missing
    from pip._vendor.packaging.requirements import Requirement  # type: ignore[assignment]
    from pip._vendor.packaging.version import InvalidVersion, Version  # type: ignore[assignment]

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"


def main() -> None:
    """Print the requirements that are not met, one a line, or with --pins every installed package as NAME==VERSION."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("extras", nargs="*", help="Extras of pyproject.toml to look at, besides the dependencies.")
    parser.add_argument("--pins", action="store_true", help="Print what is installed instead.")
    arguments = parser.parse_args()
    for line in installed() if arguments.pins else missing(wanted(arguments.extras)):
        print(line)


def wanted(extras: Iterable[str]) -> list[str]:
    """The requirements of the project and of these extras, as pyproject.toml has them."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    return [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]


def missing(requirements: Iterable[str]) -> Iterator[str]:
    """The requirements whose package is not installed; one that is too old is only warned of."""
    for requirement in map(Requirement, requirements):
        if requirement.marker and not requirement.marker.evaluate():
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            yield str(requirement).replace(" ", "")
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            has = f"{sys.executable} has {requirement.name} {found}"
            sys.stderr.write(f"seedx-batch: warning: {has}, wanted is {requirement}; left as it is\n")


def installed() -> Iterator[str]:
    """Every installed package, pinned: pip, constrained by these, can add packages and replace none."""
    versions: dict[str, str] = {}
    for distribution in distributions():
        if distribution.metadata["Name"] and is_version(distribution.version):
            versions.setdefault(distribution.metadata["Name"], distribution.version)
    return (f"{name}=={number}" for name, number in sorted(versions.items()))


def is_version(text: str) -> bool:
    """Whether pip can read this version; it stops at a constraint that it cannot."""
    try:
        Version(text)
    except InvalidVersion:
        return False
    return True


if __name__ == "__main__":
    main()
