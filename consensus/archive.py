"""The snapshots that a node takes of its state: the newest is kept, and read by any number of receivers at once.

Each is two files: `<name>.sqlite` and `<name>.manifest`, which is put there last, when the first is whole and synced.
Whatever else lies in the folder is left from a crash.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

from consensus import disk
from consensus.copying import STEP_SECONDS
from consensus.errors import SnapshotDamaged, SnapshotFull, SnapshotUnavailable, StateRefused
from consensus.snapshot import CHUNK_BYTES, Manifest, describe, is_name
from consensus.state import State

DATABASE, MANIFEST = ".sqlite", ".manifest"

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_UNFINISHED = "unfinished.sqlite"

_logger = logging.getLogger(__name__)


class Archive:
    """Those in one folder. Any thread may ask; `open` is the only maker, one a folder."""

    def __init__(self, folder: Path, free_bytes: int, newest: Manifest | None) -> None:
        self._folder = folder
        self._free_bytes = free_bytes
        self._newest = newest
        self._taking = False
        self._changing = threading.Lock()  # held while `_newest` and the files change

    @classmethod
    def open(cls, folder: Path, *, free_bytes: int = 0) -> Archive:
        """Finds the newest whole one and removes everything else. No snapshot is taken that would leave less than
        `free_bytes` of the disk. Raises OSError."""
        folder.mkdir(parents=True, exist_ok=True)
        disk.sync_folder(folder.parent)
        # A predecessor may have been killed between its last rename and this: the older ones go only after it.
        disk.sync_folder(folder)
        found = [manifest for path in folder.glob(f"*{MANIFEST}") if (manifest := _read_manifest(path)) is not None]
        newest = max(found, key=lambda manifest: manifest.applied, default=None)
        _remove_all_but(folder, newest)
        return cls(folder, free_bytes, newest)

    @property
    def newest(self) -> Manifest | None:
        """What a receiver that begins now would get."""
        return self._newest

    def begin(self, state: State, *, step_seconds: float = STEP_SECONDS) -> Taking:
        """Begins to take one of the state as it will be at the last step; in the state's thread.

        Raises SnapshotUnavailable (also while another is being taken) and SnapshotFull when the disk has no room.
        """
        with self._changing:
            if self._taking:
                raise SnapshotUnavailable("a snapshot is being taken already")
            check_room(self._folder, state.size_bytes, self._free_bytes)
            self._taking = True
        return Taking(self._folder / _UNFINISHED, state, step_seconds, self._finish)

    def read(self, name: str = "", offset: int = 0) -> tuple[Reading, int]:
        """The snapshot `name` from `offset` on, if it is still kept, otherwise the newest from its beginning.

        Raises SnapshotUnavailable when there is none.
        """
        with self._changing:
            newest = self._newest
            if newest is None:
                raise SnapshotUnavailable("no snapshot is kept here")
            resumed = newest.name == name and 0 <= offset <= newest.size_bytes and offset % CHUNK_BYTES == 0
            try:
                reading = Reading(newest, self._folder / f"{newest.name}{DATABASE}", self._drop)
            except OSError as error:
                raise SnapshotUnavailable(f"the snapshot kept here cannot be read: {error}") from error
        return reading, offset if resumed else 0

    def _finish(self, unfinished: Path, term: int | None) -> Manifest | None:
        try:
            return None if term is None else self._keep(unfinished, term)
        except OSError as error:
            kind = SnapshotFull if error.errno in FULL else SnapshotUnavailable
            raise kind(f"the snapshot could not be written: {error}") from error
        except (sqlite3.Error, StateRefused) as error:
            raise SnapshotUnavailable(f"the copy of the state is not sound: {error}") from error
        finally:
            unfinished.unlink(missing_ok=True)
            self._taking = False

    def _keep(self, unfinished: Path, term: int) -> Manifest:
        with unfinished.open("rb") as file:
            disk.sync_data(file.fileno())
        manifest = describe(unfinished, term)
        pending = self._folder / "unfinished.manifest"
        with pending.open("wb") as file:
            file.write(manifest.encode())
            file.flush()
            disk.sync_data(file.fileno())
        with self._changing:
            unfinished.rename(self._folder / f"{manifest.name}{DATABASE}")
            pending.rename(self._folder / f"{manifest.name}{MANIFEST}")
            disk.sync_folder(self._folder)
            self._newest = manifest
            # Who is reading an older one has it open and reads on.
            _remove_all_but(self._folder, manifest)
        return manifest

    def _drop(self, damaged: Manifest) -> None:
        # A receiver could never get past the damage; without this snapshot it asks until there is another.
        _logger.error("snapshot_damaged", extra={"snapshot": damaged.name})
        with self._changing:
            if self._newest is not None and self._newest.name == damaged.name:
                self._newest = None
                _remove_all_but(self._folder, None, _UNFINISHED)


class Taking:
    """One snapshot being taken. `step` and `abandon` in the state's thread, `finish` in any other."""

    def __init__(
        self,
        unfinished: Path,
        state: State,
        step_seconds: float,
        finish: Callable[[Path, int | None], Manifest | None],
    ) -> None:
        self._unfinished = unfinished
        self._state = state
        self._finish = finish
        self._applied: int | None = None
        self._ended = False
        try:
            unfinished.unlink(missing_ok=True)
            self._copying = state.copy_to(unfinished, step_seconds=step_seconds)
        except BaseException:
            finish(unfinished, None)
            raise

    @property
    def applied(self) -> int:
        """The index of the last entry in it, known after the last step (ValueError before)."""
        if self._applied is None:
            raise ValueError("the snapshot is not copied yet")
        return self._applied

    def step(self) -> bool:
        """Copies for some milliseconds; whether there is more to do. Entries may be applied between two steps. Raises
        SnapshotFull and SnapshotUnavailable; `abandon` it then."""
        if self._copying.step():
            return True
        if self._applied is None:
            self._applied = self._state.applied
        return False

    def finish(self, term: int) -> Manifest:
        """After the last step: syncs it and makes it the newest; `term` is that of the entry at `applied`. Takes time
        in proportion to the state, and may not delay the thread that applies.

        Raises SnapshotFull, SnapshotRefused (too large to be sent) and SnapshotUnavailable; it is then abandoned.
        """
        if self._applied is None or self._ended:
            raise ValueError("there is nothing to finish")
        self._ended = True
        manifest = self._finish(self._unfinished, term)
        assert manifest is not None
        return manifest

    def abandon(self) -> None:
        """Gives it up and removes what there is; does nothing once it is finished. Idempotent."""
        if not self._ended:
            self._ended = True
            self._copying.abandon()
            self._finish(self._unfinished, None)


