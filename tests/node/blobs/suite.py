"""What every blob store with its uploads has to pass: subclass `StoreSuite` in a test module and give it `stores`."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.entropy import new_uuid
from consensus.names import Digest, StoreId
from replication.stores import (
    BlobNotFound,
    BlobStore,
    DigestMismatch,
    Upload,
    UploadBusy,
    UploadNotFound,
    UploadStore,
)

STORE_ID = StoreId("0123456789abcdef0123456789abcdef")
DEADLINE_SECONDS = 30.0
EVERYTHING = -3600.0  # idle since a time to come: whatever is not held
MIB = 1024 * 1024
NOT_UPLOADS = ("", ".", "..", "../blobs", "a" * 36, "x/../..", "\0", "/etc", "ü" * 36, "0" * 5000)


@dataclass(frozen=True)
class Stores:
    """A store and two views of its uploads, as two gateways have them."""

    blobs: BlobStore
    uploads: UploadStore
    elsewhere: UploadStore


# Makes empty stores, others at each call, and ends them with the test.
MakeStores = Callable[[], Stores]


def digest_of(content: bytes, algorithm: str = "sha256") -> Digest:
    return Digest(algorithm, hashlib.new(algorithm, content).hexdigest())


def noise(size: int, seed: int = 0) -> bytes:
    """Bytes that repeat nowhere near."""
    return hashlib.shake_128(seed.to_bytes(8, "big")).digest(size)


async def push(stores: Stores, content: bytes, algorithm: str = "sha256") -> Digest:
    digest = digest_of(content, algorithm)
    upload = await stores.uploads.begin(algorithm)
    await upload.write(content)
    assert (await upload.commit(digest)).size_bytes == len(content)
    await upload.abort()
    return digest


async def pull(blobs: BlobStore, digest: Digest, piece: int = MIB) -> bytes:
    with closing(await blobs.open(digest)) as reader:
        content = bytearray()
        while found := await reader.read(len(content), piece):
            content += found
        assert len(content) == reader.size_bytes
        return bytes(content)


async def held(blobs: BlobStore) -> set[Digest]:
    return {digest async for digest in blobs.digests()}


async def resume_soon(uploads: UploadStore, upload_id: str) -> Upload:
    """Waits while it is busy: the thread of a cancelled caller ends in its own time."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            try:
                return await uploads.resume(upload_id)
            except UploadBusy:
                await asyncio.sleep(0.01)


