"""Disks that forget: what a file or a folder held when it was last synced is kept aside, and a power failure goes back
to it, wholly or, as disks do, with parts of what was written since.

The product syncs through `consensus.disk` only, so its three functions are replaced while a simulation runs. Nothing is
really synced; the files themselves are real. A full disk is a limit on the size of files while the member runs.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from consensus import disk

_FOLDER = -1  # stands for an inode
_NO_LIMIT = resource.getrlimit(resource.RLIMIT_FSIZE)


class Ended(BaseException):
    """The member's process ends at this very sync, and with it the power or not; nothing of the product can hold it
    up."""

    def __init__(self, *, power_lost: bool) -> None:
        super().__init__(power_lost)
        self.power_lost = power_lost


class Volume:
    """One member's disk: a folder and those in it."""

    def __init__(self, root: Path, chance: Random, *, sector_bytes: int) -> None:
        self.root = root
        self._chance = chance
        self._sector_bytes = sector_bytes
        self._contents: dict[int, bytes] = {}  # synced, by inode
        self._names: dict[str, dict[str, int]] = {}  # synced, by folder: name to inode
        self._pins: dict[int, int] = {}  # open files, so that no inode is given out twice
        self.syncs = 0
        self.fuse = 0  # the sync at which the process ends, counted down
        self.fuse_kills = False  # and the power stays
        self.rewrite_fuse = False  # the next sync that would change what was synced before ends it, and the power
        self.removal_fuse = False  # the same of one that would let names be gone
        self.bad = 0  # the same, for a sync that fails
        self.slow = 0.0  # seconds that a sync takes
        self.spent = 0.0  # seconds that syncs have taken since somebody looked
        self.full = False
        self.truncations = 0
        root.mkdir(parents=True)
        self._names[str(root)] = {}

    def sync_file(self, descriptor: int) -> None:
        """Its content is kept."""
        self._before()
        inode = self._pin(descriptor)
        content = _read(self._pins[inode])
        if self.rewrite_fuse and not content.startswith(self._contents.get(inode, b"")):
            self.rewrite_fuse = False
            raise Ended(power_lost=True)
        self._contents[inode] = content
        self._after()

    def truncate(self, descriptor: int) -> None:
        """It is about to lose its end; the disk may have written it by itself, as it may at any time."""
        self.truncations += 1
        if self._chance.random() < 0.5:
            inode = self._pin(descriptor)
            self._contents[inode] = _read(self._pins[inode])

    def sync_folder(self, path: str) -> None:
        """Its names are kept; what they name need not be."""
        self._before()
        present = self._present(path)
        if self.removal_fuse and not present.keys() >= self._names.get(path, {}).keys():
            self.removal_fuse = False
            raise Ended(power_lost=True)
        self._names[path] = present
        self._after()

    def lose_power(self, torn: float) -> None:
        """The folder becomes what the disk held; with chance `torn`, parts of what was not synced are there too."""
        kept = self._chance.random() < torn
        tree = {path: self._survivors(path, kept) for path in self._reachable(str(self.root), kept)}
        files = {
            f"{path}/{name}": self._content(inode, kept)
            for path, names in tree.items()
            for name, inode in names.items()
            if inode != _FOLDER
        }
        self.close()
        shutil.rmtree(self.root)
        self._names = {}
        for path in tree:
            Path(path).mkdir()
        for name, content in sorted(files.items()):
            Path(name).write_bytes(content)
        for path in tree:
            self._names[path] = self._present(path)
        self._contents = {inode: _read(pin) for inode, pin in self._pins.items()}

    def close(self) -> None:
        """Lets go of the files."""
        for pin in self._pins.values():
            os.close(pin)
        self._pins, self._contents = {}, {}

    @contextmanager
    def limited(self) -> Iterator[None]:
        """Files cannot grow beyond some size, as the disk is full: the log not by more than a few entries."""
        little = self._written_to() + self._chance.randint(0, 300)
        room = self._chance.choice((0, 60, little, little, little))
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, _NO_LIMIT[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, _NO_LIMIT)

    def _before(self) -> None:
        self.syncs += 1
        if self.slow:
            self.spent += self.slow * self._chance.random()
        if self.bad:
            self.bad -= 1
            if not self.bad:
                raise OSError(errno.EIO, "the simulated disk has failed")
        if self.fuse == 1 and self._chance.random() < 0.6:
            self.fuse = 0
            raise Ended(power_lost=not self.fuse_kills)

    def _after(self) -> None:
        if self.fuse:
            self.fuse -= 1
            if not self.fuse:
                raise Ended(power_lost=not self.fuse_kills)

    def _written_to(self) -> int:
        """How large the log's newest segment is."""
        newest = max(self.root.rglob("*.log"), key=lambda file: file.name, default=None)
        return newest.stat().st_size if newest else 0

    def _pin(self, descriptor: int) -> int:
        inode = os.fstat(descriptor).st_ino
        if inode not in self._pins:
            self._pins[inode] = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
        return inode

    def _present(self, path: str) -> dict[str, int]:
        found = {}
        with os.scandir(path) as entries:
            for entry in sorted(entries, key=lambda each: each.name):
                found[entry.name] = _FOLDER if entry.is_dir() else entry.inode()
                if not entry.is_dir() and entry.inode() not in self._pins:
                    self._pins[entry.inode()] = os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC)
        return found

    def _reachable(self, path: str, kept: bool) -> list[str]:
        known = self._names.get(path, {})
        there = [name for name, inode in known.items() if inode == _FOLDER]
        if kept:
            fresh = [name for name, inode in self._present(path).items() if inode == _FOLDER and name not in there]
            there += [name for name in fresh if self._chance.random() < 0.5]
        return [path, *(each for name in there for each in self._reachable(f"{path}/{name}", kept))]

    def _survivors(self, path: str, kept: bool) -> dict[str, int]:
        """Each name as it was synced, or, by chance, as it is now."""
        synced, now = self._names.get(path, {}), self._present(path)
        found = {}
        for name in sorted({*synced, *now}):
            chosen = now if kept and self._chance.random() < 0.5 else synced
            if name in chosen:
                found[name] = chosen[name]
        return found

    def _content(self, inode: int, kept: bool) -> bytes:
        synced = self._contents.get(inode, b"")
        now = _read(self._pins[inode])
        if not kept or now == synced:
            return synced
        least, most = sorted((len(synced), len(now)))
        length = self._chance.choice((least, most, most, self._chance.randint(least, most)))
        size = self._sector_bytes
        starts = range(0, length, size)
        fresh = [start for start in starts if now[start : start + size] != synced[start : start + size]]
        place = self._chance.randint(0, len(fresh))
        share = self._chance.choice((0.0, 0.5, 0.9, 1.0))
        anywhere = [start for start in fresh if self._chance.random() < share]
        written = set(self._chance.choice((fresh[:place], fresh[place:], anywhere)))
        parts = [(now if start in written else synced)[start : start + size].ljust(size, b"\0") for start in starts]
        return b"".join(parts)[:length]


