"""The lossy file system: `chaos.volume` and `chaos.faults` mounted by FUSE.

`python -m chaos.lossyfs MOUNTPOINT` serves until its standard input ends. It takes one JSON object a line there and
answers each with one line: `{"do": "crash", "kept": 0.0, "seed": 1}` (unmounts, forgets, mounts again),
`{"do": "faults", "faults": [...]}`, `{"do": "power", "after": n}`, `{"do": "writeback", "chance": p}`,
`{"do": "free", "bytes": n}`. `chaos.mount` is the other end.

The kernel caches pages and attributes for ever, since nothing changes behind its back; a crash unmounts, which drops
them.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import count
from pathlib import PurePosixPath
from random import Random
from typing import Any, TypeVar

import mfusepy

from chaos.faults import Fault, Faults
from chaos.volume import File, Folder, Node, Volume
from consensus.clock import wall_ms

_BLOCK_BYTES = 4096
_CAPACITY_BYTES = 1 << 40
_UNMOUNT_TRIES = 50
N = TypeVar("N", bound=Node)
_HIDDEN = ".fuse_hidden"  # what the library renames an open file to when its last name goes

_MOUNT_OPTIONS: dict[str, Any] = {
    "kernel_cache": True,
    "attr_timeout": 86400,
    "entry_timeout": 86400,
    "use_ino": True,
    "big_writes": True,
    "default_permissions": True,
    "fsname": "lossyfs",
}


class _LossyFs:
    """FUSE operations on one volume; all run under one lock."""

    use_ns = True

    def __init__(self, volume: Volume, on_mounted: Callable[[], None]) -> None:
        self.volume = volume
        self.faults = Faults()
        self.free_bytes = _CAPACITY_BYTES // 2
        self.power: int | None = None  # how many changes are still made until all fail
        self.changes = 0  # asked for so far
        self.writeback = 0.0  # the chance, after each change, that it is durable at once, unasked
        self._chance = Random(0)
        self._on_mounted = on_mounted
        self._lock = threading.Lock()
        self._handles: dict[int, File] = {}
        self._handle_numbers = count(1)
        self._hidden: dict[str, Node] = {}
        self._cut_short: set[int] = set()  # handles

    def init(self, path: str) -> None:
        self._on_mounted()

    def crash(self, kept: float, seed: int) -> None:
        """To be called while nothing is mounted."""
        with self._lock:
            self._handles.clear()
            self._hidden.clear()
            self._chance = Random(seed)
            self.power = None
            self.volume.crash(kept, Random(seed))

    def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
        with self._lock:
            node = self._handles[fh] if fh else self._find(path)
            length = len(node.data) if isinstance(node, File) else 0
            times = {"st_atime": node.accessed, "st_mtime": node.modified, "st_ctime": node.modified}
            return times | {
                "st_ino": node.number,
                "st_mode": node.mode,
                "st_nlink": 2 if isinstance(node, Folder) else 1,
                "st_uid": node.owner,
                "st_gid": node.group,
                "st_size": length,
                "st_blocks": -(-length // 512),
                "st_blksize": _BLOCK_BYTES,
            }

    def readdir(self, path: str, fh: int) -> list[tuple[str, dict[str, int], int]]:
        with self._lock:
            folder = self._folder(path)
            named = [(".", folder), ("..", folder), *folder.entries.items()]
            return [(name, {"st_ino": node.number, "st_mode": node.mode}, 0) for name, node in named]

    def create(self, path: str, mode: int, flags: int) -> int:
        self._change("create", path)
        with self._lock:
            file = self.volume.create(path, mode)
            self._write_back_entry(path)
            file.owner, file.group, _ = mfusepy.fuse_get_context()
            return self._handle(_touched(file))

    def open(self, path: str, flags: int) -> int:
        self._fault("open", path)
        with self._lock:
            return self._handle(self._file(path))

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        self._fault("read", path)
        with self._lock:
            return bytes(memoryview(self._handles[fh].data)[offset : offset + size])

    def write(self, path: str, content: bytes, offset: int, fh: int) -> int:
        self._use_power(path)
        with self._lock:
            was_cut_short = fh in self._cut_short
            self._cut_short.discard(fh)
        if was_cut_short:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        try:
            self._fault("write", path)
        except OSError as error:
            content = content[: len(content) // 2]
            if error.errno != errno.ENOSPC or not content:
                raise
            self._cut_short.add(fh)  # a disk that is full takes what still fits: the error comes with the next write
        with self._lock:
            file = _touched(self._handles[fh])
            file.write(offset, content)
            if self._chance.random() < self.writeback:
                file.sync()
            return len(content)

    def truncate(self, path: str, length: int, fh: int | None = None) -> None:
        self._change("truncate", path)
        with self._lock:
            _touched(self._handles[fh] if fh else self._file(path)).truncate(length)

    def fsync(self, path: str, datasync: int, fh: int) -> None:
        self._use_power(path)
        try:
            self._fault("fsync", path)
        except OSError:
            with self._lock:
                self._handles[fh].sync_failed()
            raise
        with self._lock:
            self._handles[fh].sync()

    def fsyncdir(self, path: str, datasync: int, fh: int) -> None:
        self._change("fsyncdir", path)
        with self._lock:
            self.volume.sync_folder(self._folder(path))

    def release(self, path: str, fh: int) -> None:
        with self._lock:
            del self._handles[fh]
            self._cut_short.discard(fh)

    def mkdir(self, path: str, mode: int) -> None:
        self._change("mkdir", path)
        with self._lock:
            folder = _touched(self.volume.mkdir(path, mode))
            folder.owner, folder.group, _ = mfusepy.fuse_get_context()

    def rmdir(self, path: str) -> None:
        self._change("rmdir", path)
        with self._lock:
            self.volume.rmdir(path)

    def unlink(self, path: str) -> None:
        self._change("unlink", path)
        with self._lock:
            if not self._hidden.pop(path, None):
                self.volume.unlink(path)
                self._write_back_entry(path)

    def rename(self, old: str, new: str) -> None:
        if PurePosixPath(new).name.startswith(_HIDDEN):
            with self._lock:
                self._hidden[new] = self.volume.unlink(old, is_hiding=True)
            return
        self._change("rename", new)
        with self._lock:
            self.volume.rename(old, new)
            self._write_back_entry(new)

    def link(self, path: str, existing: str) -> None:
        self._change("link", path)
        with self._lock:
            self.volume.link(existing, path)

    def chmod(self, path: str, mode: int) -> None:
        with self._lock:
            node = self._find(path)
            node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(mode)

    def chown(self, path: str, owner: int, group: int) -> None:
        with self._lock:
            node = self._find(path)
            node.owner = node.owner if owner == -1 else owner
            node.group = node.group if group == -1 else group

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> None:
        with self._lock:
            node = self._find(path)
            node.accessed, node.modified = times or (_now(), _now())

    def statfs(self, path: str) -> dict[str, int]:
        free = self.free_bytes // _BLOCK_BYTES
        sizes = {"f_bsize": _BLOCK_BYTES, "f_frsize": _BLOCK_BYTES, "f_blocks": _CAPACITY_BYTES // _BLOCK_BYTES}
        return sizes | {"f_bfree": free, "f_bavail": free, "f_files": 1 << 30, "f_ffree": 1 << 29, "f_namemax": 255}

    def _change(self, operation: str, path: str) -> None:
        self._use_power(path)
        self._fault(operation, path)

    def _use_power(self, path: str) -> None:
        with self._lock:
            self.changes += 1
            if self.power is not None:
                self.power -= 1
                if self.power < 0:
                    raise OSError(errno.EIO, "the power is off", path)

    def _fault(self, operation: str, path: str) -> None:
        with self._lock:
            delay, error = self.faults.strike(operation, path)
        if delay:
            time.sleep(delay)
        if error:
            raise error

    def _write_back_entry(self, path: str) -> None:
        if self._chance.random() < self.writeback:
            self.volume.sync_folder(self._folder(str(PurePosixPath(path).parent)))

    def _find(self, path: str) -> Node:
        return self._hidden.get(path) or self.volume.find(path)

    def _file(self, path: str) -> File:
        node = self._find(path)
        if not isinstance(node, File):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        return node

    def _folder(self, path: str) -> Folder:
        node = self._find(path)
        if not isinstance(node, Folder):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        return node

    def _handle(self, file: File) -> int:
        handle = next(self._handle_numbers)
        self._handles[handle] = file
        return handle


def _now() -> int:
    return wall_ms() * 1_000_000


def _touched(node: N) -> N:
    node.modified = _now()
    return node


class Server:
    """Mounts, obeys the control pipe, and mounts again after each crash."""

    def __init__(self, mountpoint: str) -> None:
        self.mountpoint = mountpoint
        self.file_system = _LossyFs(Volume(), lambda: _answer({"mounted": mountpoint}))
        self._crash: tuple[float, int] | None = None

    def run(self) -> None:
        """Returns when the control pipe has ended and the file system is unmounted."""
        threading.Thread(target=self._obey, daemon=True).start()
        while True:
            self._crash = None
            mfusepy.FUSE(self.file_system, self.mountpoint, foreground=True, **_MOUNT_OPTIONS)
            if self._crash is None:
                return
            self.file_system.crash(*self._crash)

    def _obey(self) -> None:
        for line in sys.stdin:
            order: dict[str, Any] = json.loads(line)
            if order["do"] == "crash":
                self._crash = (order["kept"], order["seed"])
                self._unmount()
                continue
            if order["do"] == "faults":
                self.file_system.faults.replace([Fault(**fault) for fault in order["faults"]])
            elif order["do"] == "power":
                self.file_system.power = order["after"]
            elif order["do"] == "writeback":
                self.file_system.writeback = order["chance"]
            elif order["do"] == "free":
                self.file_system.free_bytes = order["bytes"]
            _answer({"done": order["do"], "changes": self.file_system.changes})
        self._unmount()

    def _unmount(self) -> None:
        # A process that was killed a moment ago may still be letting go of its files; the last try detaches regardless.
        for _ in range(_UNMOUNT_TRIES):
            done = subprocess.run(["fusermount", "-u", self.mountpoint], capture_output=True, check=False)
            if done.returncode == 0:
                return
            time.sleep(0.1)
        subprocess.run(["fusermount", "-u", "-z", self.mountpoint], check=False)


def _answer(answer: dict[str, object]) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    Server(sys.argv[1]).run()
