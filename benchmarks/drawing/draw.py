"""Draws the figures of docs/scale/: python draw.py FIGURES.json FOLDER

Runs in an environment of its own, which has matplotlib and nothing of this project.
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

PLACES = {
    "rows": ("rows", "share of full speed"),
    "tail": ("rows", "share of the time in the tail"),
    "workers": ("workers", "share of full speed"),
    "shards": ("rows per shard", "share of full speed"),
}


def draw(name: str, figure: dict[str, Any], path: Path) -> None:
    """One figure, on white, so that it can be read on any page."""
    across, up = PLACES[name]
    chart, axes = plt.subplots(figsize=(8, 4.5), facecolor="white")
    for number, (label, points) in enumerate(figure["series"].items()):
        xs, ys = zip(*points, strict=True)
        axes.plot(xs, ys, marker="osD^v<>"[number % 7], linestyle="--" if "drained" in label else "-", label=label)
    axes.set(xscale="log", xlabel=across, ylabel=up, title=figure["title"], ylim=(0, 1.04))
    axes.title.set_fontsize(10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    chart.tight_layout()
    chart.savefig(path, metadata={"Date": None})
    plt.close(chart)


def main() -> None:
    """Draws every figure of the file."""
    mpl.use("svg")
    mpl.rcParams |= {"svg.hashsalt": "seedx-batch", "svg.fonttype": "none"}  # the same figures give the same files
    figures, folder = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        draw(name, figure, folder / f"{name}.svg")


if __name__ == "__main__":
    main()
