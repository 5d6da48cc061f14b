"""What has changed in the input since it was counted, in words a person can act on, and whether rows were only added.

Must never know plans or parts; it compares what was counted with what is there now.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

from seedx_batch.errors import InputError, SpecError
from seedx_batch.records import Shard
from seedx_batch.sources.files import InputFile, changed, find
from seedx_batch.sources.reader import told
from seedx_batch.sources.scan import Scan, scan
from seedx_batch.spec import InputSpec

_APPENDED = "rows were appended"


@dataclass(frozen=True, slots=True)
class Changes:
    """What has changed.

    Args:
        lines: one for each file, its path first.
        extended: the input as it is now, if all that was counted is unchanged at its beginning; else None.
    """

    lines: tuple[str, ...]
    extended: Scan | None


def compare(
    files: Sequence[InputFile], shards: Sequence[Shard], spec: InputSpec, rows_per_shard: int
) -> Changes | None:
    """What has changed since the input was counted; None if nothing has.

    A file of the same size and time is trusted without being read, and one of another time is hashed. Only where
    something differs is the input scanned again, so as to tell what.

    Args:
        files, shards: from the earlier scan.
    """
    planned = [file.path for file in files]
    try:
        found = [str(path) for path in find(spec)]
    except InputError as error:
        gone = [f"{path}: is gone" for path in planned if not Path(path).exists()]
        return Changes(tuple(gone or [str(error)]), None)
    if spec.limit is not None and sum(file.num_rows for file in files) >= spec.limit:
        found = found[: len(planned)]  # those behind are not looked at
    touched = {file.path for file in files if file.path in found and changed(file) is not None}
    if found == planned and not touched:
        return None
    is_longer = found[: len(planned)] == planned
    paths = found if is_longer else [path for path in found if path in touched]
    try:
        now = scan([Path(path) for path in paths], spec, rows_per_shard, known=shards) if paths else None
    except (InputError, SpecError) as error:
        now, reason = None, [str(error)]
    else:
        reason = []
    lines = [*_moved(files, found, now), *_edited(files, shards, touched, now), *reason]
    # What has no digest is the same only as long as its file is.
    is_same = is_longer and all(shard.digest for shard in shards if shard.path in touched)
    extended = now if is_same and now is not None and now.shards[: len(shards)] == tuple(shards) else None
    return Changes(tuple(lines), extended)


def _moved(files: Sequence[InputFile], found: Sequence[str], now: Scan | None) -> list[str]:
    """Files that are gone, new, or both at once under another name."""
    lines = []
    added = [path for path in found if path not in {file.path for file in files}]
    for file in files:
        if file.path in found:
            continue
        # Another time makes `changed` compare the digests.
        renamed = next((path for path in added if changed(replace(file, path=path, mtime_ns=-1)) is None), None)
        if renamed is not None:
            added.remove(renamed)
            lines.append(f"{file.path}: was renamed to {renamed}")
        else:
            lines.append(f"{file.path}: is gone, with its {_rows(file.num_rows)}")
    for path in added:
        count = next((f", with {_rows(file.num_rows)}" for file in (now.files if now else ()) if file.path == path), "")
        follower = next((file.path for file in files if file.path in found[found.index(path) :]), None)
        where = "" if follower is None else f"; {follower}, which was there before, comes after it"
        lines.append(f"{path}: is new{count}{where}")
    return lines


def _edited(
    files: Sequence[InputFile], shards: Sequence[Shard], touched: Collection[str], now: Scan | None
) -> list[str]:
    """Files that are not what they were."""
    news = {file.path: file for file in now.files} if now else {}
    last = next((file.path for file in reversed(files) if file.num_rows or file.path in touched), None)
    lines = []
    for old in files:
        if old.path not in touched:
            continue
        new = news.get(old.path)
        if new is None:
            lines.append(f"{old.path}: {changed(old)}")
            continue
        sizes = f"was {_size(old)}" if _size(old) == _size(new) else f"was {_size(old)}, is {_size(new)}"
        pieces = [[shard for shard in each if shard.path == old.path] for each in (shards, now.shards if now else ())]
        what = _difference(old, new, *pieces)
        behind = "" if what is not _APPENDED or old.path == last else f", but {last} comes after it"
        lines.append(f"{old.path}: {sizes}: {what}{behind}")
    return lines


def _difference(old: InputFile, new: InputFile, before: Sequence[Shard], after: Sequence[Shard]) -> str:
    """What happened to the rows of one file, as far as the digests of its shards tell."""
    if not all(shard.digest for shard in before):
        return "it is another file, and has no digests that tell where it differs"
    pairs = zip_longest(before, after)
    first = next((k for k, (was, now) in enumerate(pairs) if not _is_alike(was, now)), None)
    if first is None:
        return "its rows are the same, what is around them is not"
    if first == len(before):
        return _APPENDED
    if first == len(after):
        return f"its last {_rows(old.num_rows - new.num_rows)} were removed"
    if old.num_rows == new.num_rows and old.lines == new.lines:
        return f"the order of its rows was changed, first among {told(before[first])}"
    what = "removed or changed" if new.num_rows < old.num_rows else "changed"
    what = "inserted or changed" if new.num_rows > old.num_rows else what
    return f"rows were {what}, the first among {told(before[first])}"


def _is_alike(was: Shard | None, now: Shard | None) -> bool:
    """Whether two shards of one file are the same slice of it with the same text."""
    return was is not None and now is not None and replace(now, index=was.index) == was


def _size(file: InputFile) -> str:
    return f"{_rows(file.num_rows)} in {file.num_bytes:,} bytes"


def _rows(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"
