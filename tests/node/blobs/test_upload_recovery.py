"""Uploads taken up after gateways, nodes and disks have died: fewer bytes perhaps, never wrong ones."""

import asyncio
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.names import Digest
from node.blobs.record import UploadRecord
from node.blobs.uploads import FilesystemUploads
from replication.stores import DigestMismatch, UploadNotFound
from tests.node.blobs.file_stores import FileStores
from tests.node.blobs.suite import MIB, digest_of, held, noise, pull

CONTENT = noise(3 * MIB + 5)
HALF = 2 * MIB + 1


@pytest.fixture
def files(tmp_path: Path) -> Iterator[FileStores]:
    with FileStores(tmp_path) as files:
        yield files


async def half_an_upload(uploads: FilesystemUploads, algorithm: str = "sha256") -> str:
    upload = await uploads.begin(algorithm)
    await upload.write(CONTENT[:HALF])
    await upload.suspend()
    return upload.upload_id


async def finish(uploads: FilesystemUploads, upload_id: str) -> Digest:
    upload = await uploads.resume(upload_id)
    await upload.write(CONTENT[upload.offset :])
    digest = digest_of(CONTENT)
    await upload.commit(digest)
    return digest


async def test_after_a_restart_of_the_node_the_bytes_are_read_again(files: FileStores) -> None:
    upload_id = await half_an_upload(files.uploads())
    with (files.upload_folder(upload_id) / "data").open("ab") as data:
        data.write(CONTENT[HALF : HALF + 1000])  # written, but the gateway died before it said so
    uploads = files.uploads(incarnation="second start")
    upload = await uploads.resume(upload_id)
    assert upload.offset == HALF + 1000
    await upload.suspend()
    assert await pull(files.store(), await finish(uploads, upload_id)) == CONTENT


async def test_within_one_start_what_came_after_the_record_is_cut(files: FileStores) -> None:
    uploads = files.uploads()
    upload_id = await half_an_upload(uploads)
    with (files.upload_folder(upload_id) / "data").open("ab") as data:
        data.write(b"half a chunk of a gateway that died")
    upload = await uploads.resume(upload_id)
    assert upload.offset == HALF
    await upload.suspend()
    assert await pull(files.store(), await finish(uploads, upload_id)) == CONTENT


@pytest.mark.parametrize("incarnation", ["first start", "second start"])
async def test_a_shorter_file_is_what_counts(files: FileStores, incarnation: str) -> None:
    upload_id = await half_an_upload(files.uploads())
    os.truncate(files.upload_folder(upload_id) / "data", 1001)
    uploads = files.uploads(incarnation=incarnation)
    upload = await uploads.resume(upload_id)
    assert upload.offset == 1001
    await upload.suspend()
    assert await pull(files.store(), await finish(uploads, upload_id)) == CONTENT


async def test_zeros_that_a_power_loss_left_never_become_a_blob(files: FileStores) -> None:
    upload_id = await half_an_upload(files.uploads())
    data = files.upload_folder(upload_id) / "data"
    os.truncate(data, MIB)
    os.truncate(data, HALF)
    uploads = files.uploads(incarnation="second start")
    with pytest.raises(DigestMismatch):
        await finish(uploads, upload_id)
    assert await held(files.store()) == set()
    with pytest.raises(UploadNotFound):
        await uploads.resume(upload_id)


def test_no_record_however_damaged_makes_wrong_bytes(files: FileStores) -> None:
    uploads, store = files.uploads(), files.store()

    async def damage(record: bytes | None, position: int) -> None:
        upload_id = await half_an_upload(uploads)
        path = files.upload_folder(upload_id) / "state"
        kept = bytearray(path.read_bytes())
        if record is None:
            kept[position % len(kept)] ^= 1 + position % 255
        path.write_bytes(kept if record is None else record)
        assert await pull(store, await finish(uploads, upload_id)) == CONTENT
        await store.delete(digest_of(CONTENT))

    @settings(max_examples=40, deadline=None)
    @given(record=st.none() | st.binary(max_size=64), position=st.integers(0, 1 << 20))
    def check(record: bytes | None, position: int) -> None:
        asyncio.run(damage(record, position))

    check()


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=300))
def test_anything_can_be_offered_as_a_record(content: bytes) -> None:
    body = zlib.crc32(content).to_bytes(4, "big") + content
    for offered in (content, body):
        record = UploadRecord.decode(offered)
        assert record is None or record.encode() == offered


