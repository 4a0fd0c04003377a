"""Uploads taken up after gateways, nodes and disks have died: fewer bytes perhaps, never wrong ones."""

import asyncio
import hashlib
import os
import resource
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.names import Digest
from node.blobs.record import UploadRecord
from node.blobs.uploads import FilesystemUploads
from replication.stores import UploadNotFound
from tests.node.blobs.file_stores import FileStores
from tests.node.blobs.parts_suite import fact_of
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


def record(
    offset: int, hash_state: bytes | None = None, digest: Digest | None = None, parts: bytes | None = None
) -> UploadRecord:
    received = hashlib.sha256(CONTENT[:offset]).hexdigest()
    return UploadRecord("first start", "sha256", offset, received, hash_state, digest, parts)


@pytest.mark.parametrize("incarnation", ["first start", "second start"])
async def test_what_came_after_the_record_is_cut(files: FileStores, incarnation: str) -> None:
    upload_id = await half_an_upload(files.uploads())
    with (files.upload_folder(upload_id) / "data").open("ab") as data:
        data.write(b"half a chunk of a gateway that died")
    uploads = files.uploads(incarnation=incarnation)
    upload = await uploads.resume(upload_id)
    assert upload.offset == HALF
    await upload.suspend()
    assert await pull(files.store(), await finish(uploads, upload_id)) == CONTENT


@pytest.mark.parametrize("incarnation", ["first start", "second start"])
async def test_without_all_that_was_received_an_upload_is_gone(files: FileStores, incarnation: str) -> None:
    upload_id = await half_an_upload(files.uploads())
    os.truncate(files.upload_folder(upload_id) / "data", 1001)
    with pytest.raises(UploadNotFound):
        await files.uploads(incarnation=incarnation).resume(upload_id)
    assert not files.upload_folder(upload_id).exists()


async def test_zeros_that_a_power_loss_left_are_noticed_at_once(files: FileStores) -> None:
    upload_id = await half_an_upload(files.uploads())
    data = files.upload_folder(upload_id) / "data"
    os.truncate(data, MIB)
    os.truncate(data, HALF)
    with pytest.raises(UploadNotFound):
        await files.uploads(incarnation="second start").resume(upload_id)
    assert await held(files.store()) == set()
    assert not files.upload_folder(upload_id).exists()


def test_with_a_damaged_record_an_upload_is_gone(files: FileStores) -> None:
    uploads = files.uploads()

    async def damage(content: bytes | None, position: int) -> None:
        upload_id = await half_an_upload(uploads)
        path = files.upload_folder(upload_id) / "state"
        kept = bytearray(path.read_bytes())
        if content is None:
            kept[position % 1024] ^= 1 + position % 255
        path.write_bytes(kept if content is None else content)
        with pytest.raises(UploadNotFound):
            await uploads.resume(upload_id)

    @settings(max_examples=40, deadline=None)
    @given(content=st.none() | st.binary(max_size=64), position=st.integers(0, 1 << 20))
    def check(content: bytes | None, position: int) -> None:
        asyncio.run(damage(content, position))

    check()


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=300))
def test_anything_can_be_offered_as_a_record(content: bytes) -> None:
    body = zlib.crc32(content).to_bytes(4, "big") + content
    for offered in (content, body):
        found = UploadRecord.decode(offered)
        assert found is None or found.encode() == offered


@pytest.mark.parametrize("incarnation", ["first start", "second start"])
@pytest.mark.parametrize("damage", ["none", "changed", "cut"])
async def test_parts_that_are_not_as_they_were_are_hashed_again(
    files: FileStores, incarnation: str, damage: str
) -> None:
    upload_id = await half_an_upload(files.uploads())
    state = files.upload_folder(upload_id) / "state"
    kept = state.read_bytes()
    assert len(kept) == 1024 + 8 * 16
    state.write_bytes({"none": kept, "changed": kept[:-1] + b"!", "cut": kept[:-16]}[damage])
    upload = await files.uploads(incarnation=incarnation).resume(upload_id)
    await upload.write(CONTENT[upload.offset :])
    assert await upload.commit(digest_of(CONTENT)) == fact_of(CONTENT)


async def test_where_there_is_no_room_for_parts_a_record_does_without(tmp_path: Path) -> None:
    path, parts = tmp_path / "state", bytes(16 * 8)
    record(HALF, parts=parts).write(path)
    assert UploadRecord.read(path) == record(HALF, parts=parts)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024 + 100, before[1]))
        record(HALF, parts=b"1" * 16 * 8).write(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert UploadRecord.read(path) == record(HALF)


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
    record(HALF - 7).write(path)
    upload = await uploads.resume(upload_id)
    assert upload.offset == HALF - 7
    await upload.suspend()
    assert await pull(files.store(), await finish(uploads, upload_id)) == CONTENT


async def test_the_hash_of_other_bytes_is_not_taken_for_this_upload(files: FileStores) -> None:
    uploads = files.uploads()
    upload_id = await half_an_upload(uploads)
    path = files.upload_folder(upload_id) / "state"
    kept = UploadRecord.read(path)
    assert kept is not None
    record(HALF - 64, kept.hash_state).write(path)
    assert await pull(files.store(), await finish(uploads, upload_id)) == CONTENT


class TestDeathInTheMiddleOfACommit:
    """A gateway writes the record, renames the data, syncs the folder. It may die before any of these."""

    @pytest.fixture
    async def upload_id(self, files: FileStores) -> str:
        upload = await files.uploads().begin()
        await upload.write(CONTENT)
        await upload.suspend()
        folder = files.upload_folder(upload.upload_id)
        record(len(CONTENT), digest=digest_of(CONTENT), parts=fact_of(CONTENT).parts).write(folder / "state")
        return upload.upload_id

    @pytest.mark.parametrize("incarnation", ["first start", "second start"])
    async def test_before_the_rename_it_is_an_upload_still(
        self, files: FileStores, upload_id: str, incarnation: str
    ) -> None:
        uploads = files.uploads(incarnation=incarnation)
        upload = await uploads.resume(upload_id)
        assert upload.offset == len(CONTENT)
        assert await held(files.store()) == set()
        assert await upload.commit(digest_of(CONTENT)) == fact_of(CONTENT)
        assert await pull(files.store(), digest_of(CONTENT)) == CONTENT

    @pytest.mark.parametrize("incarnation", ["first start", "second start"])
    async def test_after_the_rename_it_is_committed(self, files: FileStores, upload_id: str, incarnation: str) -> None:
        store, uploads = files.store(), files.uploads(incarnation=incarnation)
        store.adopt(files.upload_folder(upload_id) / "data", digest_of(CONTENT), len(CONTENT))
        upload = await uploads.resume(upload_id)
        assert upload.offset == len(CONTENT)
        assert await upload.commit(digest_of(CONTENT)) == fact_of(CONTENT)
        await upload.abort()
        assert await pull(store, digest_of(CONTENT)) == CONTENT

    async def test_with_both_names_lost_it_is_gone(self, files: FileStores, upload_id: str) -> None:
        (files.upload_folder(upload_id) / "data").unlink()
        with pytest.raises(UploadNotFound):
            await files.uploads(incarnation="second start").resume(upload_id)
        assert await files.uploads().count() == 0
