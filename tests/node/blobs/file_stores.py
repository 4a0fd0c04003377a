"""Stores in a test's folder, closed with the test, which must leave no file open."""

from __future__ import annotations

from pathlib import Path

from node.blobs.filesystem import FilesystemStore
from node.blobs.uploads import FilesystemUploads
from tests.node.blobs.suite import STORE_ID, Stores


class FileStores:
    """One data folder as gateways of one or of several starts of its node see it."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self._opened: list[FilesystemStore] = []

    def __enter__(self) -> FileStores:
        self._open_files = _open_files()
        return self

    def __exit__(self, *_: object) -> None:
        for store in self._opened:
            store.close()
        assert _open_files() == self._open_files

    def store(self, *, free_bytes: int = 0) -> FilesystemStore:
        store = FilesystemStore.at(self.data / "blobs", store_id=STORE_ID, free_bytes=free_bytes)
        self._opened.append(store)
        return store

    def uploads(self, *, incarnation: str = "first start", free_bytes: int = 0) -> FilesystemUploads:
        return FilesystemUploads.open(self.data / "uploads", self.store(free_bytes=free_bytes), incarnation=incarnation)

    def stores(self) -> Stores:
        return Stores(self.store(), self.uploads(), self.uploads())

    def upload_folder(self, upload_id: str) -> Path:
        return self.data / "uploads" / upload_id


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
