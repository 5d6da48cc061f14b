"""Crashes of the small run: after every prefix of its calls, every loss that the model of a disk allows, or many.

Each state is laid out, looked at and gone on with: no part that was published is lost, none that is seen is torn, what
a checkpoint told is there, and the run's command ends with every row once.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from seedx_batch import seal
from seedx_batch.validate import validate
from tests.crash.disk import Disk, Fate, after, lay, read
from tests.crash.small import Small, rows_of, small
from tests.crash.tap import Call

SEED = 4
_EVERY = 5
"""Of a run that goes on after a crash, crashes are tried after every so many calls; of the first run, after each."""


@dataclass
class Tally:
    """What was tried.

    Args:
        num_resumed: states after which the run's command was given; the others were only looked at.
    """

    num_states: int = 0
    num_resumed: int = 0
    failures: list[str] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)


class Enumeration:
    """The crashes of one job.

    Args:
        num_random: random losses for each prefix, beside the systematic ones.
        share: of the states that the run's command is given after; every state is looked at.
        stops: goes no further than to the first failure.
    """

    def __init__(self, job: Small, seed: int, num_random: int, share: float, stops: bool = False) -> None:
        self._job = job
        self._draw = random.Random(seed)
        self._num_random = num_random
        self._share = share
        self._stops = stops
        self.tally = Tally()

    def first_run(self) -> None:
        """Crashes in a new run."""
        self._each_prefix(Disk(str(self._job.root)), [], self._job.tap.calls, 1)

    def after_a_failed_sync(self) -> None:
        """Crashes in the run that follows one that a failed sync of a journal has ended."""
        job = self._job
        at = next(at for at, call in enumerate(job.tap.calls) if call.name == "fsync" and "shard" in call.path)
        job.clear()
        first, second = job.new_tap(at), job.new_tap()
        if job.attempt(first)[0] != 74 or job.attempt(second)[0] != 0:
            self.tally.failures.append("the run did not go on after a sync that failed")
            return
        self._each_prefix(after(str(job.root), first.calls), first.calls, second.calls, _EVERY)

    def second_run(self, at: int, *, power_cut: bool) -> None:
        """Crashes in a run that goes on after a crash in the first one.

        Args:
            at: the first run's calls until then.
            power_cut: it lost what it may; otherwise only its process was killed, and nothing is lost or durable yet.
        """
        job = self._job
        earlier = job.tap.calls[:at]
        disk = after(str(job.root), earlier)
        fates = [Fate.KEPT] * len(disk.effects)
        if power_cut:
            fates = [self._draw.choice(effect.fates) for effect in disk.effects]
        tree = disk.tree(fates)
        self._lay(tree)
        tap = job.new_tap()
        code, message = job.attempt(tap)
        if code:
            self.tally.failures.append(f"second run after {at} calls: {code} {message}")
            return
        if power_cut:
            self._each_prefix(Disk.of(str(job.root), tree), [], tap.calls, _EVERY)
        else:
            self._each_prefix(disk, earlier, tap.calls, _EVERY)

    def _each_prefix(self, disk: Disk, earlier: Sequence[Call], calls: Sequence[Call], every: int) -> None:
        """Crashes after every prefix of some calls on a disk.

        Args:
            every: states are tried after so many calls, and after the last one.
        """
        for done, call in enumerate([*calls, None]):
            if self._stops and self.tally.failures:
                return
            has_changed = not done or calls[done - 1].name not in ("open", "close")
            if (done % every == 0 and has_changed) or call is None:
                promised = _promised([*earlier, *calls[:done]], call is None)
                for fates in disk.states(self._draw, self._num_random):
                    self._try(disk, fates, promised, f"{len(earlier) + done} calls, {_shown(disk, fates)}")
            if call is not None:
                disk.apply(call)

    def _try(self, disk: Disk, fates: Sequence[Fate], promised: "Promised", where: str) -> None:
        tree = disk.tree(fates)
        key = hash((frozenset(tree.items()), promised))
        if key in self.tally.seen:
            return
        self.tally.seen.add(key)
        self.tally.num_states += 1
        resumes = self._draw.random() < self._share
        self.tally.num_resumed += resumes
        self._lay(tree)
        try:
            fault = self._fault(promised, resumes)
        except Exception as error:  # whatever it is, it is a state that the product does not stand
            fault = repr(error)
        if fault is not None:
            self.tally.failures.append(f"{where}: {fault}")

    def _fault(self, promised: "Promised", resumes: bool) -> str | None:
        """What is wrong with the state that is laid out; None if nothing is."""
        job = self._job
        before = {path.name: path.read_bytes() for path in job.run.parts.glob("*")}
        for content in before.values():
            rows_of(content)
        for path in (job.run.plan, job.run.job, job.run.stats):
            if path.exists():
                seal.check(path.read_bytes())
        if not promised.parts <= before.keys():
            return f"lost the published {promised.parts - before.keys()}"
        if job.num_rows_kept() < promised.num_rows:
            return f"a checkpoint told of {promised.num_rows} rows, and {job.num_rows_kept()} are there"
        if not resumes:
            return None
        code, message = job.attempt()
        if code:
            return f"the resume ended with {code}: {message}"
        if promised.all_done and "nothing left to do" not in message:
            return f"a run that was done had something to do: {message}"
        if job.visible_rows() != job.rows:
            return f"it ends with {job.visible_rows()}"
        if {name: (job.run.parts / name).read_bytes() for name in before} != before:
            return "a published part was replaced"
        message, code = validate(job.run.path, repair=False)
        return message if code else None

    def _lay(self, tree: dict[str, bytes | None]) -> None:
        for path in self._job.root.iterdir():
            shutil.rmtree(path)
        lay(self._job.root, tree)
        if read(self._job.root) != tree:
            raise RuntimeError("the state was not laid out as it is")


@dataclass(frozen=True, slots=True)
class Promised:
    """What the calls until a crash have promised.

    Args:
        parts: names of the published parts.
        num_rows: those that a checkpoint in the ledger has told of, earlier launches' included.
        all_done: the run's command has ended, with 0.
    """

    parts: frozenset[str]
    num_rows: int
    all_done: bool


def _promised(calls: Sequence[Call], all_done: bool) -> Promised:
    linked: set[str] = set()
    published: set[str] = set()
    num_rows = 0
    for call in calls:
        if call.name == "link" and call.path.endswith(".parquet"):
            linked.add(os.path.basename(call.path))
        elif call.name == "fsync" and call.path.endswith("/data"):
            published |= linked
        elif call.name == "write" and call.path.endswith(".jsonl") and call.content.strip():
            line = json.loads(call.content)
            # Resumed rows are in journals; those of parts are counted by what is seen anyway.
            num_rows = max(num_rows, line.get("num_rows", 0) + line.get("num_resumed", 0))
    return Promised(frozenset(published), num_rows, all_done)


def _shown(disk: Disk, fates: Sequence[Fate]) -> str:
    """The effects that are open and what becomes of them."""
    open_ones = [
        f"{effect.name or f'write to {effect.where}'} {fate.value}"
        for effect, fate in zip(disk.effects, fates, strict=True)
        if not effect.is_durable
    ]
    return ", ".join(open_ones)


def crash(seed: int, num_random: int, share: float, num_seconds: int, stops: bool = False) -> Tally:
    """Crashes of a first run after each of its calls, and of second runs: after two kills, a failed sync, and more."""
    with small() as job:
        enumeration = Enumeration(job, seed, num_random, share, stops)
        enumeration.first_run()
        calls = job.tap.calls
        # Where a kill leaves what the second run must not take for durable: a last part's name, a journal's rows.
        unsynced_name = max(at for at, call in enumerate(calls) if call.name == "link") + 1
        unsynced_rows = min(at for at, call in enumerate(calls) if call.name == "write" and "journal" in call.path) + 1
        for at in (unsynced_name, unsynced_rows):
            enumeration.second_run(at, power_cut=False)
        enumeration.after_a_failed_sync()
        draw = random.Random(seed)
        for number in range(num_seconds):
            enumeration.second_run(draw.randrange(len(job.tap.calls)), power_cut=bool(number % 2))
        return enumeration.tally


def main() -> int:
    """Prints one line; 1 if a state was not survived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--random", type=int, default=20, help="random losses for each prefix")
    parser.add_argument("--share", type=float, default=1.0, help="of the states after which the run is gone on with")
    parser.add_argument("--second-runs", type=int, default=40, help="runs that follow a crash, and crash again")
    asked = parser.parse_args()
    began = time.monotonic()
    with open(os.devnull, "w") as silence, contextlib.redirect_stderr(silence):
        tally = crash(asked.seed, asked.random, asked.share, asked.second_runs)
    for failure in tally.failures[:20]:
        print(f"  {failure}")
    print(
        f"crash consistency: {tally.num_states:,} states tried (seed {asked.seed}), {tally.num_resumed:,} gone on "
        f"with, {len(tally.failures):,} failed, {time.monotonic() - began:.0f} s"
    )
    return bool(tally.failures)


if __name__ == "__main__":
    raise SystemExit(main())
