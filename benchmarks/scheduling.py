"""Scheduling at scale on a virtual clock, from one worker to a thousand: python benchmarks/scheduling.py

The schedule of a worker is that of the simulated engine (checked against it at the start), but for whole files at a
time: a row begins when a sequence is free, and a step's time follows from what is in it. Writes docs/scale/*.svg.
"""

import argparse
import heapq
import itertools
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import measuring
import numpy as np
import numpy.typing as npt
from environments import FOLDER, python_of

from seedx_batch.engine.simulated import MEASURED, SimulatedEngine, StepCost
from seedx_batch.records import Request, RequestId, RowKey

DOCS = Path(__file__).parent.parent / "docs" / "scale"
MATPLOTLIB = "matplotlib==3.11.2"
MAX_NUM_SEQS = 64
FLAT = StepCost(step_s=0.025, per_sequence_s=0.0, per_prefilled_token_s=0.0)
COSTS = {"two CPU cores (measured)": MEASURED, "accelerator (flat, 25 ms)": FLAT}
ACCELERATOR = "accelerator (flat, 25 ms)"
LENGTHS = ("fixed", "varied", "heavy-tailed")
LONGEST = 512

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a job: tokens of their prompts and of their outputs."""

    prompts: Ints
    outputs: Ints

    def take(self, rows: Ints) -> "Rows":
        """Some of them."""
        return Rows(self.prompts[rows], self.outputs[rows])


def draw(kind: str, num_rows: int) -> Rows:
    """Output lengths with a median of 50 tokens; prompts are as long as their outputs, and 25 tokens of frame."""
    spread = {"fixed": 0.0, "varied": 0.7, "heavy-tailed": 1.3}[kind]
    lengths = np.exp(np.log(50) + spread * np.random.default_rng(0).standard_normal(num_rows))
    outputs = np.clip(np.rint(lengths), 1, LONGEST).astype(np.int64)
    return Rows(25 + outputs, outputs)


@dataclass(frozen=True, slots=True)
class Ran:
    """What one worker took on the virtual clock.

    Args:
        seconds: from the first step to the last.
        tail_s: of them, those after the last row was begun.
    """

    seconds: float
    tail_s: float
    num_steps: int


def run(rows: Rows, cost: StepCost, max_num_seqs: int = MAX_NUM_SEQS) -> Ran:
    """One worker's rows in their order, its batch never drained."""
    num_rows = len(rows.outputs)
    free = [0] * min(max_num_seqs, num_rows)
    begins = np.empty(num_rows, np.int64)
    for row, length in enumerate(rows.outputs.tolist()):
        begins[row] = free[0]
        heapq.heapreplace(free, free[0] + length)
    num_steps = max(free, default=0)
    changes = np.bincount(begins, minlength=num_steps + 1) - np.bincount(begins + rows.outputs, minlength=num_steps + 1)
    running = np.cumsum(changes[:num_steps])
    prefilled = np.bincount(begins, weights=rows.prompts, minlength=num_steps)[:num_steps]
    seconds = cost.step_s + cost.per_sequence_s * running + cost.per_prefilled_token_s * prefilled
    return Ran(float(seconds.sum()), float(seconds[int(begins[-1]) + 1 :].sum()), num_steps)


def ideal_s(rows: Rows, cost: StepCost, num_workers: int, max_num_seqs: int = MAX_NUM_SEQS) -> float:
    """Seconds of full batches only, the work dealt out evenly."""
    num_tokens = float(rows.outputs.sum())
    full_steps = num_tokens / max_num_seqs
    return (
        full_steps * cost.step_s
        + num_tokens * cost.per_sequence_s
        + float(rows.prompts.sum()) * cost.per_prefilled_token_s
    ) / num_workers


def workers(rows: Rows, cost: StepCost, num_workers: int, rows_per_shard: int) -> list[Ran]:
    """What each of the workers took that have a shard: shards rank, rank + num_workers, ..."""
    shards = np.arange(len(rows.outputs)) // rows_per_shard
    ranks = shards % num_workers
    order = np.argsort(ranks, kind="stable")
    bounds = np.searchsorted(ranks[order], np.arange(num_workers + 1))
    return [run(rows.take(order[start:end]), cost) for start, end in itertools.pairwise(bounds) if end > start]


