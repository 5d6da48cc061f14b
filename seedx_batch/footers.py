"""What the footers of a run's parts tell together, each of them read once; also while parts are added.

Keeps a few numbers of each shard and one sum of all, and must never know rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from seedx_batch import parts
from seedx_batch.parts import Footer
from seedx_batch.plan import Plan
from seedx_batch.rundir import RunDirectory
from seedx_batch.stats import TokenStats


@dataclass(frozen=True, slots=True)
class CommittedShard:
    """What a table of shards says about one of them.

    Args:
        part: its file; `input`: the file that its rows come from.
        started_at, committed_at: ISO 8601, UTC.
    """

    index: int
    part: Path
    num_bytes: int
    input: str
    start_row: int
    num_rows: int
    statuses: Mapping[str, int]
    errors: Mapping[str, int]
    num_deduplicated: int
    num_prompt_tokens: int
    num_output_tokens: int
    started_at: str
    committed_at: str
    worker: str


class Footers:
    """The footers of a run.

    Args:
        total: the statistics of all parts.
        shards: by index, in order.
        signatures: of the parts, each with the versions that stand beside it.
    """

    def __init__(self, run: RunDirectory, plan: Plan) -> None:
        self._run, self._plan = run, plan
        self.total = TokenStats()
        self.shards: dict[int, CommittedShard] = {}
        self.signatures: dict[str, dict[str, str]] = {}
        self._made: dict[Path, int] = {}

    def refresh(self) -> None:
        """Reads the parts that are new; all of them where one is not the file that it was.

        Raises:
            StorageError: a part is damaged.
        """
        paths = [path for _, path in sorted(self._run.visible(self._plan.earlier).items())]
        made = {path: path.stat().st_mtime_ns for path in paths}
        if any(made.get(path) != made_at for path, made_at in self._made.items()):
            self._forget()
        for path in paths:
            if path not in self._made:
                self._take(path, parts.read_footer(path))
                self._made[path] = made[path]
        # Another worker's shard may come between.
        self.shards = dict(sorted(self.shards.items()))

    def _forget(self) -> None:
        self.total = TokenStats()
        for kept in (self.shards, self.signatures, self._made):
            kept.clear()

    def _take(self, path: Path, footer: Footer) -> None:
        shard, stats = footer.shard, footer.stats
        self.total = self.total + stats
        self.signatures.setdefault(footer.signature, dict(footer.versions))
        self.shards[shard.index] = CommittedShard(
            index=shard.index,
            part=path,
            num_bytes=path.stat().st_size,
            input=shard.path,
            start_row=shard.start_row,
            num_rows=stats.num_rows,
            statuses=dict(stats.statuses),
            errors=dict(stats.errors),
            num_deduplicated=stats.num_deduplicated,
            num_prompt_tokens=stats.prompt_tokens.total,
            num_output_tokens=stats.output_tokens.total,
            started_at=footer.started_at,
            committed_at=footer.committed_at,
            worker=footer.worker,
        )
