"""What a disk may hold after a crash, made from the calls of a run: the model that docs/storage.md describes.

A call that changes something is an effect. A sync makes effects durable: of a file, its writes; of a folder, the names
made, changed and removed in it. A sync that fails makes sure that no later one does. An effect that is not durable may
have happened or not, each for itself and in any order, and of a write a beginning or nothing but its length may have. A
rename is one effect, and happens whole or not.
"""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import product
from pathlib import Path

from tests.crash.tap import Call

Tree = Mapping[str, bytes | None]
"""A folder's content by relative path; None is a folder."""

_ALL_SUBSETS = 5
"""So many open effects have all their combinations tried."""


class Fate(Enum):
    """What a crash makes of an effect that is not durable."""

    LOST = "lost"
    KEPT = "kept"
    TORN = "torn"
    ZEROS = "zeros"


@dataclass(slots=True)
class Effect:
    """One change of the disk: a write to a file, or a change of names in a folder.

    Args:
        where: the inode that it is durable with: the file's, or the folder's.
        inode: the file that is written, or that gets the name.
        name: within the folder; None of a write.
        offset: of a write; None of one that makes the file empty.
        source: the folder and name that a rename takes the file from.
        is_doomed: a sync of it failed, so that no later one makes it durable, whatever that says.
    """

    where: int
    inode: int | None
    name: str | None = None
    offset: int | None = None
    content: bytes = b""
    source: tuple[int, str] | None = None
    is_durable: bool = False
    is_doomed: bool = False

    @property
    def fates(self) -> tuple[Fate, ...]:
        """What may become of it."""
        if self.is_durable:
            return (Fate.KEPT,)
        return tuple(Fate) if self.content else (Fate.LOST, Fate.KEPT)


