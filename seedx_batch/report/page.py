"""The page: everything that a report tells, put into one HTML file that needs no network and runs no script.

Must never know where the figures come from. Text of rows is escaped by the template engine, as all text is; only the
charts and the words are marked as HTML, and neither holds any.
"""

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib import resources
from typing import Any, Literal

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from seedx_batch.telling import shown

Language = Literal["en", "zh"]


def render(language: Language, values: Mapping[str, Any]) -> str:
    """The page with these values; both languages are in it, and `language` is the one that is shown at first."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, finalize=_safe, trim_blocks=False)
    template = environment.from_string(_file("page.html"))
    formats: dict[str, Callable[..., Any]] = {
        "w": _words,
        "number": lambda value: f"{value:,}",
        "millions": lambda value: f"{value:,}" if value < 10_000_000 else f"{value / 1_000_000:,.5g} M",
        "figure": _figure,
        "percent": lambda share: f"{100 * share:.1f} %",
        "duration": _duration,
        "moment": _moment,
        "size": size,
    }
    return template.render(language=language, css=Markup(_file("page.css")), **formats, **values)


def size(num_bytes: int | None) -> str:
    """A number of bytes for a person."""
    if num_bytes is None:
        return "?"
    for power, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if num_bytes >= 1 << power:
            return f"{num_bytes / (1 << power):.3g} {unit}"
    return f"{num_bytes} B"


@cache
def vocabulary() -> dict[str, tuple[str, str]]:
    """Every word of the page by its key: English, Chinese."""
    return {key: (english, chinese) for key, (english, chinese) in json.loads(_file("words.json")).items()}


def _words(key: str, **values: Any) -> Markup:
    """A word or sentence in both languages, of which the page shows one; a key without words stands for itself."""
    pair = vocabulary().get(key)
    if pair is None:
        return escape(shown(key))
    safe = {name: _safe(value) for name, value in values.items()}
    return Markup("").join(
        Markup('<span lang="{}">{}</span>').format(language, Markup(text).format(**safe))
        for language, text in zip(("en", "zh"), pair, strict=True)
    )


def _safe(value: Any) -> Any:
    """Text without control characters and secrets; it is escaped later."""
    return shown(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:,.4g}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    return f"{seconds:.1f} s" if seconds < 100 else str(timedelta(seconds=round(seconds)))


def _moment(t: float) -> str:
    return datetime.fromtimestamp(t, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _file(name: str) -> str:
    return resources.files("seedx_batch.report").joinpath(name).read_text(encoding="utf-8")
