"""The store in a folder passes the suite; what only it promises comes below."""

import asyncio
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from consensus.names import StoreId
from node.blobs.filesystem import FilesystemStore
from node.blobs.uploads import FilesystemUploads
from replication.stores import StoreFailed, StoreFull, StoreRefused, UploadNotFound
from tests.node.blobs.file_stores import FileStores
from tests.node.blobs.parts_suite import PartsSuite
from tests.node.blobs.suite import (
    MIB,
    STORE_ID,
    MakeStores,
    StoreSuite,
    digest_of,
    held,
    noise,
    pull,
    push,
    resume_soon,
    until_count,
)

MORE_THAN_THERE_IS = 1 << 60


@pytest.fixture
def files(tmp_path: Path) -> Iterator[FileStores]:
    with FileStores(tmp_path) as files:
        yield files


class TestFilesystemStore(PartsSuite, StoreSuite):
    @pytest.fixture
    def make(self, files: FileStores) -> MakeStores:
        return files.stores


def modes(folder: Path) -> dict[str, int]:
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode) for path in found}


async def test_a_blob_is_one_file_and_nothing_else_is_left(files: FileStores) -> None:
    previous = os.umask(0o022)
    try:
        digest = await push(files.stores(), b"content")
        assert modes(files.data) == {f"blobs/sha256/{digest.hex[:2]}/{digest.hex}": 0o640, "blobs/STORE": 0o640}
        upload = await files.uploads().begin()
        await upload.suspend()
        folder = files.upload_folder(upload.upload_id)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert sorted(path.name for path in folder.iterdir()) == ["data", "state"]
    finally:
        os.umask(previous)


async def test_a_store_is_found_again_by_its_next_start(files: FileStores) -> None:
    digest = await push(files.stores(), b"content")
    assert await pull(files.store(), digest) == b"content"


def test_the_folder_of_another_store_is_refused(files: FileStores) -> None:
    files.store()
    with pytest.raises(StoreRefused, match=f"store {STORE_ID}, not of f"):
        FilesystemStore.at(files.data / "blobs", store_id=StoreId("f" * 32), free_bytes=0)


def test_a_folder_half_made_is_completed(files: FileStores) -> None:
    files.store()
    (files.data / "blobs" / "STORE").unlink()
    (files.data / "blobs" / "sha512" / "ff").rmdir()
    files.store()
    assert len(list((files.data / "blobs").glob("sha*/*"))) == 512


def test_a_folder_that_an_operator_marked_is_completed(files: FileStores) -> None:
    (files.data / "blobs").mkdir()
    assert not FilesystemStore.is_made(files.data / "blobs")
    (files.data / "blobs" / "STORE").write_text(STORE_ID)
    files.store()
    assert FilesystemStore.is_made(files.data / "blobs")
    assert len(list((files.data / "blobs").glob("sha*/*"))) == 512


def test_what_is_no_folder_is_refused(files: FileStores) -> None:
    (files.data / "blobs").write_text("in the way")
    with pytest.raises(StoreFailed):
        files.store()


def test_uploads_on_another_file_system_are_refused(files: FileStores) -> None:
    store = files.store()
    elsewhere = next((path for path in (Path("/dev/shm"), Path("/sys")) if _device(path) != _device(files.data)), None)
    if elsewhere is None:
        pytest.skip("there is only one file system")
    with pytest.raises(StoreRefused, match="same file system"):
        FilesystemUploads.open(elsewhere, store, incarnation="any")


def _device(path: Path) -> int:
    return path.stat().st_dev if path.exists() else 0


async def test_foreign_files_are_passed_over(files: FileStores) -> None:
    stores = files.stores()
    digest = await push(stores, b"content")
    shard = files.data / "blobs" / "sha256" / digest.hex[:2]
    other = "00" if digest.hex[:2] != "00" else "01"
    for name in ("notes.txt", digest.hex + ".tmp", digest.hex[:-1], other + digest.hex[2:]):
        (shard / name).write_text("foreign")
    (files.data / "uploads" / "lost+found").mkdir()
    (files.data / "uploads" / "file").write_text("foreign")
    assert await held(stores.blobs) == {digest}
    assert await stores.uploads.count() == 0
    assert await stores.uploads.reap(-3600.0) == 0


async def test_a_file_in_the_place_of_an_upload_is_not_found(files: FileStores) -> None:
    stores = files.stores()
    upload = await stores.uploads.begin()
    await upload.abort()
    files.upload_folder(upload.upload_id).write_text("foreign")
    with pytest.raises(UploadNotFound):
        await stores.uploads.resume(upload.upload_id)


