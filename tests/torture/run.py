"""Kills and crashes runs in hundreds of ways and counts what that costs: python tests/torture/run.py, `make torture`.

A line for every kill, a table at the end; ends with 1 where a row was lost, was there twice or was another, or where
something is not on disk that a checkpoint had told of. With the same seed the same kills are tried; where exactly a
moment of the clock falls is the machine's.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
sys.path[:0] = [str(REPOSITORY)]

from tests.torture import kills, real  # noqa: E402
from tests.torture.kills import End, Kill  # noqa: E402


@dataclass
class Tally:
    """What the kills of one kind came to."""

    name: str
    num_kills: int = 0
    num_runs: int = 0
    num_lost: int = 0
    num_twice: int = 0
    num_other: int = 0
    num_broken: int = 0
    most_in_flight: int = 0
    most_unsaved: int = 0

    def add(self, one: Kill | End) -> None:
        """Counts a kill, or a run's end."""
        if isinstance(one, Kill):
            self.num_kills += 1
            self.num_broken += one.num_broken
            self.most_in_flight = max(self.most_in_flight, one.num_in_flight)
            self.most_unsaved = max(self.most_unsaved, one.num_unsaved)
        else:
            self.num_runs += 1
            self.num_lost += one.num_lost
            self.num_twice += one.num_twice
            self.num_other += one.num_other

    @property
    def holds(self) -> bool:
        """Whether every promise was kept."""
        return not (self.num_lost or self.num_twice or self.num_other or self.num_broken)


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=20261125)
    parser.add_argument("--kills", type=int, default=500, help="Of launches with the simulated engine.")
    parser.add_argument("--crashes", type=float, default=0.25, help="Share of the crashes that are gone on from.")
    parser.add_argument("--real-kills", type=int, default=20, help="Of runs on real vLLM, with a tiny model.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        tallies = [
            run("simulated engine", kills.torture(options.seed, options.kills, Path(folder) / "simulated")),
            run("real vLLM", real.torture(options.seed, options.real_kills, Path(folder) / "real")),
        ]
    print(f"\nseed {options.seed}\n\n{table(tallies)}\n", flush=True)
    holds = all(tally.holds for tally in tallies)
    if options.crashes:
        arguments = ["--seed", str(options.seed), "--random", "5", "--share", str(options.crashes)]
        holds &= not subprocess.call([sys.executable, "-m", "tests.crash.enumerate", *arguments], cwd=REPOSITORY)
    sys.exit(not holds)


def run(name: str, found: Iterable[Kill | End]) -> Tally:
    """Goes through all kills of one kind."""
    tally = Tally(name)
    for one in found:
        tally.add(one)
        if isinstance(one, Kill):
            again = f"{one.num_in_flight} tokens in flight, {one.num_unsaved} unwritten"
            broken = f", {one.num_broken} BROKEN" if one.num_broken else ""
            place = f"{name}, kill {tally.num_kills}, run {one.run}: {one.where}"
            print(f"{place}: {one.num_saved} rows on disk; again: {again}{broken}", flush=True)
        else:
            print(f"{name}, run ended: {one.num_lost} lost, {one.num_twice} twice, {one.num_other} other", flush=True)
    return tally


def table(tallies: Iterable[Tally]) -> str:
    """The table, in Markdown."""
    columns: dict[str, Callable[[Tally], object]] = {
        "": lambda tally: tally.name,
        "kills": lambda tally: tally.num_kills,
        "runs": lambda tally: tally.num_runs,
        "rows lost": lambda tally: tally.num_lost,
        "rows twice": lambda tally: tally.num_twice,
        "rows other than undisturbed": lambda tally: tally.num_other,
        "checkpointed tokens lost": lambda tally: tally.num_broken,
        "tokens again, of a kill at most: in flight": lambda tally: tally.most_in_flight,
        "finished, not yet written": lambda tally: tally.most_unsaved,
    }
    lines = [list(columns), ["---", *["---:"] * (len(columns) - 1)]]
    lines += [[f"{value(tally)}" for value in columns.values()] for tally in tallies]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