class Disks:
    """All members' volumes; behind the product's door while `installed`."""

    def __init__(self) -> None:
        self._volumes: dict[str, Volume] = {}
        self._ftruncate = os.ftruncate

    def add(self, root: Path, chance: Random, *, sector_bytes: int) -> Volume:
        """A new, empty disk, which keeps or loses that many bytes as a whole."""
        volume = Volume(root, chance, sector_bytes=sector_bytes)
        self._volumes[str(root)] = volume
        return volume

    @contextmanager
    def installed(self) -> Iterator[None]:
        """The product's syncs come here; those of other folders do nothing."""
        shipped, self._ftruncate = (disk.sync_data, disk.sync_file, disk.sync_folder), os.ftruncate
        disk.sync_data = disk.sync_file = self._sync_file
        disk.sync_folder = self._sync_folder
        os.ftruncate = self._truncate
        try:
            yield
        finally:
            disk.sync_data, disk.sync_file, disk.sync_folder = shipped
            os.ftruncate = self._ftruncate
            for volume in self._volumes.values():
                volume.close()

    def _sync_file(self, descriptor: int) -> None:
        if volume := self._find(os.readlink(f"/proc/self/fd/{descriptor}")):
            volume.sync_file(descriptor)

    def _truncate(self, descriptor: int, length: int) -> None:
        if volume := self._find(os.readlink(f"/proc/self/fd/{descriptor}")):
            volume.truncate(descriptor)
        self._ftruncate(descriptor, length)

    def _sync_folder(self, path: Path) -> None:
        if volume := self._find(f"{path}/"):
            volume.sync_folder(str(path))

    def _find(self, path: str) -> Volume | None:
        return next((each for root, each in self._volumes.items() if path.startswith(f"{root}/")), None)


def _read(descriptor: int) -> bytes:
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)
