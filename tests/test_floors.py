"""The house's structure: who may import whom, and which heavy import lives where."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "seedx_batch"

FLOORS = [
    {"errors", "records", "languages", "telling", "hardware"},
    {
        "stats",
        "spec",
        "prompts",
        "identity",
        "durable",
        "seal",
        "occupancy",
        "writer",
        "suspects",
        "memory",
        "signals",
        "error_rate",
        "plain_yaml",
    },
    {
        "sources",
        "rundir",
        "flight",
        "journal",
        "parts",
        "ledger",
        "platforms",
        "packaged",
        "models",
        "engine",
        "decoding",
    },
    {"plan", "shelf", "twins", "intake", "ahead"},
    {"loop", "retry", "footers"},
    {"worker"},
    {"executors", "status", "card", "supervision", "validate", "doctor", "parity"},
    {"report"},
    {"launch", "progress", "screen"},
    {"preview"},
    {"cli"},
    {"__main__"},
]
SIDEWAYS = {("models", "packaged"), ("prompts", "spec"), ("prompts", "plain_yaml"), ("spec", "plain_yaml")}
"""Imports within a floor that are allowed, importer first."""

HOMES = {
    "vllm": {"engine"},
    "torch": {"engine", "packaged"},
    "transformers": {"engine", "packaged"},
    "click": {"cli"},
    "tqdm": {"progress"},
    "pygal": {"report"},
    "pyarrow": {"sources", "parts", "journal", "rundir", "plan", "card", "shelf", "validate", "retry", "parity"},
    "subprocess": {"executors", "launch", "packaged", "engine", "doctor"},
}


def room_of(path: Path) -> str:
    """The room that a file belongs to: its module's name, or its package's."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it, by its full name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py" or path.parent != PACKAGE)


def test_every_room_has_a_floor() -> None:
    """The list of floors names the rooms that exist, and no others."""
    assert {room_of(path) for path in FILES} == set().union(*FLOORS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    """A module imports only from floors below its own, or from its own package."""
    room = room_of(path)
    floor = next(number for number, rooms in enumerate(FLOORS) if room in rooms)
    below = set().union(*FLOORS[:floor]) | {room} | {to for source, to in SIDEWAYS if source == room}
    ours = {name.split(".")[1] for name in imports_of(path) if name.startswith("seedx_batch.")}
    assert ours & set().union(*FLOORS) <= below


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_imports_have_homes(path: Path) -> None:
    """vllm, torch, click and the like are imported only where they live."""
    for name in {name.split(".")[0] for name in imports_of(path)} & HOMES.keys():
        assert room_of(path) in HOMES[name], f"{name} has no home in {room_of(path)}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_assert_outside_tests(path: Path) -> None:
    """Checks of the program are errors with a message, not asserts."""
    assert not any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


UNSAFE = {"eval", "exec", "pickle", "cPickle", "marshal", "shelve", "dill", "joblib"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_runs_what_it_reads(path: Path) -> None:
    """No module evaluates texts, unpickles, or starts a shell."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not {name.split(".")[0] for name in imports_of(path)} & UNSAFE
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in UNSAFE | {"compile", "os.system", "os.popen", "np.load", "numpy.load", "torch.load"}
            assert not any(keyword.arg in ("shell", "allow_pickle") for keyword in node.keywords)
