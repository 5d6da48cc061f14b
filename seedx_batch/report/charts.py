"""Charts as SVG that follows the page's colours; the only room that knows pygal.

A chart holds numbers alone: what they mean is the page's to say, in any language, and no text of a row gets in.
"""

import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pygal
from pygal.style import Style

from seedx_batch.report.timeline import Curve, Timeline
from seedx_batch.stats import Histogram

# pygal adds a finder of plugins, which Python 3.11 warns of at every later import, as it lacks `find_spec`.
sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, pygal.PluginImportFixer)]

_WIDTH, _HEIGHT = 440, 230
_STYLE = Style(
    background="transparent",
    plot_background="transparent",
    foreground="var(--ink)",
    foreground_strong="var(--ink)",
    foreground_subtle="var(--line)",
    colors=("var(--c1)", "var(--c2)", "var(--c3)"),
    font_family="inherit",
    label_font_size=13,
    major_label_font_size=13,
)
_UNITS = {"hours": 3600.0, "minutes": 60.0, "seconds": 1.0}
_NUM_BARS = 32
_MOST_STARTS = 200


def unit_of(seconds: float) -> tuple[str, float]:
    """The unit of time that an axis of so many seconds is best told in, and its seconds."""
    return next(((name, size) for name, size in _UNITS.items() if seconds >= 3 * size), ("seconds", 1.0))


def over_time(name: str, seconds: Sequence[float], values: Sequence[float], unit_s: float) -> str:
    """A curve over time; '' where there is no time."""
    if not values:
        return ""
    chart = pygal.XY(**_settings(show_dots=False, fill=True, include_x_axis=True))
    chart.add("", [(second / unit_s, value) for second, value in zip(seconds, values, strict=True)])
    return _svg(chart, name, 0, seconds[-1] / unit_s)


def throughput(curve: Curve, unit_s: float) -> str:
    """Output tokens a second over time."""
    return over_time("throughput", curve.seconds, curve.tokens_per_s, unit_s)


def in_flight(curve: Curve, unit_s: float) -> str:
    """Rows in flight over time."""
    return over_time("in-flight", curve.seconds, curve.in_flight, unit_s)


def lengths(name: str, histogram: Histogram) -> str:
    """How many rows are how long; the longest 1 % are left out where they would squeeze all others."""
    least, most = histogram.min, longest_shown(histogram)
    if least is None or most is None:
        return ""
    width = max(1, -(-(most + 1 - least) // _NUM_BARS))
    bars: dict[int, int] = {}
    for value, count in histogram.counts.items():
        if value <= most:
            begin = least + (value - least) // width * width
            bars[begin] = bars.get(begin, 0) + count
    chart = pygal.Histogram(**_settings(include_x_axis=True))
    chart.add("", [(count, begin, begin + width) for begin, count in sorted(bars.items())])
    return _svg(chart, name, least, most + 1)


def longest_shown(histogram: Histogram) -> int | None:
    """The greatest length that `lengths` draws."""
    p99, most = histogram.percentile(99), histogram.max
    return p99 if p99 is not None and most is not None and most > 2 * p99 + 8 else most


def starts(timeline: Timeline, unit_s: float) -> str:
    """When every worker was loading and running, a line for each rank, and a dot where an engine died."""
    shown = timeline.starts[-_MOST_STARTS:]
    if not shown:
        return ""
    origin = shown[0].began
    ranks = sorted({start.rank for start in shown})
    loading: list[Any] = []
    running: list[Any] = []
    died: list[Any] = []
    for start in shown:
        y = len(ranks) - ranks.index(start.rank)
        began, loaded, ended = ((t - origin) / unit_s for t in (start.began, start.loaded or start.ended, start.ended))
        loading += [(began, y), (loaded, y), None]
        running += [(loaded, y), (ended, y), None] if start.loaded else []
        died += [(ended, y)] if start.outcome in ("died", "killed", "failed") else []
    end = max(start.ended for start in shown)
    height = 60 + 30 * min(len(ranks), 20)
    chart = pygal.XY(
        **_settings(height=height, show_dots=False, allow_interruptions=True, show_y_guides=False, show_x_guides=True)
    )
    chart.range = (0.4, len(ranks) + 0.6)
    chart.y_labels = [{"value": len(ranks) - place, "label": str(rank)} for place, rank in enumerate(ranks)]
    chart.add("", running)
    chart.add("", loading)
    chart.add("", died, stroke=False, show_dots=True, dots_size=4)
    return _svg(chart, "starts", 0, (end - origin) / unit_s)


def _settings(**more: Any) -> dict[str, Any]:
    settings = {
        "style": _STYLE,
        "width": _WIDTH,
        "height": _HEIGHT,
        "js": (),
        "show_legend": False,
        "margin": 6,
        "margin_right": 14,
        "max_scale": 6,
        "value_formatter": _compact,
        "x_value_formatter": _compact,
        "disable_xml_declaration": True,
        "print_values": False,
        "min_scale": 3,
    }
    return settings | more


def _svg(chart: Any, name: str, first: float, last: float) -> str:
    """The chart's SVG without what makes it move, under a name of its own in the page."""
    chart.uuid = name
    chart.x_labels = _ticks(first, last)
    chart.xrange = (first, max(last, first + 1e-9))
    root = chart.render_tree()
    _each(root, lambda parent, child: parent.remove(child) if child.tag == "script" else None)
    root.set("role", "img")
    root.set("aria-labelledby", f"about-{name}")
    return ElementTree.tostring(root, encoding="unicode", method="html")


def _each(parent: Any, visit: Callable[[Any, Any], None]) -> None:
    for child in list(parent):
        _each(child, visit)
        visit(parent, child)


def _ticks(first: float, last: float) -> list[float]:
    """About five round numbers between two."""
    span = max(last - first, 1e-9)
    step = next(
        (10.0**power * digit for power in range(-9, 16) for digit in (1, 2, 5) if span <= 10.0**power * digit * 6), span
    )
    tick = -(-first // step)
    return [round(number * step, 9) for number in range(int(tick), int(last // step) + 1)]


def _compact(value: float | Mapping[str, float]) -> str:
    """A number as an axis shows it: 1.5k, 20M."""
    number = float(value) if isinstance(value, int | float) else 0.0
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"
