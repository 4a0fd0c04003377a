"""One upload's folder while a request holds it: `data`, the bytes so far, and `state`, the record beside them.

Everything here blocks and runs in threads, one call at a time an upload. The folder is held by a lock (flock) that the
kernel drops with its process, so that a gateway's death frees its uploads. After a commit `data` has become the blob
and `state` alone remains, which says which.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from consensus.commands import BlobFact
from consensus.disk import sync_file
from consensus.names import Digest
from consensus.parts import PartsHash, are_parts_of
from node.blobs.filesystem import FilesystemStore, disk_errors
from node.blobs.hashing import RunningHash, new_hash, restore_hash
from node.blobs.record import UploadRecord
from node.blobs.syscalls import start_write_back
from replication.stores import BlobNotFound, DigestMismatch, StoreError, StoreFailed, UploadBusy, UploadNotFound

_PIECE_BYTES = 1024 * 1024
_VECTOR = 512  # chunks a system call; the kernel's own bound is 1,024
_ROOM_CHECK_BYTES = 16 * 1024 * 1024
_WRITE_BACK_BYTES = 8 * 1024 * 1024
_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
_OPEN_DATA = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW


def hold(folder: Path) -> int:
    """Takes the lock on an upload's folder and returns the descriptor that stands for it. Raises UploadNotFound,
    UploadBusy, StoreFailed."""
    with disk_errors("holding an upload"):
        try:
            lock = os.open(folder, _OPEN_FOLDER)
        except (FileNotFoundError, NotADirectoryError):
            raise UploadNotFound(folder.name) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise UploadBusy(folder.name) from None
        except OSError:
            os.close(lock)
            raise
    return lock


def discard(folder: Path, touched_before: float | None = None) -> bool:
    """Removes an upload that nobody holds; with a time (seconds since the epoch) only if nothing in it changed since.
    Raises UploadNotFound, UploadBusy, StoreFailed."""
    if touched_before is not None and _touched(folder) >= touched_before:
        return False
    lock = hold(folder)
    try:
        if touched_before is not None and _touched(folder) >= touched_before:
            return False  # somebody came and went between the look and the lock
        _remove(folder)
    finally:
        os.close(lock)
    return True


def _touched(folder: Path) -> float:
    latest = 0.0
    for path in (folder, folder / "data", folder / "state"):
        with suppress(OSError):
            latest = max(latest, path.stat().st_mtime)
    return latest


def _remove(folder: Path) -> None:
    with disk_errors("removing an upload"), suppress(FileNotFoundError):
        shutil.rmtree(folder)


class HeldUpload:
    """An upload that this process holds. `offset` counts the bytes written and hashed."""

    def __init__(self, store: FilesystemStore, incarnation: str, folder: Path, lock: int) -> None:
        self._store = store
        self._incarnation = incarnation
        self._folder = folder
        self._data_path = folder / "data"
        self._record_path = folder / "state"
        self._lock = lock
        self._data = -1
        self._hash: RunningHash = new_hash("sha256")
        self._parts = PartsHash()
        self._committed: BlobFact | None = None
        self._room_offset = -_ROOM_CHECK_BYTES  # where there was room when last asked; the first write asks
        self._written_back = 0  # up to where the kernel was asked to write
        self.failure: StoreError | None = None
        self.offset = 0

    @classmethod
    def begin(cls, store: FilesystemStore, incarnation: str, folder: Path, algorithm: str) -> HeldUpload:
        """A new upload in a new folder. Raises StoreFull, StoreFailed."""
        store.require_room()
        with disk_errors("beginning an upload"):
            folder.mkdir(mode=0o700)
        try:
            upload = cls(store, incarnation, folder, hold(folder))
            try:
                with disk_errors("beginning an upload"):
                    upload._data = os.open(upload._data_path, _OPEN_DATA | os.O_CREAT | os.O_EXCL, 0o640)
            except StoreError:
                upload._release()
                raise
        except StoreError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        upload._hash = new_hash(algorithm)
        upload._room_offset = 0
        return upload

    @classmethod
    def resume(cls, store: FilesystemStore, incarnation: str, folder: Path) -> HeldUpload:
        """An upload begun before. Raises UploadNotFound, UploadBusy, StoreFull, StoreFailed."""
        upload = cls(store, incarnation, folder, hold(folder))
        try:
            upload._take_up(UploadRecord.read(upload._record_path))
        except BaseException:
            upload._release()
            raise
        return upload

    @property
    def committed(self) -> bool:
        """Whether the bytes have become a blob."""
        return self._committed is not None

    def append(self, chunks: Sequence[bytes]) -> None:
        """All of `chunks` or none. Raises StoreFull, StoreFailed, and the same ever after."""
        self._require_sound()
        size = sum(map(len, chunks))
        try:
            if self.offset + size - self._room_offset >= _ROOM_CHECK_BYTES:
                self._store.require_room()
                self._room_offset = self.offset
            with disk_errors("writing an upload"):
                self._write(chunks)
        except StoreError as error:
            self.failure = error
            with suppress(OSError):
                os.ftruncate(self._data, self.offset)
            raise
        for chunk in chunks:
            self._hash.update(chunk)
            self._parts.update(chunk)
        self.offset += size
        if self.offset - self._written_back >= _WRITE_BACK_BYTES:
            # The sync of a large upload would take as long as all its bytes need; so they are on their way already.
            start_write_back(self._data, self._written_back, self.offset - self._written_back)
            self._written_back = self.offset

    def suspend(self) -> None:
        """Leaves the upload to whoever resumes it. Raises StoreFull, StoreFailed: then the last record counts."""
        try:
            if not self.committed:
                with disk_errors("suspending an upload"):
                    self._record(None)
        finally:
            self._release()

    def commit(self, digest: Digest) -> BlobFact:
        """See Upload. Lets go of the upload in any case."""
        try:
            return self._commit_again(digest) if self.committed else self._commit(digest)
        finally:
            self._release()

    def abort(self) -> None:
        """Removes the upload. Raises StoreFailed."""
        try:
            _remove(self._folder)
        finally:
            self._release()

    def _take_up(self, record: UploadRecord | None) -> None:
        with disk_errors("resuming an upload"):
            try:
                self._data = os.open(self._data_path, _OPEN_DATA)
            except FileNotFoundError:
                self._take_up_committed(record)
                return
            if record is None or os.fstat(self._data).st_size < record.offset:
                self._give_up()
            os.ftruncate(self._data, record.offset)
            # Within one start of the node the page cache is whole; a later start reads what the disk really has.
            self._go_on(record)
            if self._hash.hexdigest() != record.received:
                self._give_up()
        self.offset = self._written_back = record.offset

    def _go_on(self, record: UploadRecord) -> None:
        """With both hashes; reads what either lacks, which is at least what there is of the last part."""
        known = record.hash_state if record.incarnation == self._incarnation else None
        kept = restore_hash(record.algorithm, known, record.offset)
        parts = PartsHash.resume(record.parts, record.offset) if kept and record.parts is not None else None
        self._hash, self._parts = kept or new_hash(record.algorithm), parts or PartsHash()
        for piece in self._pieces(record.offset if self._parts.full else self._parts.offset, record.offset):
            if not kept:
                self._hash.update(piece)
            self._parts.update(piece)

    def _give_up(self) -> NoReturn:
        _remove(self._folder)
        raise UploadNotFound(self._folder.name)

    def _take_up_committed(self, record: UploadRecord | None) -> None:
        with suppress(BlobNotFound):
            if record and record.digest and self._store.size_of(record.digest) == record.offset:
                parts = record.parts if record.parts and are_parts_of(record.parts, record.offset) else b""
                self._committed, self.offset = BlobFact(record.digest, record.offset, parts), record.offset
                return
        self._give_up()

    def _commit(self, digest: Digest) -> BlobFact:
        fact = BlobFact(digest, self.offset, self._parts.digests(self.offset))
        with disk_errors("committing an upload"):
            # Before the bytes leave: if this process dies on the way, the record says where they went.
            self._record(fact)
        self._require_sound()
        actual = Digest(digest.algorithm, self._hash_by(digest.algorithm).hexdigest())
        if actual != digest:
            with suppress(StoreError):
                _remove(self._folder)
            raise DigestMismatch(digest, actual)
        if self._store.confirm(digest, self.offset):
            with disk_errors("dropping bytes that the store holds"):
                self._data_path.unlink()
        else:
            self._sync()
            self._store.adopt(self._data_path, digest, self.offset)
        return fact

    def _commit_again(self, digest: Digest) -> BlobFact:
        committed = self._committed
        if committed and digest == committed.digest and self._store.confirm(digest, self.offset):
            return committed
        _remove(self._folder)
        if committed and digest != committed.digest:
            raise DigestMismatch(digest, committed.digest)
        raise UploadNotFound(self._folder.name)

    def _sync(self) -> None:
        try:
            with disk_errors("syncing an upload"):
                sync_file(self._data)
        except StoreError:
            # The kernel reports lost bytes once and then takes them for clean: a second attempt would succeed wrongly.
            with suppress(StoreError):
                _remove(self._folder)
            raise

    def _require_sound(self) -> None:
        if self.failure:
            raise type(self.failure)(str(self.failure)) from self.failure

    def _hash_by(self, algorithm: str) -> RunningHash:
        if self._hash.algorithm == algorithm:
            return self._hash
        running = new_hash(algorithm)
        with disk_errors("reading an upload"):
            for piece in self._pieces(0, self.offset):
                running.update(piece)
        return running

    def _pieces(self, position: int, stop: int) -> Iterator[bytes]:
        while position < stop:
            piece = os.pread(self._data, min(_PIECE_BYTES, stop - position), position)
            if not piece:
                raise StoreFailed("an upload's file became shorter while it was read")
            yield piece
            position += len(piece)

    def _write(self, chunks: Sequence[bytes]) -> None:
        position = self.offset
        for first in range(0, len(chunks), _VECTOR):
            vector: list[bytes | memoryview] = [*chunks[first : first + _VECTOR]]
            while vector:
                count = os.pwritev(self._data, vector, position)
                position += count
                while vector and count >= len(vector[0]):
                    count -= len(vector.pop(0))
                if count:
                    vector[0] = memoryview(vector[0])[count:]

    def _record(self, fact: BlobFact | None) -> None:
        running = self._hash
        record = UploadRecord(
            incarnation=self._incarnation,
            algorithm=running.algorithm,
            offset=self.offset,
            received=running.hexdigest(),
            hash_state=running.state(),
            digest=fact.digest if fact else None,
            parts=fact.parts if fact else self._parts.finished,
        )
        record.write(self._record_path)

    def _release(self) -> None:
        for descriptor in (self._data, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._data = self._lock = -1
