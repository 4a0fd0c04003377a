"""A disk that fails and forgets: what a commit acknowledged is there after a power loss, whatever went wrong before."""

import asyncio
from collections.abc import Iterator
from contextlib import suppress

import pytest

from chaos.faults import Fault
from chaos.mount import LossyMount, fuse_missing
from consensus.disk import sync_folder
from consensus.names import Digest
from replication.stores import BlobStore, StoreError, StoreFailed, StoreFull, UploadNotFound
from tests.node.blobs.file_stores import FileStores
from tests.node.blobs.suite import MIB, Stores, digest_of, held, noise, pull, push

CONTENT = noise(2 * MIB + 100)
DIGEST = digest_of(CONTENT)
TRIES = 4
FAULTS = [
    Fault("fsync", "EIO", "/data", times=1),
    Fault("fsync", "ENOSPC", "/data", times=1),
    Fault("fsyncdir", "EIO", "blobs/sha256", times=1),
    Fault("rename", "EIO", "/data", times=1),
    Fault("rename", "EIO", "/state", times=1),
    Fault("write", "EIO", "/data", times=1),
    Fault("write", "ENOSPC", "/data", times=1),
    Fault("write", "ENOSPC", "/state", times=1),
    Fault("truncate", "EIO", "/data", times=1),
    Fault("create", "EIO", "/data", times=1),
    Fault("create", "EDQUOT", "/state", times=1),
    Fault("mkdir", "ENOSPC", "uploads", times=1),
    Fault("unlink", "EIO", "/data", times=1),
    Fault("read", "EIO", "/data", times=1),
    Fault("open", "EIO", "/data", times=1),
]


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LossyMount]:
    missing = fuse_missing()
    if missing:
        pytest.skip(f"no lossy file system: {missing}")
    with LossyMount(tmp_path_factory.mktemp("lossy") / "disk") as mount:
        yield mount


@pytest.fixture
def disk(mount: LossyMount) -> LossyMount:
    """A sound disk with an empty store; making a store's folders anew for each test would take most of the time."""
    mount.fail([])
    with FileStores(mount.folder) as files:
        asyncio.run(delete_all(files.store()))
    return mount


async def delete_all(blobs: BlobStore) -> None:
    for digest in await held(blobs):
        await blobs.delete(digest)


async def attempt(stores: Stores, upload_id: str) -> str:
    """What a client does that begins, or goes on with what it had; "" once the blob is acknowledged."""
    try:
        upload = await (stores.uploads.resume(upload_id) if upload_id else stores.uploads.begin())
    except UploadNotFound:
        upload = await stores.uploads.begin()
    try:
        await upload.write(CONTENT[upload.offset : MIB])
        await upload.suspend()
        upload = await stores.elsewhere.resume(upload.upload_id)
        await upload.write(CONTENT[upload.offset :])
        assert (await upload.commit(DIGEST)).size_bytes == len(CONTENT)
    except (StoreFailed, StoreFull):
        await upload.suspend()
        return upload.upload_id
    await upload.abort()
    return ""


async def push_in_spite_of_faults(stores: Stores) -> int:
    """How many tries it took until the blob was acknowledged."""
    upload_id = ""
    for number in range(TRIES):
        try:
            upload_id = await attempt(stores, upload_id)
        except (StoreFailed, StoreFull):
            continue
        await only_sound_blobs(stores.blobs)
        if not upload_id:
            return number
    raise AssertionError("one fault should not fail so many tries")


async def only_sound_blobs(blobs: BlobStore) -> set[Digest]:
    """What is held, all of which has to be what it says."""
    found = await held(blobs)
    for digest in found:
        assert digest_of(await pull(blobs, digest)) == digest
    return found


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.operation}-{fault.error}-{fault.match[1:]}")
def test_after_any_fault_what_is_acknowledged_outlasts_a_power_loss(disk: LossyMount, fault: Fault) -> None:
    with FileStores(disk.folder) as files:
        stores = files.stores()
        disk.fail([fault])
        asyncio.run(push_in_spite_of_faults(stores))
    disk.fail([])
    disk.crash()
    with FileStores(disk.folder) as files:
        assert DIGEST in asyncio.run(only_sound_blobs(files.store()))
        assert asyncio.run(pull(files.store(), DIGEST)) == CONTENT


@pytest.mark.parametrize("kept", [0.0, 0.5, 1.0])
def test_a_power_loss_between_requests_leaves_no_wrong_bytes(disk: LossyMount, kept: float) -> None:
    async def leave_half() -> str:
        upload = await stores.uploads.begin()
        await upload.write(CONTENT[: MIB + 7])
        await upload.suspend()
        await push(stores, b"acknowledged")
        return upload.upload_id

    async def finish(upload_id: str) -> bool:
        uploads = files.uploads(incarnation="second start")
        try:
            upload = await uploads.resume(upload_id)
            await upload.write(CONTENT[upload.offset :])
            await upload.commit(DIGEST)
        except StoreError:
            return False
        return True

    for seed in range(3):
        with FileStores(disk.folder) as files:
            stores = files.stores()
            upload_id = asyncio.run(leave_half())
        disk.crash(kept=kept, seed=seed)
        with FileStores(disk.folder) as files:
            finished = asyncio.run(finish(upload_id))
            found = asyncio.run(only_sound_blobs(files.store()))
            assert digest_of(b"acknowledged") in found
            assert (DIGEST in found) or not finished


def test_a_delete_is_not_undone_by_a_power_loss(disk: LossyMount) -> None:
    with FileStores(disk.folder) as files:
        stores = files.stores()
        digest = asyncio.run(push(stores, b"content"))
        asyncio.run(stores.blobs.delete(digest))
    disk.crash()
    with FileStores(disk.folder) as files:
        assert asyncio.run(held(files.store())) == set()


def test_a_disk_that_fails_to_read_says_so(disk: LossyMount) -> None:
    async def read() -> None:
        with pytest.raises(StoreFailed):
            await pull(files.store(), DIGEST)
        disk.fail([Fault("open", "EIO", "blobs/sha256")])
        with pytest.raises(StoreFailed):
            await files.store().open(DIGEST)

    with FileStores(disk.folder) as files:
        asyncio.run(push(files.stores(), CONTENT))
    disk.crash()
    disk.fail([Fault("read", "EIO", "blobs/sha256")])
    with FileStores(disk.folder) as files:
        asyncio.run(read())


@pytest.mark.parametrize("changes", [0, 1, 300, 514, 515, 516, 517])
def test_a_store_half_made_at_a_power_loss_is_completed(disk: LossyMount, changes: int) -> None:
    data = disk.folder / f"made-{changes}"
    data.mkdir()
    sync_folder(disk.folder)
    disk.cut_power(changes)
    with FileStores(data) as files, suppress(StoreFailed):
        files.store()
    disk.crash(kept=0.5, seed=changes)
    with FileStores(data) as files:
        assert asyncio.run(push(files.stores(), b"content")) == digest_of(b"content")
    disk.crash()
    with FileStores(data) as files:
        assert asyncio.run(pull(files.store(), digest_of(b"content"))) == b"content"