@dataclass
class Disk:
    """A folder on a disk, from the calls that have changed it."""

    root: str
    effects: list[Effect] = field(default_factory=list)
    _folders: set[int] = field(default_factory=lambda: {0})
    _names: dict[tuple[int, str], int] = field(default_factory=dict)
    _sizes: dict[int, int] = field(default_factory=dict)
    _num_inodes: int = 1

    @classmethod
    def of(cls, root: str, tree: Tree) -> "Disk":
        """A disk that holds a folder's content, all of it durable."""
        disk = cls(root)
        for path, content in sorted(tree.items()):
            disk.apply(Call("mkdir" if content is None else "create", f"{root}/{path}"))
            if content:
                disk.apply(Call("write", f"{root}/{path}", content=content))
        for effect in disk.effects:
            effect.is_durable = True
        return disk

    def apply(self, call: Call) -> None:
        """What one call changes."""
        if call.name in ("open", "close"):
            return
        if call.name == "fsync" or (call.name, call.other) == ("failed", "fsync"):
            inode = self._inode(call.path)
            for effect in self.effects:
                if effect.where == inode and call.name == "failed":
                    effect.is_doomed |= not effect.is_durable
                elif effect.where == inode:
                    effect.is_durable |= not effect.is_doomed
            return
        folder, name = self._place(call.path)
        found = self._names.get((folder, name))
        match call.name:
            case "mkdir" if found is None:
                self._folders.add(self._num_inodes)
                self._give(folder, name, self._new())
            case "create" if found is None:
                self._give(folder, name, self._new())
            case "create" if call.truncates and found is not None:
                self._sizes[found] = 0
                self.effects.append(Effect(found, found))
            case "write" if found is not None:
                self.effects.append(Effect(found, found, offset=self._sizes[found], content=call.content))
                self._sizes[found] += len(call.content)
            case "allocate" if found is not None:
                more = call.content[self._sizes[found] :]
                self.effects.append(Effect(found, found, offset=self._sizes[found], content=more))
                self._sizes[found] += len(more)
            case "link":
                self._give(folder, name, self._inode(call.other))
            case "rename":
                inode, source = self._inode(call.other), self._place(call.other)
                del self._names[source]
                self._names[folder, name] = inode
                self.effects.append(Effect(folder, inode, name, source=source))
            case "unlink":
                del self._names[folder, name]
                self.effects.append(Effect(folder, None, name))

    def tree(self, fates: Sequence[Fate]) -> dict[str, bytes | None]:
        """The content after a crash that made this of the effects, in their order."""
        names: dict[tuple[int, str], int] = {}
        contents: dict[int, bytearray] = {}
        for effect, fate in zip(self.effects, fates, strict=True):
            if fate is Fate.LOST:
                continue
            if effect.name is None:
                _write(contents.setdefault(effect.where, bytearray()), effect, fate)
            elif effect.inode is None:
                names.pop((effect.where, effect.name), None)
            else:
                names[effect.where, effect.name] = effect.inode
                if effect.source is not None:
                    names.pop(effect.source, None)
        return dict(self._walk(0, "", names, contents))

    def states(self, draw: random.Random, num_random: int) -> Iterator[tuple[Fate, ...]]:
        """Fates of all effects: every combination where few are open, else each alone, and some at random."""
        everything = [effect.fates for effect in self.effects]
        lost = tuple(fates[0] for fates in everything)
        kept = tuple(Fate.KEPT for _ in everything)
        yield kept
        yield lost
        places = [place for place, fates in enumerate(everything) if len(fates) > 1]
        if len(places) <= _ALL_SUBSETS:
            yield from product(*everything)
            return
        for place in places:
            for fate in everything[place]:
                for rest in (lost, kept):
                    yield (*rest[:place], fate, *rest[place + 1 :])
        for _ in range(num_random):
            yield tuple(draw.choice(fates) for fates in everything)

    def _walk(
        self, folder: int, path: str, names: Mapping[tuple[int, str], int], contents: Mapping[int, bytearray]
    ) -> Iterator[tuple[str, bytes | None]]:
        for (parent, name), inode in names.items():
            if parent == folder and inode in self._folders:
                yield path + name, None
                yield from self._walk(inode, f"{path}{name}/", names, contents)
            elif parent == folder:
                yield path + name, bytes(contents.get(inode, b""))

    def _new(self) -> int:
        self._num_inodes += 1
        return self._num_inodes - 1

    def _give(self, folder: int, name: str, inode: int) -> None:
        self._names[folder, name] = inode
        self._sizes.setdefault(inode, 0)
        self.effects.append(Effect(folder, inode, name))

    def _inode(self, path: str) -> int:
        if path == self.root:
            return 0
        return self._names[self._place(path)]

    def _place(self, path: str) -> tuple[int, str]:
        folder = 0
        *above, name = path.removeprefix(f"{self.root}/").split("/")
        for each in above:
            folder = self._names[folder, each]
        return folder, name


def read(root: Path) -> dict[str, bytes | None]:
    """A folder's content."""
    return {
        str(path.relative_to(root)): None if path.is_dir() else path.read_bytes() for path in sorted(root.rglob("*"))
    }


def lay(root: Path, tree: Tree) -> None:
    """Puts a content into an empty folder."""
    for path, content in sorted(tree.items()):
        if content is None:
            (root / path).mkdir()
        else:
            (root / path).write_bytes(content)


def after(root: str, calls: Iterable[Call]) -> Disk:
    """An empty folder's disk after these calls."""
    disk = Disk(root)
    for call in calls:
        disk.apply(call)
    return disk


def _write(content: bytearray, effect: Effect, fate: Fate) -> None:
    if effect.offset is None:
        content.clear()
        return
    written = effect.content
    if fate is Fate.TORN:
        written = written[: len(written) // 2]
    elif fate is Fate.ZEROS:
        written = bytes(len(written))
    # What lies before it and was lost reads as zeros.
    content.extend(bytes(max(0, effect.offset - len(content))))
    content[effect.offset : effect.offset + len(written)] = written
