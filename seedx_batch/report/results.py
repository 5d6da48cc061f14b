"""Results that other commands have left in the run directory, as tables, whatever their fields are.

Must never know what a field means.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MOST_BYTES = 4_000_000
_MOST_ROWS = 60
_MOST_COLUMNS = 14
_MOST_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Table:
    """Cells as text under a title; no head where there are two columns of name and value."""

    title: str
    head: list[str]
    rows: list[list[str]]


def tables(path: Path) -> list[Table]:
    """The tables of a JSON file: one of its plain values by dotted name, and one for every list of mappings in it.

    There are none where there is no file; one that is no JSON, or is too long, is one table that says so.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            return [Table("", [], [[path.name, f"{path.stat().st_size:,} bytes"]])]
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError) as error:
        return [Table("", [], [[path.name, _cell(str(error))]])]
    values: list[list[str]] = []
    lists: list[Table] = []
    _collect(tree, "", values, lists)
    plain = [Table("", [], values[:_MOST_ROWS])] if values else []
    return plain + [table for table in lists if table.rows]


def _collect(tree: Any, name: str, values: list[list[str]], lists: list[Table]) -> None:
    if isinstance(tree, Mapping):
        for key, branch in tree.items():
            _collect(branch, f"{name}.{key}" if name else str(key), values, lists)
    elif isinstance(tree, list) and tree and all(isinstance(entry, Mapping) for entry in tree):
        head = list(dict.fromkeys(str(key) for entry in tree for key in entry))[:_MOST_COLUMNS]
        lists.append(Table(name, head, [[_cell(entry.get(key)) for key in head] for entry in tree[:_MOST_ROWS]]))
    else:
        values.append([name, _cell(tree)])


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.6g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    text = value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS] + "…"