async def test_a_damaged_blob_of_another_size_is_replaced(files: FileStores) -> None:
    stores = files.stores()
    digest = await push(stores, b"content")
    path = files.data / "blobs" / "sha256" / digest.hex[:2] / digest.hex
    path.write_bytes(b"cont")
    await push(stores, b"content")
    assert await pull(stores.blobs, digest) == b"content"


async def test_a_blob_that_is_held_is_not_written_again(files: FileStores) -> None:
    stores = files.stores()
    digest = await push(stores, b"content")
    path = files.data / "blobs" / "sha256" / digest.hex[:2] / digest.hex
    before = path.stat().st_ino
    await push(stores, b"content")
    assert path.stat().st_ino == before


async def test_what_the_page_cache_lacks_is_read_all_the_same(files: FileStores) -> None:
    content = noise(5 * MIB)
    store = files.stores().blobs
    digest = await push(files.stores(), content)
    assert isinstance(store, FilesystemStore)
    reader = await store.open(digest)
    os.posix_fadvise(reader.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    os.pread(reader.fileno(), 10, 2 * MIB)  # now the cache has a piece in the middle
    assert await reader.read(0, 5 * MIB) == content
    reader.close()


async def test_a_blob_that_lost_its_end_fails(files: FileStores) -> None:
    stores = files.stores()
    digest = await push(stores, noise(MIB))
    reader = await stores.blobs.open(digest)
    os.truncate(files.data / "blobs" / "sha256" / digest.hex[:2] / digest.hex, 1000)
    assert len(await reader.read(0, 1000)) == 1000
    with pytest.raises(StoreFailed):
        await reader.read(1000, 1)
    reader.close()


async def test_below_the_watermark_uploads_are_refused_and_pulls_go_on(files: FileStores) -> None:
    digest = await push(files.stores(), b"content")
    begun = await files.uploads().begin()
    await begun.suspend()
    uploads = files.uploads(free_bytes=MORE_THAN_THERE_IS)
    with pytest.raises(StoreFull):
        await uploads.begin()
    assert await pull(files.store(free_bytes=MORE_THAN_THERE_IS), digest) == b"content"
    upload = await uploads.resume(begun.upload_id)
    await upload.write(b"more")
    with pytest.raises(StoreFull):
        await upload.commit(digest_of(b"more"))
    upload = await uploads.resume(begun.upload_id)
    assert upload.offset == 0
    await upload.write(b"more")
    with pytest.raises(StoreFull):
        await upload.suspend()
    assert upload.offset == 0
    upload = await uploads.resume(begun.upload_id)
    await upload.write(noise(2 * MIB))
    with pytest.raises(StoreFull):
        await upload.write(noise(2 * MIB))
    with pytest.raises(StoreFull):
        await upload.write(b"and again")
    await upload.suspend()
    upload = await uploads.resume(begun.upload_id)
    assert upload.offset == 0
    await upload.abort()


async def test_a_cancelled_caller_holds_nothing(files: FileStores) -> None:
    stores = files.stores()
    digest = await push(stores, b"content")
    upload = await stores.uploads.begin()
    await upload.suspend()
    for steps in range(4):
        begins = asyncio.create_task(stores.uploads.begin())
        resumes = asyncio.create_task(stores.uploads.resume(upload.upload_id))
        for _ in range(steps):
            await asyncio.sleep(0)
        for task in (begins, resumes):
            task.cancel()
        begun, resumed = await asyncio.gather(begins, resumes, return_exceptions=True)
        for taken in (begun, resumed):
            if not isinstance(taken, BaseException):
                await taken.suspend()
        again = await resume_soon(stores.elsewhere, upload.upload_id)
        await again.suspend()
        if not isinstance(begun, BaseException):
            await begun.abort()
    await until_count(stores.elsewhere, 1)
    assert await pull(stores.blobs, digest) == b"content"


async def test_aborting_after_a_cancelled_commit_leaves_no_upload(files: FileStores) -> None:
    stores, content = files.stores(), noise(2 * MIB)
    for steps in range(4):
        upload = await stores.uploads.begin()
        await upload.write(content)
        committing = asyncio.create_task(upload.commit(digest_of(content)))
        for _ in range(steps):
            await asyncio.sleep(0)
        committing.cancel()
        await asyncio.gather(committing, return_exceptions=True)
        await upload.abort()
        assert not files.upload_folder(upload.upload_id).exists()
