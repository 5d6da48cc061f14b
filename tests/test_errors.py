"""The error tree."""

import re

from seedx_batch import errors
from seedx_batch.errors import Fault, SeedxBatchError, SpecError


def drawn() -> dict[str, tuple[str, str]]:
    """Class name -> (parent's name, exit code) as the docstring of errors.py draws them."""
    tree: dict[str, tuple[str, str]] = {}
    parents = ["SeedxBatchError"]
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"^ {4}([│├└─ ]*)(\w+)\s*(\d\d|-)?", line)
        if found and found[1]:
            depth = len(found[1]) // 4
            code = found[3] or tree[parents[depth - 1]][1]
            tree[found[2]] = (parents[depth - 1], code)
            parents[depth:] = [found[2]]
    return tree


def test_the_drawing_is_the_tree() -> None:
    """The tree drawn in the docstring names every class with its parent and its exit code."""
    classes = {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, SeedxBatchError) and value is not SeedxBatchError
    }
    told = drawn()
    assert told.keys() == classes.keys()
    for name, (parent, code) in told.items():
        assert classes[name].__bases__[0].__name__ == parent
        if code != "-":
            assert classes[name].exit_code == int(code)


def test_a_spec_error_tells_every_fault() -> None:
    """Each fault is a line: where, what, what to do."""
    error = SpecError([Fault("a.b", "is wrong", "mend it"), Fault("c", "is missing")])
    assert str(error).splitlines() == ["a.b: is wrong, mend it", "c: is missing"]
