"""Blobs as files of one folder: `<algorithm>/<first two hex>/<hex>`.

A file gets its name only once its bytes are verified and synced, and a commit returns only once that name is synced
too. Every shard folder is made and synced with the store, so that a commit has one file and one folder to sync.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from consensus import entropy
from consensus.disk import sync_file, sync_folder
from consensus.errors import InvalidName
from consensus.names import Digest, StoreId
from node.blobs import jobs
from node.blobs.hashing import ALGORITHMS
from node.blobs.syscalls import open_cached
from replication.stores import BlobNotFound, StoreFailed, StoreFull, StoreRefused

WARM_READ_BYTES = 1024 * 1024  # the longest read that is tried on the event loop
_THREADS = 8
_SHARDS = tuple(f"{number:02x}" for number in range(256))
_MARK = "STORE"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NOT_WARM = {errno.EAGAIN, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}
_OPEN_BLOB = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW


@contextmanager
def disk_errors(doing: str) -> Iterator[None]:
    """What the operating system refuses becomes StoreFull (space, quota, file size) or StoreFailed."""
    try:
        yield
    except OSError as error:
        kind = StoreFull if error.errno in _FULL else StoreFailed
        raise kind(f"{doing}: {error.strerror}") from error


class FileReader:
    """A BlobReader on a file. `size_bytes` is for one that still grows: the caller reads what is there."""

    def __init__(self, store: FilesystemStore, descriptor: int, size_bytes: int | None = None) -> None:
        self._store = store
        self._descriptor = descriptor
        self._size_bytes = os.fstat(descriptor).st_size if size_bytes is None else size_bytes

    @property
    def size_bytes(self) -> int:
        """The blob's length."""
        return self._size_bytes

    def fileno(self) -> int:
        """The open file, for sendfile and its kin; valid until `close`."""
        return self._descriptor

    async def read(self, offset: int, length: int) -> bytes:
        """See BlobReader. One copy out of the page cache for what is there, a thread for the rest."""
        length = min(length, self._size_bytes - offset)
        if length <= 0:
            return b""
        warm = self._store.read_warm(self._descriptor, offset, length)
        if len(warm) == length:
            return warm
        # A descriptor of its own: `close` may come while the thread of a cancelled caller still reads.
        descriptor = os.dup(self._descriptor)
        job = partial(_read_and_close, descriptor, offset + len(warm), length - len(warm))
        return warm + await jobs.run(self._store.readers, job)

    def close(self) -> None:
        """Idempotent."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class FilesystemStore:
    """A BlobStore in one folder. Any number of processes may have it open; each uses it from one event loop."""

    def __init__(self, folder: Path, store_id: StoreId, free_bytes: int) -> None:
        self._folder = folder
        self._store_id = store_id
        self._free_bytes = free_bytes
        self._scratch = memoryview(bytearray(WARM_READ_BYTES))
        self._reads_warm = True
        # Two pools, so that reading goes on while every writer waits for the disk.
        self.readers = ThreadPoolExecutor(_THREADS, thread_name_prefix="blob-read")
        self.writers = ThreadPoolExecutor(_THREADS, thread_name_prefix="blob-write")

    @classmethod
    def at(cls, folder: Path, *, store_id: StoreId, free_bytes: int) -> FilesystemStore:
        """The store in `folder`, made there if need be; `free_bytes` is the watermark below which nothing is written.
        Blocks. Raises StoreRefused if the folder is another store's, StoreFull, StoreFailed."""
        with disk_errors(f"opening the blob store in {folder}"):
            _prepare(folder, store_id)
        return cls(folder, store_id, free_bytes)

    @staticmethod
    def is_made(folder: Path) -> bool:
        """Whether `at` has ever returned for this folder. Blocks."""
        return (folder / _MARK).exists()

    def close(self) -> None:
        """Waits for the work under way and ends the threads. Idempotent."""
        self.readers.shutdown()
        self.writers.shutdown()

    @property
    def store_id(self) -> StoreId:
        """See BlobStore."""
        return self._store_id

    @property
    def folder(self) -> Path:
        """Where the blobs are."""
        return self._folder

    async def stat(self, digest: Digest) -> int:
        """See BlobStore."""
        descriptor = open_cached(str(self._path(digest)), _OPEN_BLOB)
        if descriptor is None:
            return await jobs.run(self.readers, partial(self.size_of, digest))
        try:
            return os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)

    async def open(self, digest: Digest) -> FileReader:
        """See BlobStore."""
        descriptor = open_cached(str(self._path(digest)), _OPEN_BLOB)
        if descriptor is not None:
            return FileReader(self, descriptor)
        return await jobs.obtain(self.readers, partial(self._open, digest), FileReader.close)

    async def delete(self, digest: Digest) -> None:
        """See BlobStore."""
        await jobs.run(self.writers, partial(self._delete, digest))

    async def digests(self) -> AsyncIterator[Digest]:
        """See BlobStore."""
        for algorithm in ALGORITHMS:
            for shard in _SHARDS:
                for digest in await jobs.run(self.readers, partial(self._shard, algorithm, shard)):
                    yield digest

    def read_warm(self, descriptor: int, offset: int, length: int) -> bytes:
        """What the page cache holds of a range, from its start, at most WARM_READ_BYTES; never waits for the disk."""
        if not self._reads_warm:
            return b""
        try:
            count = os.preadv(descriptor, (self._scratch[:length],), offset, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno not in _NOT_WARM:
                raise StoreFailed(f"reading a blob: {error.strerror}") from error
            self._reads_warm = error.errno == errno.EAGAIN  # anything else: this file system cannot tell, ever
            return b""
        return bytes(self._scratch[:count])

    def size_of(self, digest: Digest) -> int:
        """`stat`, blocking."""
        with disk_errors(f"looking for {digest}"):
            try:
                return self._path(digest).stat().st_size
            except FileNotFoundError:
                raise BlobNotFound(str(digest)) from None

    def require_room(self, size_bytes: int = 0) -> None:
        """Raises StoreFull if, with so many bytes more, free space is below the watermark. Blocks."""
        with disk_errors("asking for free space"):
            volume = os.statvfs(self._folder)
        if volume.f_bavail * volume.f_frsize < self._free_bytes + size_bytes:
            raise StoreFull(f"less than {self._free_bytes} bytes are free, or would be with {size_bytes} more")

    def confirm(self, digest: Digest, size_bytes: int) -> bool:
        """Whether the blob is held with that size, durably from now on. Blocks. Raises StoreFull, StoreFailed."""
        path = self._path(digest)
        with disk_errors(f"confirming {digest}"), _committing(path.parent):
            return _confirm(path, size_bytes)

    def adopt(self, source: Path, digest: Digest, size_bytes: int) -> None:
        """The file `source`, verified and synced by the caller, becomes the blob, durably; if the blob is held by now
        the file is removed instead. Blocks. Raises StoreFull, StoreFailed: the file is where it was."""
        path = self._path(digest)
        with disk_errors(f"committing {digest}"), _committing(path.parent):
            if _confirm(path, size_bytes):
                source.unlink()
                return
            source.rename(path)
            try:
                sync_folder(path.parent)
            except OSError:
                # The kernel reports a loss once: a second sync would succeed without the name, which has to be made
                # anew. Nobody else has relied on it, since that takes the lock.
                path.rename(source)
                raise

    def _path(self, digest: Digest) -> Path:
        return self._folder / digest.algorithm / digest.hex[:2] / digest.hex

    def _open(self, digest: Digest) -> FileReader:
        with disk_errors(f"opening {digest}"):
            try:
                return FileReader(self, os.open(self._path(digest), _OPEN_BLOB))
            except FileNotFoundError:
                raise BlobNotFound(str(digest)) from None

    def _delete(self, digest: Digest) -> None:
        path = self._path(digest)
        with disk_errors(f"deleting {digest}"), _committing(path.parent):
            path.unlink(missing_ok=True)
            sync_folder(path.parent)

    def _shard(self, algorithm: str, shard: str) -> list[Digest]:
        found = []
        with disk_errors("listing blobs"):
            names = os.listdir(self._folder / algorithm / shard)
        for name in names:
            with suppress(InvalidName):
                if name.startswith(shard):
                    found.append(Digest.parse(f"{algorithm}:{name}"))
        return found


def _read_and_close(descriptor: int, offset: int, length: int) -> bytes:
    try:
        with disk_errors("reading a blob"):
            content = os.pread(descriptor, length, offset)
    finally:
        os.close(descriptor)
    if not content:
        raise StoreFailed("a blob's file became shorter than it was when it was opened")
    return content


@contextmanager
def _committing(shard: Path) -> Iterator[None]:
    """One commit or delete a shard at a time, on the whole node."""
    descriptor = os.open(shard, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _confirm(path: Path, size_bytes: int) -> bool:
    try:
        if path.stat().st_size != size_bytes:
            return False
    except FileNotFoundError:
        return False
    sync_folder(path.parent)  # a process that died may have put it there and come no further
    return True


def _prepare(folder: Path, store_id: StoreId) -> None:
    """Makes and syncs the folders, then the mark that says that this is done and whose store it is."""
    mark = folder / _MARK
    with suppress(FileNotFoundError):
        found = mark.read_text("ascii", "replace").strip()
        if found != store_id:
            raise StoreRefused(
                f"{folder} holds the blobs of store {found or '(empty mark)'}, not of {store_id}: put this node's own "
                f"blobs there (is the right disk mounted?); if these are they, write {store_id} into {mark}"
            )
        if (folder / ALGORITHMS[-1] / _SHARDS[-1]).is_dir():
            return  # else an operator has put the mark there
    folder.mkdir(parents=True, exist_ok=True)
    for algorithm in ALGORITHMS:
        for shard in _SHARDS:
            (folder / algorithm / shard).mkdir(parents=True, exist_ok=True)
        sync_folder(folder / algorithm)
    sync_folder(folder)
    sync_folder(folder.parent)
    _write_mark(mark, store_id)


def _write_mark(mark: Path, store_id: StoreId) -> None:
    temporary = mark.with_name(f"{_MARK}.{entropy.new_uuid()}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        try:
            os.write(descriptor, f"{store_id}\n".encode("ascii"))
            sync_file(descriptor)
        finally:
            os.close(descriptor)
        temporary.rename(mark)
        sync_folder(mark.parent)
    finally:
        temporary.unlink(missing_ok=True)