class Reading:
    """A snapshot open for one receiver; it stays readable when a newer one takes its place."""

    def __init__(self, manifest: Manifest, path: Path, damaged: Callable[[Manifest], None]) -> None:
        self.manifest = manifest
        self._damaged = damaged
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def chunk(self, offset: int) -> bytes:
        """The chunk that begins at `offset`, as the manifest says it; empty at the end. Raises SnapshotDamaged, after
        which this snapshot is no longer kept, and OSError."""
        if offset >= self.manifest.size_bytes:
            return b""
        chunk = os.pread(self._descriptor, CHUNK_BYTES, offset)
        try:
            self.manifest.verify_chunk(offset, chunk)
        except SnapshotDamaged:
            self._damaged(self.manifest)
            raise
        return chunk

    def close(self) -> None:
        """Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _read_manifest(path: Path) -> Manifest | None:
    try:
        manifest = Manifest.decode(path.read_bytes(), path.stem) if is_name(path.stem) else None
        size_bytes = path.with_suffix(DATABASE).stat().st_size
    except (SnapshotDamaged, FileNotFoundError):
        return None
    return manifest if manifest is not None and size_bytes == manifest.size_bytes else None


def _remove_all_but(folder: Path, kept: Manifest | None, *names: str) -> None:
    keep = {*names, *(f"{kept.name}{suffix}" for suffix in (DATABASE, MANIFEST) if kept is not None)}
    # Manifests first: a file without one is known to be a leftover.
    for path in sorted(folder.iterdir(), key=lambda path: path.suffix):
        if path.name not in keep:
            path.unlink(missing_ok=True)


def check_room(folder: Path, size_bytes: int, free_bytes: int) -> None:
    """Raises SnapshotFull when the disk of `folder` would not keep `free_bytes` free beside `size_bytes` more."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise SnapshotUnavailable(f"{folder} cannot be written to: {error}") from error
    if free < size_bytes + free_bytes:
        raise SnapshotFull(
            f"a snapshot takes {size_bytes} bytes in {folder}, where {free} are free and {free_bytes} have to stay so"
        )
