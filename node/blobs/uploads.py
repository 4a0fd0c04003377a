"""Uploads as folders of one folder, shared by every gateway process of the node: `<uuid>/data` and `<uuid>/state`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from consensus import clock, entropy
from consensus.commands import BlobFact
from consensus.names import Digest
from node.blobs import jobs
from node.blobs.filesystem import FilesystemStore, disk_errors
from node.blobs.hashing import ALGORITHMS
from node.blobs.session import HeldUpload, discard
from replication.stores import StoreError, StoreRefused, UploadBusy, UploadNotFound

BATCH_BYTES = 1024 * 1024
BATCH_CHUNKS = 512  # so that tiny chunks do not cost many times their bytes
_COUNT_SECONDS = 1.0
_UPLOAD_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")

T = TypeVar("T")


class FilesystemUpload:
    """An Upload. Chunks are gathered to about 1 MiB and then written and hashed in one job; meanwhile
    the next are gathered, and `write` waits for it when those are enough too: at most about 2 MiB are in memory."""

    def __init__(self, store: FilesystemStore, folder: Path, held: HeldUpload) -> None:
        self._store = store
        self._folder = folder
        self._held = held
        self._holding = True
        self._offset = held.offset
        self._gathered: list[bytes] = []
        self._gathered_bytes = 0
        self._last: Future[Any] | None = None
        self._failure_told = False

    @property
    def upload_id(self) -> str:
        """See Upload."""
        return self._folder.name

    @property
    def offset(self) -> int:
        """See Upload. After a failure, what is left."""
        return self._held.offset if self._held.failure else self._offset

    async def write(self, chunk: bytes) -> None:
        """See Upload. Raises UploadNotFound for an upload that is committed already."""
        self._require_holding()
        if not chunk:
            return
        if self._held.committed:
            raise UploadNotFound(self.upload_id)
        if self._held.failure:
            self._failure_told = True
            raise self._held.failure
        self._gathered.append(chunk)
        self._gathered_bytes += len(chunk)
        self._offset += len(chunk)
        if self._gathered_bytes < BATCH_BYTES and len(self._gathered) < BATCH_CHUNKS:
            return
        try:
            if self._last:
                await jobs.finished(self._last)
            self._queue(partial(self._held.append, self._take_gathered()))
        except StoreError:
            self._failure_told = True
            raise

    async def suspend(self) -> None:
        """See Upload."""
        if not self._holding:
            return
        self._holding = False
        failure = await jobs.finished(self._queue(partial(_suspend, self._held, self._take_gathered())))
        if failure and not self._failure_told:
            raise failure

    async def commit(self, digest: Digest) -> BlobFact:
        """See Upload."""
        self._require_holding()
        self._holding = False
        return await jobs.finished(self._queue(partial(_commit, self._held, self._take_gathered(), digest)))

    async def abort(self) -> None:
        """See Upload."""
        if self._holding:
            self._holding = False
            await jobs.finished(self._queue(self._held.abort))
        else:
            await jobs.finished(self._queue(partial(_forget, self._folder)))

    def _require_holding(self) -> None:
        if not self._holding:
            raise RuntimeError("this upload is no longer held")

    def _take_gathered(self) -> list[bytes]:
        chunks, self._gathered, self._gathered_bytes = self._gathered, [], 0
        return chunks

    def _queue(self, job: Callable[[], T]) -> Future[T]:
        """Runs `job` after the one before it, whose caller may have been cancelled and gone."""
        previous = self._last

        def in_order() -> T:
            if previous:
                previous.exception()  # waits; it was queued earlier, so it is running already
            return job()

        future = self._store.writers.submit(in_order)
        self._last = future
        return future


def _suspend(held: HeldUpload, chunks: list[bytes]) -> StoreError | None:
    if held.failure is None and chunks:
        with suppress(StoreError):
            held.append(chunks)
    held.suspend()
    return held.failure


def _commit(held: HeldUpload, chunks: list[bytes], digest: Digest) -> BlobFact:
    if held.failure is None and chunks:
        with suppress(StoreError):  # which `commit` raises
            held.append(chunks)
    return held.commit(digest)


def _forget(folder: Path) -> None:
    # Not found: forgotten already. Busy: another request took it up by now, and it is left to that one.
    with suppress(UploadNotFound, UploadBusy):
        discard(folder)


class FilesystemUploads:
    """An UploadStore in one folder, which has to be on the file system of the blobs."""

    def __init__(self, folder: Path, store: FilesystemStore, incarnation: str) -> None:
        self._folder = folder
        self._store = store
        self._incarnation = incarnation
        self._count = 0
        self._counted_at = -_COUNT_SECONDS

    @classmethod
    def open(cls, folder: Path, store: FilesystemStore, *, incarnation: str) -> FilesystemUploads:
        """The uploads in `folder`, made if need be. `incarnation` is drawn at each start of the node's supervisor, that
        is, for as long as nothing written can have been lost. Blocks. Raises StoreRefused, StoreFull, StoreFailed."""
        with disk_errors(f"opening the uploads in {folder}"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if folder.stat().st_dev != store.folder.stat().st_dev:
                raise StoreRefused(f"{folder} has to be on the same file system as {store.folder}")
        return cls(folder, store, incarnation)

    async def begin(self, algorithm: str = "sha256") -> FilesystemUpload:
        """See UploadStore. An unknown algorithm counts as sha256."""
        folder = self._folder / entropy.new_uuid()
        hint = algorithm if algorithm in ALGORITHMS else "sha256"
        job = partial(HeldUpload.begin, self._store, self._incarnation, folder, hint)
        held = await jobs.obtain(self._store.writers, job, HeldUpload.abort)
        self._count += 1
        return FilesystemUpload(self._store, folder, held)

    async def resume(self, upload_id: str) -> FilesystemUpload:
        """See UploadStore. Any text may be given; what is not a UUID is not found."""
        if not _UPLOAD_ID.fullmatch(upload_id):
            raise UploadNotFound(upload_id[:64])
        folder = self._folder / upload_id
        job = partial(HeldUpload.resume, self._store, self._incarnation, folder)
        return FilesystemUpload(self._store, folder, await jobs.obtain(self._store.writers, job, HeldUpload.suspend))

    async def reap(self, idle_seconds: float) -> int:
        """See UploadStore."""
        return await jobs.run(self._store.writers, partial(self._reap, clock.wall_ms() / 1000 - idle_seconds))

    async def count(self) -> int:
        """See UploadStore. What other processes began or ended is seen within a second."""
        if clock.monotonic() - self._counted_at >= _COUNT_SECONDS:
            self._counted_at = clock.monotonic()
            self._count = await jobs.run(self._store.readers, lambda: len(self._ids()))
        return self._count

    def _ids(self) -> list[str]:
        with disk_errors("listing uploads"):
            return [name for name in os.listdir(self._folder) if _UPLOAD_ID.fullmatch(name)]

    def _reap(self, before: float) -> int:
        reaped = 0
        for upload_id in self._ids():
            with suppress(StoreError):  # held, gone, or not to be removed now: a later round sees to the others of it
                reaped += discard(self._folder / upload_id, touched_before=before)
        return reaped
