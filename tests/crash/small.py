"""The small run that is made to fail and to crash: two shards, rows that end one after another, a checkpoint a step."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from unittest import mock

from seedx_batch import card, launch, parts, worker
from seedx_batch.errors import StorageError
from seedx_batch.journal import examine
from seedx_batch.prompts import Prompts
from seedx_batch.rundir import RunDirectory
from seedx_batch.spec import JobSpec, PromptSpec, parse
from tests.crash.tap import Tap
from tests.jobs import run_here, write_job, write_rows

TEXTS = ["one", "two is longer", "three", "four is the longest of all", "five"]
_build = Prompts.build


class Small:
    """The job, its run directory, and the rows it has to end with."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "out"
        self.root.mkdir()
        job = write_job(
            folder,
            write_rows(folder / "rows.jsonl", TEXTS),
            output={"rows_per_shard": 3, "column": "translation"},
            decoding={"max_tokens": 6},
            engine={"max_num_seqs": 2},
            executor={"checkpoint_s": 1e-9},
        )
        tree = json.loads(job.read_text()) | {"prompt": {"preset": "raw", "template": "{{ source }}"}}
        tree["run_dir"] = str(self.root / "run")
        job.write_text(json.dumps(tree))
        self.spec: JobSpec = launch.load(job, (), None)
        self.run = RunDirectory(self.spec.directory)
        self.tap = self.new_tap()
        code, message = self.attempt(self.tap)
        if code:
            raise RuntimeError(message)
        self.rows = self.visible_rows()

    def new_tap(self, fail_at: int | None = None, number: int = errno.EIO) -> Tap:
        """A tap on everything that a run changes."""
        return Tap(str(self.root), fail_at, number)

    def attempt(self, tap: Tap | None = None) -> tuple[int, str]:
        """The run's command; its exit code and what it says."""
        with (tap or self.new_tap()).open_up():
            try:
                outcome = run_here(self.spec)
            except StorageError as error:
                return error.exit_code, str(error)
        return outcome.exit_code, outcome.message

    def clear(self) -> None:
        """Removes the run directory."""
        shutil.rmtree(self.run.path, ignore_errors=True)

    def visible_rows(self) -> list[tuple[str, str, str]]:
        """Id, text and status of every row that is in a part, in order.

        Raises:
            ValueError: a part is damaged.
        """
        return [row for path in sorted(self.run.parts.glob("*")) for row in rows_of(path.read_bytes())]

    def num_rows_kept(self) -> int:
        """Rows in parts, and in journals of shards that have none."""
        committed = self.run.committed()
        journals = [self.run.journal(index) for index in self.run.journaled() - committed]
        return len(self.visible_rows()) + sum(batch.num_rows for path in journals for batch in examine(path)[0])


@lru_cache(maxsize=256)
def rows_of(content: bytes) -> list[tuple[str, str, str]]:
    """Id, text and status of every row of a part.

    Raises:
        ValueError: it is damaged.
    """
    table = parts.examine(content)[1].select(["id", "translation", "status"])
    return [(row["id"], row["translation"], row["status"]) for row in table.to_pylist()]


@contextmanager
def small() -> Iterator[Small]:
    """The job in a folder in memory, where there is such a thing."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder, quickly():
        yield Small(Path(folder))


@contextmanager
def quickly() -> Iterator[None]:
    """Parses each yaml once: most of a small run's time otherwise."""
    with ExitStack() as stack:
        cached = lru_cache(maxsize=None)(parse)
        stack.enter_context(mock.patch.object(worker, "parse", cached))
        stack.enter_context(mock.patch.object(card, "parse", cached))
        built: dict[str, Prompts] = {}

        def build_once(spec: PromptSpec) -> Prompts:
            if repr(spec) not in built:
                built[repr(spec)] = _build(spec)
            return built[repr(spec)]

        stack.enter_context(mock.patch.object(Prompts, "build", build_once))
        yield
