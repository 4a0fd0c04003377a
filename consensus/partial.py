"""A snapshot on its way to this node: its verified chunks so far, in a file that outlives the process.

Nothing here relies on a sync and no offset is written down: what was received is what its hashes say, chunk after
chunk, when the folder is opened again. Installing it syncs the file.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from consensus import disk
from consensus.archive import DATABASE, FULL, MANIFEST, check_room
from consensus.errors import SnapshotDamaged, SnapshotFull, SnapshotUnavailable
from consensus.snapshot import CHUNK_BYTES, Manifest, VerifiedSnapshot, is_name, verify


class Partial:
    """At most one snapshot, in a folder on the file system of the state. One thread at a time."""

    def __init__(self, folder: Path, free_bytes: int) -> None:
        self._folder = folder
        self._free_bytes = free_bytes
        self._manifest: Manifest | None = None
        self._descriptor = -1
        self._offset = 0

    @classmethod
    def open(cls, folder: Path, *, free_bytes: int = 0) -> Partial:
        """Takes up what an earlier process had received, after reading and verifying it. Nothing is received that would
        leave less than `free_bytes` of the disk. Raises OSError."""
        folder.mkdir(parents=True, exist_ok=True)
        partial = cls(folder, free_bytes)
        for path in sorted(folder.glob(f"*{MANIFEST}")):
            with suppress(SnapshotDamaged):
                if is_name(path.stem):
                    partial._take_up(Manifest.decode(path.read_bytes(), path.stem))
                    break
        partial._remove_all_but(partial.name)
        return partial

    @property
    def name(self) -> str:
        """The snapshot that is being received, or ""."""
        return self._manifest.name if self._manifest else ""

    @property
    def applied(self) -> int:
        """The index of the last entry in it; 0 when nothing is being received."""
        return self._manifest.applied if self._manifest else 0

    @property
    def offset(self) -> int:
        """How many of its bytes are here and verified."""
        return self._offset

    @property
    def complete(self) -> bool:
        """Whether all of them are."""
        return self._manifest is not None and self._offset == self._manifest.size_bytes

    def begin(self, manifest: Manifest) -> None:
        """Receives this one from now on: anew, unless it is the one that is being received already. Raises SnapshotFull
        and SnapshotUnavailable."""
        if self.name == manifest.name:
            return
        self.discard()
        check_room(self._folder, manifest.size_bytes, self._free_bytes)
        try:
            self._path(manifest.name, MANIFEST).write_bytes(manifest.encode())
            self._take_up(manifest)
        except OSError as error:
            raise self._given_up(error) from error

    def add(self, chunk: bytes) -> None:
        """The chunk at `offset`. Raises SnapshotDamaged (nothing was added), SnapshotFull and SnapshotUnavailable (all
        that had come is given up, so that what else the disk is for has its room)."""
        if self._manifest is None:
            raise SnapshotDamaged("bytes came before the manifest that they belong to")
        self._manifest.verify_chunk(self._offset, chunk)
        try:
            check_room(self._folder, len(chunk), self._free_bytes)
            left = memoryview(chunk)
            while left:
                left = left[os.pwrite(self._descriptor, left, self._offset + len(chunk) - len(left)) :]
            if (self._offset + len(chunk)) % disk.PORTION_BYTES == 0:
                disk.write_out(self._descriptor)
        except OSError as error:
            raise self._given_up(error) from error
        except SnapshotFull:
            self.discard()
            raise
        self._offset += len(chunk)

    def verify(self, cluster_id: str) -> VerifiedSnapshot:
        """What has come, ready to be installed; reads all of it. Raises SnapshotUnavailable while it is not complete,
        SnapshotRefused and SnapshotDamaged (it is given up), OSError."""
        if self._manifest is None or not self.complete:
            raise SnapshotUnavailable(f"only {self._offset} bytes of the snapshot have come")
        try:
            return verify(self._path(self.name, DATABASE), self._manifest, cluster_id)
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Gives up what has come, or forgets it once it is installed."""
        self.close()
        self._manifest = None
        self._offset = 0
        self._remove_all_but("")

    def close(self) -> None:
        """What has come stays for later. Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _take_up(self, manifest: Manifest) -> None:
        path = self._path(manifest.name, DATABASE)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._manifest = manifest
        self._offset = 0
        with suppress(SnapshotDamaged):
            while self._offset < manifest.size_bytes:
                chunk = os.pread(self._descriptor, CHUNK_BYTES, self._offset)
                manifest.verify_chunk(self._offset, chunk)
                self._offset += len(chunk)
        os.ftruncate(self._descriptor, self._offset)

    def _given_up(self, error: OSError) -> SnapshotFull | SnapshotUnavailable:
        with suppress(OSError):
            self.discard()
        kind = SnapshotFull if error.errno in FULL else SnapshotUnavailable
        return kind(f"a received snapshot could not be written to {self._folder}: {error}")

    def _path(self, name: str, suffix: str) -> Path:
        return self._folder / f"{name}{suffix}"

    def _remove_all_but(self, name: str) -> None:
        for path in self._folder.iterdir():
            if path.stem != name:
                path.unlink(missing_ok=True)
