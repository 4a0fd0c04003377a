"""A disk without room: a file system of a few MiB, mounted for the test."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.blobs.arrivals import FilesystemArrival, FilesystemArrivals
from replication.stores import StoreFull, Upload
from tests.node.blobs.file_stores import FileStores
from tests.node.blobs.suite import MIB, Stores, digest_of, held, noise, pull, push

DISK_BYTES = 16 * MIB


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A folder with DISK_BYTES and no more."""
    mount = shutil.which("mount")
    options = ["-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=700", "meridian-test", str(tmp_path)]
    if mount is None or subprocess.run([mount, *options], check=False, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted: not root")
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.fixture
def files(disk: Path) -> Iterator[FileStores]:
    with FileStores(disk) as files:
        yield files


def used_bytes(folder: Path) -> int:
    volume = os.statvfs(folder)
    return (volume.f_blocks - volume.f_bfree) * volume.f_frsize


def fill(folder: Path) -> Path:
    """Takes what room there is."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (MIB, 4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return ballast


async def write(upload: Upload, content: bytes) -> None:
    for position in range(0, len(content), MIB):
        await upload.write(content[position : position + MIB])


async def test_an_upload_that_does_not_fit_leaves_nothing_half_made(files: FileStores) -> None:
    stores = files.stores()
    kept = await push(stores, noise(MIB))
    before = used_bytes(files.data)
    upload = await stores.uploads.begin()
    with pytest.raises(StoreFull):
        await write(upload, noise(DISK_BYTES))
    assert upload.offset < DISK_BYTES
    await upload.suspend()
    upload = await stores.elsewhere.resume(upload.upload_id)
    assert upload.offset % MIB == 0
    await upload.abort()
    assert used_bytes(files.data) == before
    assert await held(stores.blobs) == {kept}
    assert await pull(stores.blobs, kept) == noise(MIB)
    await push(stores, noise(MIB, 1))


async def test_on_a_full_disk_nothing_begins_and_reading_goes_on(files: FileStores) -> None:
    stores = files.stores()
    kept = await push(stores, b"content")
    fill(files.data)
    with pytest.raises(StoreFull):
        await push(stores, b"more")
    assert await pull(stores.blobs, kept) == b"content"


async def test_an_upload_outlasts_a_full_disk(files: FileStores) -> None:
    stores, content = files.stores(), noise(3 * MIB)
    upload = await stores.uploads.begin()
    await upload.write(content[: 2 * MIB])
    await upload.suspend()
    ballast = fill(files.data)
    upload = await stores.uploads.resume(upload.upload_id)
    assert upload.offset == 2 * MIB
    await upload.write(content[2 * MIB :])
    with pytest.raises(StoreFull):
        await upload.commit(digest_of(content))
    assert await held(stores.blobs) == set()
    ballast.unlink()
    await _finish(stores, upload.upload_id, content)


async def test_a_record_that_finds_no_room_costs_no_bytes(files: FileStores) -> None:
    stores, content = files.stores(), noise(3 * MIB)
    upload = await stores.uploads.begin()
    await upload.write(content[:MIB])
    await upload.suspend()
    upload = await stores.uploads.resume(upload.upload_id)
    await upload.write(content[MIB : 2 * MIB])
    await upload.write(content[2 * MIB :])  # the megabyte before is on the disk once this is on its way
    ballast = fill(files.data)
    try:
        await upload.suspend()
    except StoreFull:
        assert upload.offset == 2 * MIB
    ballast.unlink()
    await _finish(stores, upload.upload_id, content)


async def fill_in(arrival: FilesystemArrival, content: bytes, upto: int | None = None) -> None:
    for piece in range(arrival.pieces.count):
        stop = min(arrival.pieces.stop(piece), upto or len(content))
        while (reached := arrival.pieces.reached(piece)) < stop:
            await arrival.write(piece, content[reached : min(reached + MIB, stop)])


async def test_arrivals_that_began_find_the_room_that_they_need(files: FileStores) -> None:
    store = files.store()
    large, small, more = noise(10 * MIB), noise(5 * MIB, 1), noise(2 * MIB, 2)
    arrival = await FilesystemArrivals.open(files.data / "arrivals", store, incarnation="1").take_up(
        digest_of(large), len(large)
    )
    await fill_in(arrival, large, 8 * MIB)
    await arrival.suspend()
    arrivals = FilesystemArrivals.open(files.data / "arrivals", store, incarnation="1")  # as a process that died
    both = [await arrivals.take_up(digest_of(content), len(content)) for content in (large, small)]
    with pytest.raises(StoreFull):
        await arrivals.take_up(digest_of(more), len(more))
    for arrival, content in zip(both, (large, small), strict=True):
        await fill_in(arrival, content)
        await arrival.commit(digest_of(content))
        await arrival.discard()
    assert await held(store) == {digest_of(large), digest_of(small)}


async def _finish(stores: Stores, upload_id: str, content: bytes) -> None:
    upload = await stores.uploads.resume(upload_id)
    assert upload.offset >= 2 * MIB
    await upload.write(content[upload.offset :])
    assert (await upload.commit(digest_of(content))).size_bytes == len(content)
    assert await pull(stores.blobs, digest_of(content)) == content
