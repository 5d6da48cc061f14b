"""YAML that is plain data: read within bounds, and refused where it means more than texts, numbers, lists and mappings.

Must never know what the data mean.
"""

import math
import re
from collections.abc import Iterator
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent

from seedx_batch import telling
from seedx_batch.errors import Fault, SpecError

_MAX_CHARS = 1 << 20
_MAX_DEPTH = 50
_MAX_INT = 1 << 63
_MAX_REASON = 300
_UNWRITABLE = re.compile("[\ud800-\udfff]")
_IN_ENVIRONMENT = "take it out and put it into the environment (HF_TOKEN, ...), where no file and no message tells it"


def read(text: str, where: str, key: str = "") -> Any:
    """The data in a yaml text, with YAML 1.2's words: `no` is Norwegian, not false.

    Args:
        where: what faults call the text.
        key: the key that it is the value of.

    Raises:
        SpecError: with every fault: it is no YAML, too long or too deep, has aliases, types of Python's or dates, a key
            twice, a number that is none or too large, a secret.
    """
    if len(text) > _MAX_CHARS:
        raise SpecError(Fault(where, f"is longer than {_MAX_CHARS:,} characters"))
    try:
        _check_form(text, where)
        tree = YAML(typ="safe", pure=True).load(text)
    except SpecError:
        raise
    except Exception as error:  # constructors of numbers, dates and so on raise whatever Python does
        raise SpecError(Fault(where, f"is no valid YAML: {_reason(error)}")) from None  # whose text may be a secret
    faults = list(_faults(tree, where, "", key))
    if faults:
        raise SpecError(faults)
    return tree


def _check_form(text: str, where: str) -> None:
    """Looks at the text as a stream, before anything is built of it: a few lines of aliases can mean gigabytes."""
    depth = 0
    for event in YAML(typ="safe", pure=True).parse(text):
        if isinstance(event, AliasEvent):
            raise SpecError(Fault(f"{where}: line {event.start_mark.line + 1}", "an alias (*) cannot be used here"))
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > _MAX_DEPTH:
            place = f"{where}: line {event.start_mark.line + 1}"
            raise SpecError(Fault(place, f"is nested more than {_MAX_DEPTH} levels deep"))


def _faults(tree: Any, place: str, between: str, key: str) -> Iterator[Fault]:
    if isinstance(tree, dict):
        for name, value in tree.items():
            inner = f"{place}{between or ': '}{telling.shown(str(name)[:60])}"
            if not isinstance(name, str):
                yield Fault(inner, "must be a text: put it in quotes")
            elif telling.masked(name) != name or _UNWRITABLE.search(name):
                yield Fault(inner, "is no key that can be written")
            yield from _faults(value, inner, ".", str(name))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from _faults(value, f"{place}[{index}]", ".", key)
    elif isinstance(tree, str):
        if telling.masked(tree) != tree or (tree and telling.names_secret(key)):
            yield Fault(place, "holds a secret", _IN_ENVIRONMENT)
        elif _UNWRITABLE.search(tree):
            yield Fault(place, "holds half a surrogate pair, which no file can hold", "write the character itself")
    elif isinstance(tree, int):
        if not -_MAX_INT <= tree < _MAX_INT:
            yield Fault(place, "is a number of more than 64 bits")
    elif isinstance(tree, float):
        if not math.isfinite(tree):
            yield Fault(place, "is no finite number")
    elif tree is not None:
        yield Fault(place, f"is a {type(tree).__name__}, not a text, number, list or mapping", "put it in quotes")


def _reason(error: Exception) -> str:
    """What is wrong and where; nothing of the text itself but a word."""
    if isinstance(error, MarkedYAMLError):
        told = re.sub(r" with value .*", "", str(error.problem or error.context), flags=re.DOTALL)
        mark = error.problem_mark or error.context_mark
        at = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
        return telling.shown(f"{at}{' '.join(told.split())[:_MAX_REASON]}")
    return type(error).__name__
