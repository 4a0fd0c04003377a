"""What a disk may forget: a tree of files that keeps what is durable apart from what was only written.

POSIX promises little, and this model promises nothing beyond it:

- a file's data and size are durable once that file was synced, and only what was written before;
- a folder entry (create, mkdir, link, rename, unlink, rmdir) is durable once its folder was synced; syncing the file it
  names is not enough, and a file whose entry is lost is lost with all its data;
- a file that is made shorter may have zeros in its last sector already, behind its new end, while it has its old size;
- a rename is atomic: syncing either of its two folders makes both entries durable;
- a sync that failed has dropped what was dirty, however often it is repeated: Linux marks such pages clean. They can
  still be read while the kernel happens to cache them; only writing them again helps.

`crash` forgets the rest: all of it, or (with `kept` > 0) each sector and each entry by chance, as real disks do.
Modes, owners and times are durable at once. Paths are absolute ("/a/b"); errors are OSError with their errno.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from random import Random

SECTOR_BYTES = 4096


@dataclass(eq=False)
class Node:
    """What files and folders share; times are nanoseconds."""

    number: int
    mode: int
    owner: int = 0
    group: int = 0
    accessed: int = 0
    modified: int = 0


@dataclass(eq=False)
class File(Node):
    """Bytes as they are read (`data`) and as they would be after a crash (`durable`)."""

    data: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    dirty: list[tuple[int, int]] = field(default_factory=list)  # [start, end) written since the last sync
    shortest: int = 0  # the smallest length since the last sync: the durable bytes behind it are stale

    def write(self, offset: int, content: bytes) -> None:
        """Visible at once, durable at the next sync."""
        if offset > len(self.data):
            self._mark(len(self.data), offset)
            self.data.extend(bytes(offset - len(self.data)))
        end = offset + len(content)
        self.data[offset:end] = content
        self._mark(offset, end)

    def truncate(self, length: int) -> None:
        """Shortens, or lengthens with zeros."""
        if length > len(self.data):
            self.write(len(self.data), bytes(length - len(self.data)))
        else:
            del self.data[length:]
            self.shortest = min(self.shortest, length)

    def _mark(self, start: int, end: int) -> None:
        if self.dirty and self.dirty[-1][0] <= start <= self.dirty[-1][1]:
            self.dirty[-1] = (self.dirty[-1][0], max(self.dirty[-1][1], end))
        else:
            self.dirty.append((start, end))

    def sync(self) -> None:
        """Data and size become durable."""
        del self.durable[self.shortest :]
        self._settle(self.dirty)
        self._resize(len(self.data))
        self._clean()

    def sync_failed(self) -> None:
        """What was dirty reads as it was before, once no cache hides that; the length stays."""
        for start, end in self.dirty:
            end = min(end, len(self.data))
            self.data[start:end] = self.durable[start:end].ljust(end - start, b"\0")
        self._clean()

    def crash(self, kept: float, chance: Random) -> None:
        """Back to what is durable; with `kept`, each dirty sector survives with that probability."""
        if kept > 0:
            self._shorten(kept, chance)
            self._settle([sector for sector in self._dirty_sectors() if chance.random() < kept])
        self.data = bytearray(self.durable)
        self._clean()

    def _shorten(self, kept: float, chance: Random) -> None:
        """Wholly, not at all, or by half: the rest of the sector is cleared before the size changes."""
        if self.shortest < len(self.durable) and chance.random() < kept:
            del self.durable[self.shortest :]
        elif self.shortest < len(self.durable) and chance.random() < kept:
            end = min(self.shortest - self.shortest % SECTOR_BYTES + SECTOR_BYTES, len(self.durable))
            self.durable[self.shortest : end] = bytes(end - self.shortest)

    def _dirty_sectors(self) -> list[tuple[int, int]]:
        firsts = {
            first for start, end in self.dirty for first in range(start - start % SECTOR_BYTES, end, SECTOR_BYTES)
        }
        return [(first, first + SECTOR_BYTES) for first in sorted(firsts)]

    def _settle(self, ranges: list[tuple[int, int]]) -> None:
        for start, end in ranges:
            content = self.data[start:end]
            if content:
                self._resize(max(len(self.durable), start))
                self.durable[start : start + len(content)] = content

    def _resize(self, length: int) -> None:
        del self.durable[length:]
        self.durable.extend(bytes(length - len(self.durable)))

    def _clean(self) -> None:
        self.dirty.clear()
        self.shortest = len(self.data)


@dataclass(eq=False)
class Folder(Node):
    """Entries as they are seen and as they would be after a crash."""

    entries: dict[str, Node] = field(default_factory=dict)
    durable: dict[str, Node] = field(default_factory=dict)


Entry = tuple[Folder, str]


@dataclass(eq=False)
class Change:
    """One namespace operation, not durable yet: what each entry it touches becomes, all of it or nothing."""

    targets: dict[Entry, Node | None]
    is_hiding: bool = False  # the FUSE library took the name off an open file: half of an unlink or of a rename

    def settle(self) -> None:
        """Makes it durable."""
        for (folder, name), node in self.targets.items():
            if node is None:
                folder.durable.pop(name, None)
            else:
                folder.durable[name] = node


class Volume:
    """A whole file system in memory. Not thread-safe."""

    def __init__(self) -> None:
        self._numbers = count(1)
        self.root = Folder(next(self._numbers), stat.S_IFDIR | 0o755)
        self._pending: list[Change] = []

    def find(self, path: str) -> Node:
        """Raises ENOENT, ENOTDIR."""
        node: Node = self.root
        for name in path.split("/"):
            if name:
                node = _entries(node).get(name) or _refuse(errno.ENOENT, path)
        return node

    def create(self, path: str, mode: int) -> File:
        """A new, empty file (an existing one is truncated and returned)."""
        folder, name = self._place(path)
        existing = folder.entries.get(name)
        if isinstance(existing, File):
            existing.truncate(0)
            return existing
        file = File(next(self._numbers), stat.S_IFREG | stat.S_IMODE(mode))
        self._change({(folder, name): file})
        return file

    def mkdir(self, path: str, mode: int) -> Folder:
        """Raises EEXIST."""
        folder, name = self._place(path)
        if name in folder.entries:
            raise _error(errno.EEXIST, path)
        made = Folder(next(self._numbers), stat.S_IFDIR | stat.S_IMODE(mode))
        self._change({(folder, name): made})
        return made

    def link(self, existing: str, path: str) -> None:
        """A second name for a file; raises EEXIST, EPERM."""
        node, (folder, name) = self.find(existing), self._place(path)
        if name in folder.entries:
            raise _error(errno.EEXIST, path)
        if isinstance(node, Folder):
            raise _error(errno.EPERM, existing)
        self._change({(folder, name): node})

    def unlink(self, path: str, *, is_hiding: bool = False) -> Node:
        """Takes the name away; the file itself is returned and stays usable by who holds it."""
        node = self.find(path)
        if isinstance(node, Folder):
            raise _error(errno.EISDIR, path)
        self._change({self._place(path): None}, is_hiding=is_hiding)
        return node

    def rmdir(self, path: str) -> None:
        """Raises ENOTDIR, ENOTEMPTY."""
        if _entries(self.find(path)):
            raise _error(errno.ENOTEMPTY, path)
        self._change({self._place(path): None})

    def rename(self, old: str, new: str) -> None:
        """Atomic, replaces a file or an empty folder."""
        node, source, target = self.find(old), self._place(old), self._place(new)
        replaced = target[0].entries.get(target[1])
        if replaced is node:
            return
        if isinstance(replaced, Folder) and replaced.entries:
            raise _error(errno.ENOTEMPTY, new)
        self._forget_hiding(target)
        self._change({source: None, target: node})

    def sync_folder(self, folder: Folder) -> None:
        """Every entry of the folder becomes durable, with whatever earlier changes that depends on."""
        wanted: set[Entry] = set()
        chosen: set[Change] = set()
        for change in reversed(self._pending):
            if any(entry[0] is folder or entry in wanted for entry in change.targets):
                wanted.update(change.targets)
                chosen.add(change)
        for change in self._pending:
            if change in chosen:
                change.settle()
        self._pending = [change for change in self._pending if change not in chosen]

    def crash(self, kept: float = 0.0, chance: Random | None = None) -> None:
        """Forgets what is not durable; with `kept`, each change survives with that probability if those it needs do."""
        chance = chance or Random(0)
        lost: set[Entry] = set()
        for change in self._pending:
            if chance.random() < kept and lost.isdisjoint(change.targets):
                change.settle()
            else:
                lost.update(change.targets)
        self._pending.clear()
        for node in self._walk_durable():
            if isinstance(node, Folder):
                node.entries = dict(node.durable)
            elif isinstance(node, File):
                node.crash(kept, chance)

    def _walk_durable(self) -> Iterator[Node]:
        seen: set[Node] = set()
        stack: list[Node] = [self.root]
        while stack:
            node = stack.pop()
            if node not in seen:
                seen.add(node)
                yield node
                if isinstance(node, Folder):
                    stack.extend(node.durable.values())

    def _place(self, path: str) -> Entry:
        parent, _, name = path.rpartition("/")
        folder = self.find(parent)
        _entries(folder)
        assert isinstance(folder, Folder)
        return folder, name

    def _change(self, targets: dict[Entry, Node | None], *, is_hiding: bool = False) -> None:
        for (folder, name), node in targets.items():
            if node is None:
                del folder.entries[name]
            else:
                folder.entries[name] = node
        self._pending.append(Change(targets, is_hiding))

    def _forget_hiding(self, target: Entry) -> None:
        # The library hides an open file before another is renamed over it: together they are the one atomic rename.
        for position in range(len(self._pending) - 1, -1, -1):
            if target in self._pending[position].targets:
                if self._pending[position].is_hiding:
                    del self._pending[position]
                return


def _entries(node: Node) -> dict[str, Node]:
    if not isinstance(node, Folder):
        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    return node.entries


def _error(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)


def _refuse(number: int, path: str) -> Node:
    raise _error(number, path)
