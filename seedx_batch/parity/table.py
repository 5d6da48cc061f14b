"""A comparison as tables for a person: Markdown that reads well in a terminal too.

Must never know records or engines: it is given comparison.report's JSON values.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seedx_batch.errors import StorageError

Row = Sequence[str]

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


def as_text(told: Mapping[str, Any]) -> str:
    """The report: what was compared, the card's tables, the verdict."""
    comparisons = told["comparisons"]
    lines = [f"# Parity: {comparisons[0]['title']}", ""]
    sides = [comparisons[0]["reference"], *(one["candidate"] for one in comparisons[:2])]
    roles = ("reference", "engine", "noise floor")
    lines += _table(
        ["", "what", "device", "signature"],
        [
            [role, side["name"], f"{side['hardware']['device']}, {side['hardware']['processor']}", side["signature"]]
            for role, side in zip(roles, sides, strict=False)
        ],
    )
    lines += ["", "## In all", ""]
    has_floor = len(comparisons) > 1
    further = [f"engine against {one['reference']['name']}" for one in comparisons[2:]]
    lines += _table(
        ["", "engine", *(["noise floor"] if has_floor else []), *further],
        [[label, *(_total(one["totals"], figure) for one in comparisons)] for label, figure in _TOTALS],
    )
    lines += [
        "",
        f"Places: {comparisons[0]['distributions']}, mean-centred. A near-tie: the reference rates the two tokens less "
        f"than {comparisons[0]['near_tie']:g} nats apart.",
    ]
    for one in comparisons[:2]:
        lines += ["", f"## {one['title']}", ""]
        lines += _table(
            _PROMPT_COLUMNS,
            [_prompt(prompt) for prompt in one["prompts"]],
        )
    lines += ["", "## Verdict", "", *_verdict(told)]
    return "\n".join(lines)


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


def as_json(told: Mapping[str, Any]) -> str:
    """The report for a program."""
    return json.dumps(told, ensure_ascii=False, indent=2, allow_nan=False)


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
        *(_number(prompt[name]) for name in ("kl", "cosine", "max_error", "mean_error", "rmse")),
        _percent(prompt["relative_error"]),
    ]


def _verdict(told: Mapping[str, Any]) -> list[str]:
    verdict = told["verdict"]
    criteria = verdict["criteria"]
    lines = _table(
        ["criterion", "value", "threshold", "noise floor", "limit", "holds"],
        [
            [
                criterion["name"],
                *(_percent(criterion[name]) for name in ("value", "threshold", "floor", "limit")),
                "yes" if criterion["holds"] else "NO",
            ]
            for criterion in criteria
        ],
    )
    excused = [criterion["name"] for criterion in criteria if criterion["limit"] != criterion["threshold"]]
    if excused:
        factor = told["thresholds"]["floor_factor"]
        lines += [
            "",
            f"The noise floor itself is beyond the threshold of: {', '.join(excused)}. No engine can be expected to "
            f"hold it with this model in this dtype: the limit is {factor:g} times the floor.",
        ]
    absolutely = "hold" if verdict["passed_absolutely"] else "do not all hold"
    lines += [
        "",
        f"The thresholds taken absolutely {absolutely}.",
        f"**{'passed' if verdict['passed'] else 'FAILED'}**",
    ]
    return lines


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.6f}" if value > 0.5 else f"{value:.3g}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.3g} %"


def _table(heads: Row, rows: Sequence[Row]) -> list[str]:
    widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(len(heads))]

    def line(cells: Row) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return [line(heads), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *(line(row) for row in rows)]
