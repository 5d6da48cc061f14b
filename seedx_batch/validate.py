"""Whether a run still holds what was written: every byte is read again, and what is damaged is named, with its repair.

Must never know the engine. Without `repair` it changes nothing; with it, damaged files are moved to .state/damaged/,
and the command that made the run makes exactly them again.
"""

import errno
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from seedx_batch import journal, parts, seal, sources
from seedx_batch.errors import SpecError, StorageError
from seedx_batch.parts import Footer
from seedx_batch.plan import Plan
from seedx_batch.records import Row, Shard
from seedx_batch.rundir import RunDirectory
from seedx_batch.sources import Reader

EXIT_CODE = 65
"""Of a run that is damaged."""

_ROWS_PER_BATCH = 1_000
_AGAIN = "the run's own command makes it again"


@dataclass(frozen=True, slots=True)
class Damage:
    """One damaged file: what of it, what is lost by it, and what makes it good."""

    path: Path
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}; {self.remedy}"


@dataclass
class _Findings:
    run: RunDirectory
    repair: bool
    damages: list[Damage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    num_parts: int = 0
    num_rows: int = 0
    num_journals: int = 0
    num_journaled: int = 0

    def move(self, path: Path, what: str, remedy: str) -> None:
        """Notes a damaged file that has to be made again, and moves it away if that is asked for."""
        if self.repair:
            remedy = f"moved to {self.run.set_aside(path)}: {remedy}"
        else:
            remedy = f"`validate --repair` moves it away, and {remedy}"
        self.damages.append(Damage(path, what, remedy))


def validate(path: Path, *, repair: bool) -> tuple[str, int]:
    """Reads a run again; one line for each damaged file, or one that says that there is none, and the exit code.

    Raises:
        SpecError: the folder holds no run.
        RunDirectoryBusy: a run is going on there.
        StorageError: it cannot be read, or not be written to for the repair.
    """
    run = RunDirectory(path)
    if not run.plan.is_file() and not run.parts.is_dir():
        raise SpecError(f"'{path}' holds no run: give the run_dir of a job that was started")
    with run.lock() if repair else run.still():
        found = _Findings(run, repair)
        plan = _plan(found)
        _job(found)
        _parts(found, plan)
        _journals(found, plan)
        _derived(found)
    lines = [*map(str, found.damages), *found.notes]
    of = "" if plan is None else f" of {len(plan.shards):,}"
    read = f"{found.num_parts:,}{of} parts with {found.num_rows:,} rows, {found.num_journals:,} journals with "
    read += f"{found.num_journaled:,}"
    if not found.damages:
        return "\n".join([f"{path}: no damage in {read}", *found.notes]), 0
    done = " (repaired: run the run's own command now)" if repair else ""
    return "\n".join([*lines, f"{path}: {len(found.damages):,} damaged files beside {read}{done}"]), EXIT_CODE


def _plan(found: _Findings) -> Plan | None:
    path = found.run.plan
    remedy = f"{_AGAIN} from the same input, and keeps parts that are of the same job"
    if not path.is_file():
        found.damages.append(Damage(path, "is missing", remedy))
        return None
    try:
        content = _content(path)
        seal.check(content)
        return Plan.from_json(content.decode(), str(path))
    except ValueError as error:
        found.move(path, f"is damaged: {error}", remedy)
        return None


def _job(found: _Findings) -> None:
    path = found.run.job
    if not path.is_file():
        return
    try:
        seal.check(_content(path))
    except ValueError as error:
        found.move(path, f"is damaged: {error}", f"{_AGAIN}; nothing depends on it")


def _parts(found: _Findings, plan: Plan | None) -> None:
    run = found.run
    names = _names(run, plan) if plan else None
    unchanged = set() if plan is None else {file.path for file in plan.files if sources.changed(file) is None}
    if plan is not None and len(unchanged) < len(plan.files):
        found.notes.append("note: the input has changed, so that rows were compared with the plan only")
    with Reader(plan.files if plan else (), plan.id_column if plan else None) as reader:
        for path in sorted(run.parts.glob("*.parquet")):
            if names is not None and path.name not in names:
                found.damages.append(
                    Damage(path, "is no part of this run, and load_dataset reads it too", "move it out of the folder")
                )
                continue
            shard = plan.shards[names[path.name]] if plan and names else None
            try:
                footer, table = parts.examine(_content(path))
                _check_part(footer, table, plan, shard)
                if plan and shard and shard.path in unchanged:
                    _check_rows(table, plan, shard, reader)
                found.num_parts += 1
                found.num_rows += table.num_rows
            except ValueError as error:
                found.move(path, f"is damaged: {error}", f"{_AGAIN}{_rows(shard)}")


def _names(run: RunDirectory, plan: Plan) -> dict[str, int]:
    """The names that parts may have, and their shards; those from before rows were added are yet to be changed."""
    totals = (len(plan.shards), *plan.earlier)
    return {run.part_name(index, total): index for total in totals for index in range(total)}


def _check_part(footer: Footer, table: pa.Table, plan: Plan | None, shard: Shard | None) -> None:
    """Compares a part with itself and with the plan."""
    if footer.stats != parts.recount(table):
        raise ValueError("its statistics are not those of its rows")
    if footer.shard.num_rows != table.num_rows:
        raise ValueError(f"it has {table.num_rows:,} rows for {footer.shard.num_rows:,}")
    if plan is None or shard is None:
        return
    if footer.fingerprint != plan.fingerprint:
        raise ValueError("it is a part of another job")
    if footer.shard != shard:
        raise ValueError(f"it holds the rows of {footer.shard}")
    carried = ["id", *(column.name for column in plan.columns)]
    if table.column_names[: len(carried)] != carried:
        raise ValueError(f"its columns are {', '.join(table.column_names)}")


def _check_rows(table: pa.Table, plan: Plan, shard: Shard, reader: Reader) -> None:
    """Compares ids and carried columns with the input, row by row."""
    rows: list[Row] = []
    for row in reader.rows(shard):
        rows.append(row)
        if len(rows) == _ROWS_PER_BATCH or row.key.position == shard.num_rows - 1:
            start = row.key.position + 1 - len(rows)
            piece = table.slice(start, len(rows))
            if piece["id"].to_pylist() != [row.id for row in rows]:
                raise ValueError(f"among its rows {start:,} to {row.key.position:,} are other ids than the input's")
            carried = sources.carry(plan.columns, rows)
            for number, column in enumerate(plan.columns):
                ours, theirs = piece.column(number + 1), pa.chunked_array([carried.column(number)])
                # Nothing equals a NaN, but it looks the same.
                if not ours.equals(theirs) and list(map(repr, ours.to_pylist())) != list(map(repr, theirs.to_pylist())):
                    raise ValueError(
                        f"column '{column.name}' of its rows {start:,} to {row.key.position:,} is not the input's"
                    )
            rows = []


def _journals(found: _Findings, plan: Plan | None) -> None:
    run = found.run
    names = _names(run, plan) if plan else {}
    published = {names[path.name] for path in run.parts.glob("*.parquet") if path.name in names}
    again = plan.retry.shards.keys() if plan and plan.retry else set()
    for index in sorted(run.journaled()):
        path = run.journal(index)
        if index in published - again:
            continue  # its part was published, and nobody has removed it yet
        shard = plan.shards[index] if plan and index < len(plan.shards) else None
        try:
            batches, gaps = journal.examine(path)
            positions = [position for batch in batches for position in batch.column(0).to_pylist()]
            fingerprints = {(batch.schema.metadata or {}).get(b"fingerprint", b"").decode() for batch in batches}
            if plan is not None and (shard is None or fingerprints - {plan.fingerprint}):
                raise ValueError("it holds rows of another job")
            if len(set(positions)) < len(positions) or (shard and set(positions) - set(range(shard.num_rows))):
                raise ValueError("it holds rows twice, or rows that its shard does not have")
        except ValueError as error:
            found.move(path, f"is damaged: {error}", f"{_AGAIN}{_rows(shard)}")
            continue
        found.num_journals += 1
        found.num_journaled += len(positions)
        damaged = [gap for gap in gaps if not gap.is_torn]
        if damaged:
            where = ", ".join(f"{gap.start:,} to {gap.end - 1:,}" for gap in damaged)
            remedy = f"`validate --repair` cuts them out, and {_AGAIN}"
            if found.repair:
                remedy = f"cut out, copied to {run.copy_aside(path)}: {_AGAIN}"
                journal.mend(path)
            found.damages.append(
                Damage(path, f"is damaged: the rows in its bytes {where} are lost, {len(positions):,} are not", remedy)
            )


def _derived(found: _Findings) -> None:
    path = found.run.stats
    if not path.is_file():
        return
    try:
        seal.check(_content(path))
    except ValueError as error:
        found.move(path, f"is damaged: {error}", f"`seedx-batch finalize {found.run.path}` makes it again")


def _rows(shard: Shard | None) -> str:
    if shard is None:
        return ""
    return f" ({shard.num_rows:,} rows, from row {shard.start_row:,} of {shard.path})"


def _content(path: Path) -> bytes:
    """A file's content.

    Raises:
        ValueError: the disk itself cannot read it.
        StorageError: something else is in the way.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        if error.errno == errno.EIO:
            raise ValueError("the disk cannot read it") from error
        raise StorageError(f"{path}: {error.strerror}; make it readable") from error