async def until_count(uploads: UploadStore, expected: int) -> None:
    """What other gateways do may be counted late."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            if await uploads.count() == expected:
                return
            await asyncio.sleep(0.05)


class StoreSuite:
    """The promises of `replication.stores`."""

    @pytest.fixture
    def make(self) -> MakeStores:
        raise NotImplementedError

    @pytest.fixture
    def stores(self, make: MakeStores) -> Stores:
        return make()

    async def test_what_was_pushed_can_be_read_in_any_ranges(self, stores: Stores) -> None:
        content = noise(3 * MIB + 17)
        digest = await push(stores, content)
        assert await stores.blobs.stat(digest) == len(content)
        reader = await stores.blobs.open(digest)
        assert reader.size_bytes == len(content)
        for offset, length in ((0, 1), (0, MIB), (5, MIB + 1), (MIB - 1, 2), (3, 3 * MIB), (3 * MIB, 99), (0, 9 * MIB)):
            assert await reader.read(offset, length) == content[offset : offset + length]
        for offset, length in ((len(content), 1), (len(content) + 5, 5), (0, 0), (7, 0)):
            assert await reader.read(offset, length) == b""
        reader.close()
        reader.close()

    async def test_an_empty_blob_is_a_blob(self, stores: Stores) -> None:
        upload = await stores.uploads.begin()
        assert (await upload.commit(digest_of(b""))).size_bytes == 0
        assert await stores.blobs.stat(digest_of(b"")) == 0
        assert await pull(stores.blobs, digest_of(b"")) == b""

    async def test_a_blob_that_is_not_there(self, stores: Stores) -> None:
        with pytest.raises(BlobNotFound):
            await stores.blobs.stat(digest_of(b"absent"))
        with pytest.raises(BlobNotFound):
            await stores.blobs.open(digest_of(b"absent"))
        await stores.blobs.delete(digest_of(b"absent"))
        assert await held(stores.blobs) == set()

    async def test_an_upload_is_no_blob_before_its_commit(self, stores: Stores) -> None:
        upload = await stores.uploads.begin()
        await upload.write(noise(2 * MIB))
        await upload.suspend()
        assert await held(stores.blobs) == set()
        with pytest.raises(BlobNotFound):
            await stores.blobs.stat(digest_of(noise(2 * MIB)))

    async def test_another_gateway_goes_on_where_one_suspended(self, stores: Stores) -> None:
        content = noise(2 * MIB + 3)
        upload = await stores.uploads.begin()
        cuts = (0, 1, 65, 65, MIB + 1, len(content))
        for number, (start, end) in enumerate(itertools.pairwise(cuts)):
            assert upload.offset == start
            await upload.write(content[start:end])
            assert upload.offset == end
            await upload.suspend()
            assert upload.offset == end
            place = stores.elsewhere if number % 2 == 0 else stores.uploads
            upload = await place.resume(upload.upload_id)
        assert (await upload.commit(digest_of(content))).size_bytes == len(content)
        assert await pull(stores.blobs, digest_of(content)) == content

    async def test_only_one_holds_an_upload(self, stores: Stores) -> None:
        upload = await stores.uploads.begin()
        for place in (stores.uploads, stores.elsewhere):
            with pytest.raises(UploadBusy):
                await place.resume(upload.upload_id)
        await upload.suspend()
        again = await stores.elsewhere.resume(upload.upload_id)
        await upload.suspend()  # a second time: it must not let go of what somebody else holds
        with pytest.raises(UploadBusy):
            await stores.uploads.resume(upload.upload_id)
        with pytest.raises(RuntimeError):
            await upload.write(b"no longer held")
        await again.abort()

    async def test_ids_that_name_no_upload(self, stores: Stores) -> None:
        upload = await stores.uploads.begin()
        await upload.suspend()
        known = upload.upload_id
        for unknown in (*NOT_UPLOADS, new_uuid(), known + "\n", known + "/", known.upper() + "0", f"./{known}"):
            with pytest.raises(UploadNotFound):
                await stores.uploads.resume(unknown)

    async def test_other_bytes_than_announced_are_refused_and_gone(self, stores: Stores) -> None:
        upload = await stores.uploads.begin()
        await upload.write(b"these bytes")
        with pytest.raises(DigestMismatch) as caught:
            await upload.commit(digest_of(b"other bytes"))
        assert caught.value.actual == digest_of(b"these bytes")
        assert caught.value.expected == digest_of(b"other bytes")
        with pytest.raises(UploadNotFound):
            await stores.uploads.resume(upload.upload_id)
        assert await held(stores.blobs) == set()

    async def test_a_commit_can_be_repeated_until_it_is_forgotten(self, stores: Stores) -> None:
        digest = digest_of(b"content")
        upload = await stores.uploads.begin()
        await upload.write(b"content")
        assert (await upload.commit(digest)).size_bytes == 7
        for place in (stores.elsewhere, stores.uploads):
            again = await place.resume(upload.upload_id)
            assert again.offset == 7
            with pytest.raises(UploadNotFound):
                await again.write(b"more")
            assert (await again.commit(digest)).size_bytes == 7
        looked_at = await stores.uploads.resume(upload.upload_id)
        await looked_at.suspend()
        await upload.abort()
        await upload.abort()
        with pytest.raises(UploadNotFound):
            await stores.uploads.resume(upload.upload_id)
        assert await pull(stores.blobs, digest) == b"content"

    async def test_a_repeated_commit_of_something_else_is_refused(self, stores: Stores) -> None:
        upload = await stores.uploads.begin()
        await upload.write(b"content")
        await upload.commit(digest_of(b"content"))
        again = await stores.uploads.resume(upload.upload_id)
        with pytest.raises(DigestMismatch) as caught:
            await again.commit(digest_of(b"other"))
        assert caught.value.actual == digest_of(b"content")
        assert await held(stores.blobs) == {digest_of(b"content")}

    async def test_a_blob_deleted_after_its_commit_is_not_claimed_again(self, stores: Stores) -> None:
        upload = await stores.uploads.begin()
        await upload.write(b"content")
        await upload.commit(digest_of(b"content"))
        again = await stores.uploads.resume(upload.upload_id)
        await stores.blobs.delete(digest_of(b"content"))
        with pytest.raises(UploadNotFound):
            await again.commit(digest_of(b"content"))
        with pytest.raises(UploadNotFound):
            await stores.uploads.resume(upload.upload_id)

    async def test_a_committed_upload_whose_blob_is_gone_is_gone(self, stores: Stores) -> None:
        upload = await stores.uploads.begin()
        await upload.commit(digest_of(b""))
        await stores.blobs.delete(digest_of(b""))
        with pytest.raises(UploadNotFound):
            await stores.uploads.resume(upload.upload_id)

    async def test_forgetting_leaves_an_upload_that_another_holds(self, stores: Stores) -> None:
        upload = await stores.uploads.begin()
        await upload.commit(digest_of(b""))
        again = await stores.elsewhere.resume(upload.upload_id)
        await upload.abort()
        assert (await again.commit(digest_of(b""))).size_bytes == 0
        await again.abort()

    async def test_many_commit_the_same_blob_at_once(self, stores: Stores) -> None:
        content = noise(300_000)
        digest = digest_of(content)
        places = (stores.uploads, stores.elsewhere) * 4
        uploads = [await place.begin() for place in places]
        for upload in uploads:
            await upload.write(content)
        async with asyncio.timeout(DEADLINE_SECONDS):
            facts = await asyncio.gather(*(upload.commit(digest) for upload in uploads))
        assert [fact.size_bytes for fact in facts] == [len(content)] * len(uploads)
        assert await held(stores.blobs) == {digest}
        assert await pull(stores.blobs, digest, 65_537) == content

    @pytest.mark.parametrize("hint", ["sha256", "sha512", "md5"])
    @pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
    async def test_the_algorithm_begun_with_is_only_a_hint(self, stores: Stores, hint: str, algorithm: str) -> None:
        content = noise(MIB + 5)
        digest = digest_of(content, algorithm)
        upload = await stores.uploads.begin(hint)
        await upload.write(content[:9])
        await upload.suspend()
        upload = await stores.elsewhere.resume(upload.upload_id)
        await upload.write(content[9:])
        assert (await upload.commit(digest)).size_bytes == len(content)
        assert await held(stores.blobs) == {digest}
        assert await pull(stores.blobs, digest) == content

    async def test_an_aborted_upload_is_gone(self, stores: Stores) -> None:
        upload = await stores.uploads.begin()
        await upload.write(noise(2 * MIB))
        await upload.abort()
        await upload.abort()
        await upload.suspend()
        with pytest.raises(UploadNotFound):
            await stores.uploads.resume(upload.upload_id)
        with pytest.raises(RuntimeError):
            await upload.commit(digest_of(b""))

    async def test_idle_uploads_are_reaped_and_held_ones_are_not(self, stores: Stores) -> None:
        idle = await stores.uploads.begin()
        await idle.write(b"left behind")
        await idle.suspend()
        committed = await stores.uploads.begin()
        await committed.commit(digest_of(b""))
        busy = await stores.uploads.begin()
        assert await stores.elsewhere.reap(3600.0) == 0
        assert await stores.elsewhere.reap(EVERYTHING) == 2
        for gone in (idle, committed):
            with pytest.raises(UploadNotFound):
                await stores.uploads.resume(gone.upload_id)
        await busy.write(b"still held")
        assert (await busy.commit(digest_of(b"still held"))).size_bytes == 10
        assert await held(stores.blobs) == {digest_of(b"still held"), digest_of(b"")}

    async def test_open_uploads_are_counted(self, stores: Stores) -> None:
        assert await stores.uploads.count() == 0
        uploads = [await stores.uploads.begin() for _ in range(3)]
        assert await stores.uploads.count() == 3
        await uploads[0].suspend()
        await uploads[1].abort()
        await until_count(stores.elsewhere, 2)
        await until_count(stores.uploads, 2)
        await uploads[2].abort()

    async def test_a_reader_outlives_its_blob(self, stores: Stores) -> None:
        content = noise(MIB)
        digest = await push(stores, content)
        reader = await stores.blobs.open(digest)
        await stores.blobs.delete(digest)
        await stores.blobs.delete(digest)
        with pytest.raises(BlobNotFound):
            await stores.blobs.open(digest)
        assert await reader.read(0, MIB) == content
        reader.close()
        assert await push(stores, content) == digest
        assert await pull(stores.blobs, digest) == content

    async def test_every_blob_is_listed(self, stores: Stores) -> None:
        pushed = {
            await push(stores, b"%d" % number, algorithm) for number in range(6) for algorithm in ("sha256", "sha512")
        }
        assert await held(stores.blobs) == pushed
        assert stores.blobs.store_id == STORE_ID

    def test_chunks_of_any_sizes_make_the_same_blob(self, make: MakeStores) -> None:
        stores = make()

        async def receive(sizes: list[int], suspended: int) -> None:
            content = noise(sum(sizes), len(sizes))
            upload = await stores.uploads.begin()
            for number, size in enumerate(sizes):
                if number == suspended:
                    await upload.suspend()
                    upload = await stores.elsewhere.resume(upload.upload_id)
                await upload.write(content[upload.offset : upload.offset + size])
            assert (await upload.commit(digest_of(content))).size_bytes == len(content)
            assert await pull(stores.blobs, digest_of(content)) == content
            await upload.abort()
            await stores.blobs.delete(digest_of(content))

        size = st.sampled_from([0, 1, 63, 64, 65, 4095, 4096, 65_537, MIB - 1, MIB, MIB + 1, 2 * MIB + 7])

        @settings(max_examples=50, deadline=None)
        @given(sizes=st.lists(size, max_size=8), suspended=st.integers(0, 8))
        def check(sizes: list[int], suspended: int) -> None:
            asyncio.run(receive(sizes, suspended))

        check()

    async def test_a_multitude_of_tiny_chunks(self, stores: Stores) -> None:
        content = noise(5000)
        upload = await stores.uploads.begin()
        for position in range(0, len(content), 3):
            await upload.write(content[position : position + 3])
        assert (await upload.commit(digest_of(content))).size_bytes == len(content)

    async def test_a_cancelled_writer_leaves_a_prefix_to_go_on_from(self, stores: Stores) -> None:
        content = noise(8 * MIB)
        for steps in (0, 1, 2, 3, 5, 8, 13):
            upload = await stores.uploads.begin()
            writing = asyncio.create_task(_write_then_suspend(upload, content, 300_000))
            for _ in range(steps):
                await asyncio.sleep(0)
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            await upload.suspend()
            upload = await resume_soon(stores.elsewhere, upload.upload_id)
            assert 0 <= upload.offset <= len(content)
            await upload.write(content[upload.offset :])
            assert (await upload.commit(digest_of(content))).size_bytes == len(content)
            await upload.abort()

    async def test_a_cancelled_commit_happens_or_does_not(self, stores: Stores) -> None:
        for steps in range(4):
            content = noise(2 * MIB, steps)
            upload = await stores.uploads.begin()
            await upload.write(content)
            committing = asyncio.create_task(upload.commit(digest_of(content)))
            for _ in range(steps):
                await asyncio.sleep(0)
            committing.cancel()
            await asyncio.gather(committing, return_exceptions=True)
            await upload.suspend()
            upload = await resume_soon(stores.elsewhere, upload.upload_id)
            assert (await upload.commit(digest_of(content))).size_bytes == len(content)
            await upload.abort()


async def _write_then_suspend(upload: Upload, content: bytes, piece: int) -> None:
    try:
        for position in range(0, len(content), piece):
            await upload.write(content[position : position + piece])
    finally:
        await upload.suspend()