@pytest.mark.parametrize("incarnation", ["first start", "second start"])
async def test_without_its_folder_or_its_bytes_an_upload_is_gone(files: FileStores, incarnation: str) -> None:
    upload_id = await half_an_upload(files.uploads())
    (files.upload_folder(upload_id) / "data").unlink()
    with pytest.raises(UploadNotFound):
        await files.uploads(incarnation=incarnation).resume(upload_id)
    assert not files.upload_folder(upload_id).exists()


async def test_without_states_to_keep_the_bytes_are_read_again(files: FileStores) -> None:
    uploads = files.uploads()
    upload_id = await half_an_upload(uploads)
    path = files.upload_folder(upload_id) / "state"
    UploadRecord("first start", "sha256", HALF - 7, None, None).write(path)
    upload = await uploads.resume(upload_id)
    assert upload.offset == HALF - 7
    await upload.suspend()
    assert await pull(files.store(), await finish(uploads, upload_id)) == CONTENT


async def test_the_hash_of_other_bytes_is_not_taken_for_this_upload(files: FileStores) -> None:
    uploads = files.uploads()
    upload_id = await half_an_upload(uploads)
    path = files.upload_folder(upload_id) / "state"
    record = UploadRecord.read(path)
    assert record is not None
    UploadRecord("first start", "sha256", HALF - 64, record.hash_state, None).write(path)
    assert await pull(files.store(), await finish(uploads, upload_id)) == CONTENT


class TestDeathInTheMiddleOfACommit:
    """A gateway writes the record, renames the data, syncs the folder. It may die before any of these."""

    @pytest.fixture
    async def upload_id(self, files: FileStores) -> str:
        upload = await files.uploads().begin()
        await upload.write(CONTENT)
        await upload.suspend()
        folder = files.upload_folder(upload.upload_id)
        UploadRecord("first start", "sha256", len(CONTENT), None, digest_of(CONTENT)).write(folder / "state")
        return upload.upload_id

    @pytest.mark.parametrize("incarnation", ["first start", "second start"])
    async def test_before_the_rename_it_is_an_upload_still(
        self, files: FileStores, upload_id: str, incarnation: str
    ) -> None:
        uploads = files.uploads(incarnation=incarnation)
        upload = await uploads.resume(upload_id)
        assert upload.offset == len(CONTENT)
        assert await held(files.store()) == set()
        await upload.commit(digest_of(CONTENT))
        assert await pull(files.store(), digest_of(CONTENT)) == CONTENT

    @pytest.mark.parametrize("incarnation", ["first start", "second start"])
    async def test_after_the_rename_it_is_committed(self, files: FileStores, upload_id: str, incarnation: str) -> None:
        store, uploads = files.store(), files.uploads(incarnation=incarnation)
        store.adopt(files.upload_folder(upload_id) / "data", digest_of(CONTENT), len(CONTENT))
        upload = await uploads.resume(upload_id)
        assert upload.offset == len(CONTENT)
        assert await upload.commit(digest_of(CONTENT)) == len(CONTENT)
        await upload.abort()
        assert await pull(store, digest_of(CONTENT)) == CONTENT

    async def test_with_both_names_lost_it_is_gone(self, files: FileStores, upload_id: str) -> None:
        (files.upload_folder(upload_id) / "data").unlink()
        with pytest.raises(UploadNotFound):
            await files.uploads(incarnation="second start").resume(upload_id)
        assert await files.uploads().count() == 0
