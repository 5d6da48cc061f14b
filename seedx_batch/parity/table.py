"""A comparison as tables for a person: Markdown that reads well in a terminal too, and JSON that holds the same.

Must never know records or engines: it is given comparison.report's values.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from seedx_batch.errors import StorageError

_ROLES = ("reference", "engine", "noise floor")
_TOTALS = (
    ("tokens, free-running", "num_tokens"),
    ("tokens that match", "num_matching"),
    ("token match rate", "token_match"),
    ("match rate, near-ties apart", "token_match_apart"),
    ("prefix match", "prefix_match"),
    ("divergences, of them near-ties", "num_divergences"),
    ("texts equal", "num_texts_equal"),
    ("places, same tokens scored", "num_places"),
    ("top-1 agreement", "top1_agreement"),
    ("top-1 flips, of them near-ties", "num_flips"),
    ("KL divergence, mean (max)", "kl"),
    ("cosine similarity", "cosine"),
    ("max absolute error", "max_error"),
    ("mean absolute error", "mean_error"),
    ("RMSE", "rmse"),
    ("mean relative error", "relative_error"),
)
_PROMPT_COLUMNS = (
    *("prompt", "tokens", "match", "rate", "first divergence", "text", "top-1", "KL", "cosine"),
    *("max AE", "mean AE", "RMSE", "mean RE"),
)


@dataclass(frozen=True, slots=True)
class Table:
    """Cells are texts; `notes` stand below."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


def tables(told: Mapping[str, Any]) -> list[Table]:
    """What was compared, the card's tables, the verdict."""
    comparisons = told["comparisons"]
    return [_sides(comparisons), _in_all(comparisons), *map(_of_prompts, comparisons[:2]), _verdict(told)]


def as_text(told: Mapping[str, Any]) -> str:
    """The report for a person."""
    lines = [f"# Parity: {told['comparisons'][0]['title']}"]
    for table in tables(told):
        lines += ["", f"## {table.title}", "", *_markdown(table)]
        lines += [line for note in table.notes for line in ("", note)]
    return "\n".join(lines)


def as_json(told: Mapping[str, Any]) -> str:
    """The report for a program; with the tables too, for one that only shows them."""
    tree = {**told, "tables": [asdict(table) for table in tables(told)]}
    return json.dumps(tree, ensure_ascii=False, indent=2, allow_nan=False)


def save(told: Mapping[str, Any], path: Path) -> None:
    """Writes the report as Markdown into an `.md`, as JSON into any other file.

    Raises:
        StorageError: it cannot be written; an earlier one is then untouched.
    """
    text = as_text(told) if path.suffix == ".md" else as_json(told)
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        unfinished.write_text(text + "\n", encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        raise StorageError(f"'{path}' cannot be written: {error.strerror or error}") from error


def _sides(comparisons: Sequence[Mapping[str, Any]]) -> Table:
    sides = [comparisons[0]["reference"], *(one["candidate"] for one in comparisons[:2])]
    rows = [
        [role, side["name"], f"{side['hardware']['device']}, {side['hardware']['processor']}", side["signature"]]
        for role, side in zip(_ROLES, sides, strict=False)
    ]
    return Table("What was compared", ["", "what", "device", "signature"], rows)


def _in_all(comparisons: Sequence[Mapping[str, Any]]) -> Table:
    further = [f"engine against {one['reference']['name']}" for one in comparisons[2:]]
    columns = ["", "engine", *(["noise floor"] if len(comparisons) > 1 else []), *further]
    rows = [[label, *(_total(one["totals"], figure) for one in comparisons)] for label, figure in _TOTALS]
    note = (
        f"Places: {comparisons[0]['distributions']}, mean-centred. A near-tie: the reference rates the two tokens less "
        f"than {comparisons[0]['near_tie']:g} nats apart."
    )
    return Table("In all", columns, rows, [note])


def _of_prompts(one: Mapping[str, Any]) -> Table:
    return Table(one["title"], _PROMPT_COLUMNS, [_prompt(prompt) for prompt in one["prompts"]])


def _total(totals: Mapping[str, Any], figure: str) -> str:
    value = totals[figure]
    if figure == "num_divergences":
        return f"{value}, {totals['num_near_ties']}"
    if figure == "num_flips":
        return f"{value}, {totals['num_flips_near_ties']}"
    if figure == "kl":
        return f"{_number(value)} ({_number(totals['kl_max'])})"
    if figure == "num_texts_equal":
        return f"{value} of {totals['num_texts']}"
    if figure in ("token_match", "token_match_apart", "prefix_match", "top1_agreement"):
        return f"{value:.1%}"
    if figure == "relative_error":
        return _percent(value)
    if figure == "cosine":
        return _cosine(value)
    return f"{value:,}" if isinstance(value, int) else _number(value)


def _prompt(prompt: Mapping[str, Any]) -> list[str]:
    place, gap = prompt["first_divergence"], prompt["gap"]
    told = "none" if place is None else f"{place}"
    if prompt["num_near_ties"]:
        told += f" (near-tie, {gap:.3f})"
    elif gap is not None:
        told += f" (gap {gap:.3f})"
    return [
        prompt["name"],
        str(prompt["num_tokens"]),
        str(prompt["num_matching"]),
        f"{prompt['token_match']:.1%}",
        told,
        "equal" if prompt["num_texts_equal"] else "differs",
        f"{prompt['top1_agreement']:.1%}",
        _number(prompt["kl"]),
        _cosine(prompt["cosine"]),
        *(_number(prompt[name]) for name in ("max_error", "mean_error", "rmse")),
        _percent(prompt["relative_error"]),
    ]


def _verdict(told: Mapping[str, Any]) -> Table:
    verdict = told["verdict"]
    criteria = verdict["criteria"]
    rows = [
        [
            criterion["name"],
            *(_percent(criterion[name]) for name in ("value", "threshold", "floor", "limit")),
            "yes" if criterion["holds"] else "NO",
        ]
        for criterion in criteria
    ]
    notes = []
    excused = [criterion["name"] for criterion in criteria if criterion["limit"] != criterion["threshold"]]
    if excused:
        factor = told["thresholds"]["floor_factor"]
        notes.append(
            f"The noise floor itself is beyond the threshold of: {', '.join(excused)}. No engine can be expected to "
            f"hold it with this model in this dtype: the limit is {factor:g} times the floor."
        )
    rates = " and ".join(
        f"{one['totals']['token_match']:.1%} ({role})"
        for role, one in zip(_ROLES[1:], told["comparisons"], strict=False)
    )
    notes.append(f"Token match with near-ties and what follows them: {rates}.")
    notes.append(f"The thresholds taken absolutely {'hold' if verdict['passed_absolutely'] else 'do not all hold'}.")
    notes.append(f"**{'passed' if verdict['passed'] else 'FAILED'}**")
    return Table("Verdict", ["criterion", "value", "threshold", "noise floor", "limit", "holds"], rows, notes)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _cosine(value: float | None) -> str:
    return "-" if value is None else f"{value:.6f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.3g} %"


def _markdown(table: Table) -> list[str]:
    rows = [table.columns, *table.rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(table.columns))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return [line(table.columns), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *map(line, table.rows)]