def check() -> None:
    """Makes sure that a schedule is the simulated engine's, in steps and on its clock.

    Raises:
        SystemExit: it is not.
    """
    for kind in LENGTHS:
        rows = draw(kind, 500)
        engine = SimulatedEngine(16)
        for number, (prompt, output) in enumerate(zip(rows.prompts, rows.outputs, strict=True)):
            params = {"temperature": 0, "max_tokens": int(output), "ignore_eos": True}
            engine.add(Request(RequestId(RowKey(0, number), 0), [1] * int(prompt), params))
        while engine.num_unfinished:
            engine.step()
        ran = run(rows, MEASURED, 16)
        if ran.num_steps != engine.num_steps or abs(ran.seconds - engine.clock_s) > 1e-6 * engine.clock_s:
            raise SystemExit(f"{kind}: {ran} is not what the engine did: {engine.num_steps}, {engine.clock_s}")


Series = Mapping[str, list[tuple[float, float]]]


def by_rows(most: int) -> dict[str, Series]:
    """Share of full speed of one worker, and the tail's share, by rows."""
    speed: dict[str, list[tuple[float, float]]] = {}
    tail: dict[str, list[tuple[float, float]]] = {}
    for kind in LENGTHS:
        for num_rows in _decades(1_000, most):
            rows = draw(kind, num_rows)
            for name, cost in COSTS.items():
                ran = run(rows, cost)
                label = f"{kind}, {name}"
                speed.setdefault(label, []).append((num_rows, ideal_s(rows, cost, 1) / ran.seconds))
                tail.setdefault(label, []).append((num_rows, ran.tail_s / ran.seconds))
    return {"rows": speed, "tail": tail}


def by_workers(most: int) -> Series:
    """Share of full speed of all workers together, until the last one ends, by workers."""
    found: dict[str, list[tuple[float, float]]] = {}
    for num_rows in _decades(10_000, most):
        rows = draw("varied", num_rows)
        for num_workers in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024):
            longest = max(ran.seconds for ran in workers(rows, FLAT, num_workers, 5_000))
            share = ideal_s(rows, FLAT, num_workers) / longest
            found.setdefault(f"{num_rows:,} rows", []).append((num_workers, share))
    return found


def by_shard(most: int) -> Series:
    """The same by rows per shard, and what a worker that ends every shard before it begins the next would do."""
    found: dict[str, list[tuple[float, float]]] = {}
    rows = draw("varied", most)
    for num_workers in (1, 16, 256):
        for rows_per_shard in (32, 128, 512, 2_000, 5_000, 20_000, 100_000):
            longest = max(ran.seconds for ran in workers(rows, FLAT, num_workers, rows_per_shard))
            point = (rows_per_shard, ideal_s(rows, FLAT, num_workers) / longest)
            found.setdefault(f"{num_workers} worker{'s' * (num_workers > 1)}", []).append(point)
    for rows_per_shard in (32, 128, 512, 2_000, 5_000, 20_000, 100_000):
        starts = range(0, most, rows_per_shard)
        drained = sum(run(rows.take(np.arange(at, min(most, at + rows_per_shard))), FLAT).seconds for at in starts)
        found.setdefault("1 worker, drained after every shard", []).append(
            (rows_per_shard, ideal_s(rows, FLAT, 1) / drained)
        )
    return found


def _decades(least: int, most: int) -> list[int]:
    return [least * 10**power for power in range(8) if least * 10**power <= most]


def lines_of(series: Series) -> tuple[list[str], list[list[str]]]:
    """A table's head and lines: a column for each place."""
    places = sorted({place for points in series.values() for place, _ in points})
    lines = []
    for name, points in series.items():
        shares = dict(points)
        lines.append([name, *(f"{shares[place]:.3f}" if place in shares else "-" for place in places)])
    return ["", *(f"{place:,.0f}" for place in places)], lines


def main() -> None:
    """Prints the tables and draws them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, default=10_000_000, help="Rows, at most.")
    options = parser.parse_args()
    check()
    figures = {**by_rows(options.most), "workers": by_workers(options.most), "shards": by_shard(options.most // 10)}
    titles = {
        "rows": "share of full speed by rows, one worker",
        "tail": "share of the time after the last row has begun, by rows, one worker",
        "workers": "share of full speed by workers (accelerator, varied lengths, shards of 5,000 rows)",
        "shards": f"share of full speed by rows per shard (accelerator, varied lengths, {options.most // 10:,} rows)",
    }
    for name, series in figures.items():
        print(f"\n{titles[name]}:\n\n{measuring.table(*lines_of(series))}")
    kept = FOLDER / "scheduling.json"
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps({name: {"title": titles[name], "series": figures[name]} for name in figures}))
    drawing = [python_of("plots", [MATPLOTLIB]), Path(__file__).parent / "drawing" / "draw.py", kept, DOCS]
    subprocess.run(drawing, check=True, stdout=sys.stderr)


if __name__ == "__main__":
    main()
