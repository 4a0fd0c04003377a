"""Blobs on their way in, on the disk: read while they grow, taken up again, removed."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from consensus import parts
from consensus.names import Digest
from node.blobs.arrivals import FilesystemArrival, FilesystemArrivals
from node.blobs.filesystem import FilesystemStore
from node.blobs.ledger import LedgerHead, read_entries, sum_of
from replication.stores import BlobNotFound, DigestMismatch, StoreFull
from tests.node.blobs.parts_suite import fact_of
from tests.node.blobs.suite import STORE_ID, digest_of, held, noise

PIECE = 4096
CONTENT = noise(10 * PIECE + 77)
DIGEST = digest_of(CONTENT)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_BYTES", PIECE)
    monkeypatch.setattr(parts, "FIRST_PART_BYTES", PIECE // 4)
    monkeypatch.setattr(parts, "MIN_PARTED_BYTES", PIECE + 1)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FilesystemStore]:
    store = FilesystemStore.at(tmp_path / "blobs", store_id=STORE_ID, free_bytes=0)
    yield store
    store.close()


def parts_of_content() -> bytes:
    return fact_of(CONTENT).parts


def area(store: FilesystemStore, incarnation: str = "1") -> FilesystemArrivals:
    return FilesystemArrivals.open(store.folder.parent / "arrivals", store, incarnation=incarnation)


async def fill(arrival: FilesystemArrival, *numbers: int, upto: int = PIECE, content: bytes = CONTENT) -> None:
    """Adds to some pieces, in chunks of odd lengths, so that each has `upto` bytes at most."""
    for piece in numbers:
        stop = min(arrival.pieces.start(piece) + upto, arrival.pieces.stop(piece))
        while (reached := arrival.pieces.reached(piece)) < stop:
            assert await arrival.write(piece, content[reached : min(reached + 1000, stop)])


async def test_pieces_come_in_any_order_and_can_be_read_at_once(store: FilesystemStore) -> None:
    arrivals = area(store)
    arrival = await arrivals.take_up(DIGEST, len(CONTENT), parts_of_content())
    reader = await arrivals.reader(arrival.arrival_id, len(CONTENT))
    order = random.Random(7).sample(range(arrival.pieces.count), arrival.pieces.count)
    for piece in order:
        await fill(arrival, piece)
        start = arrival.pieces.start(piece)
        assert await reader.read(start, PIECE) == CONTENT[start : start + PIECE]
    assert arrival.pieces.whole
    assert await arrival.check(PIECE + 1) == PIECE + 1
    assert await arrival.commit(DIGEST) == len(CONTENT)
    await arrival.discard()
    assert await held(store) == {DIGEST}
    assert not list((store.folder.parent / "arrivals").iterdir())
    await store.delete(DIGEST)
    assert await reader.read(len(CONTENT) - 3, 10) == CONTENT[-3:]
    reader.close()
    with pytest.raises(BlobNotFound):
        await arrivals.reader(arrival.arrival_id, 1)
    with pytest.raises(BlobNotFound):
        await arrivals.reader("../../etc", 1)


async def test_without_parts_what_is_wrong_does_not_become_a_blob(store: FilesystemStore) -> None:
    arrivals = area(store)
    arrival = await arrivals.take_up(DIGEST, len(CONTENT))
    await fill(arrival, *range(11), content=CONTENT[:-1] + b"!")
    assert arrival.pieces.whole
    assert arrival.pieces.proven_extent(0) == 0
    reader = await arrivals.reader(arrival.arrival_id, len(CONTENT))
    with pytest.raises(DigestMismatch):
        await arrival.commit(DIGEST)
    await arrival.discard()
    assert await reader.read(0, 5) == CONTENT[:5]
    reader.close()
    assert not await held(store)
    assert not list((store.folder.parent / "arrivals").iterdir())


@pytest.mark.parametrize("chunk", [1, 100, 1024, PIECE])
@pytest.mark.parametrize("at", [0, 1023, 1024, 2047, PIECE - 1, PIECE, 2 * PIECE - 1, 10 * PIECE, len(CONTENT) - 1])
async def test_a_wrong_part_is_not_there_and_can_come_again(store: FilesystemStore, at: int, chunk: int) -> None:
    arrival = await area(store).take_up(DIGEST, len(CONTENT), parts_of_content())
    piece, wrong = at // PIECE, CONTENT[:at] + bytes([CONTENT[at] ^ 1]) + CONTENT[at + 1 :]
    start = parts.part_start(parts.part_at(at))
    stop = min(parts.part_stop(parts.part_at(at)), len(CONTENT))
    while True:
        reached = arrival.pieces.reached(piece)
        right = await arrival.write(piece, wrong[reached : min(reached + chunk, arrival.pieces.stop(piece))])
        if not right:
            break
        assert arrival.pieces.reached(piece) < stop
        assert arrival.pieces.proven(piece) <= start
    assert arrival.pieces.reached(piece) == arrival.pieces.proven(piece) == start
    await fill(arrival, *range(11))
    assert arrival.pieces.proven_extent(0) == len(CONTENT)
    await arrival.commit(DIGEST)
    await arrival.discard()
    assert await held(store) == {DIGEST}


async def test_a_small_blob_is_proven_by_its_digest(store: FilesystemStore) -> None:
    content = CONTENT[:PIECE]
    arrival = await area(store).take_up(digest_of(content), PIECE)
    await fill(arrival, 0, upto=PIECE - 1)
    assert not await arrival.write(0, b"!!"[:1])
    assert (arrival.pieces.reached(0), arrival.pieces.proven(0)) == (0, 0)
    await fill(arrival, 0)
    assert arrival.pieces.proven(0) == PIECE
    await arrival.commit(digest_of(content))
    await arrival.discard()


async def test_what_was_dropped_is_not_hashed(store: FilesystemStore) -> None:
    arrival = await area(store).take_up(DIGEST, len(CONTENT), parts_of_content())
    await fill(arrival, 3, upto=77, content=CONTENT[::-1])
    arrival.pieces.drop(3)
    await fill(arrival, 3)
    assert arrival.pieces.proven(3) == 4 * PIECE
    await arrival.discard()


async def test_parts_that_are_not_believed_do_not_count(store: FilesystemStore) -> None:
    false = bytes(len(parts_of_content()))
    arrival = await area(store).take_up(DIGEST, len(CONTENT), parts_of_content()[:160] + false[160:])
    await fill(arrival, *range(8))
    assert not await arrival.write(8, CONTENT[8 * PIECE : 9 * PIECE])
    await arrival.write(9, CONTENT[9 * PIECE : 9 * PIECE + 5])
    await arrival.disbelieve()
    assert (arrival.pieces.proven_extent(0), arrival.pieces.reached(9)) == (8 * PIECE, 9 * PIECE)
    await fill(arrival, 8)
    assert arrival.pieces.extent(0) == 9 * PIECE
    await arrival.suspend()
    again = await area(store).take_up(DIGEST, len(CONTENT), parts_of_content())  # which proves what is there
    assert again.arrival_id == arrival.arrival_id
    assert again.pieces.proven_extent(0) == 9 * PIECE
    await again.disbelieve()
    await fill(again, *range(11))
    await again.commit(DIGEST)
    await again.discard()


@pytest.mark.parametrize("incarnation", ["1", "2"])
async def test_what_was_left_is_taken_up(store: FilesystemStore, incarnation: str) -> None:
    first = await area(store).take_up(DIGEST, len(CONTENT), parts_of_content())
    await fill(first, 0, 3, 10)
    await fill(first, 4, upto=100)
    await first.suspend()
    other = await area(store).take_up(digest_of(b"other"), 5)
    second = await area(store, incarnation).take_up(DIGEST, len(CONTENT), parts_of_content())
    assert second.arrival_id == first.arrival_id != other.arrival_id
    assert [second.pieces.is_whole(piece) for piece in (0, 3, 10, 1)] == [True, True, True, False]
    assert second.pieces.reached(4) == 4 * PIECE + (100 if incarnation == "1" else 0)
    await fill(second, *range(11))
    assert await second.commit(DIGEST) == len(CONTENT)
    await second.discard()
    await other.discard()
    assert await held(store) == {DIGEST}


async def test_what_came_without_parts_is_not_proven_once_they_are_known(store: FilesystemStore) -> None:
    first = await area(store).take_up(DIGEST, len(CONTENT), parts_of_content())
    await fill(first, 0)
    await first.suspend()
    second = await area(store).take_up(DIGEST, len(CONTENT))
    assert second.arrival_id == first.arrival_id
    await fill(second, 1, 2, content=CONTENT[::-1])
    await second.suspend()
    third = await area(store).take_up(DIGEST, len(CONTENT), parts_of_content())
    assert third.arrival_id == first.arrival_id
    assert [third.pieces.proven(piece) for piece in range(3)] == [PIECE, PIECE, 2 * PIECE]  # all of 0, and no more
    assert third.pieces.reached(2) == 2 * PIECE
    await fill(third, *range(11))
    await third.commit(DIGEST)
    await third.discard()


async def test_one_that_is_held_is_left_alone(store: FilesystemStore) -> None:
    first = await area(store).take_up(DIGEST, len(CONTENT), parts_of_content())
    await fill(first, 0)
    second = await area(store).take_up(DIGEST, len(CONTENT), parts_of_content())
    assert second.arrival_id != first.arrival_id
    assert second.pieces.received_bytes == 0
    assert await area(store).reap(-1.0) == 0
    await first.suspend()
    assert await area(store).reap(-1.0) == 1
    await second.discard()


async def test_a_power_loss_costs_the_pieces_that_it_took(store: FilesystemStore) -> None:
    first = await area(store).take_up(DIGEST, len(CONTENT), parts_of_content())
    await fill(first, *range(8))
    await first.suspend()
    folder = store.folder.parent / "arrivals" / first.arrival_id
    with (folder / "data").open("r+b") as file:
        file.seek(2 * PIECE + 9)
        file.write(b"\0\0\0\0")
    with (folder / "state").open("r+b") as file:
        file.seek(512 + 5 * 4)
        file.write(b"\xff\xff\xff\xff")
    second = await area(store, "2").take_up(DIGEST, len(CONTENT), parts_of_content())
    assert [second.pieces.is_whole(piece) for piece in range(8)] == [True, True, False, True, True, True, True, True]
    await second.suspend()
    third = await area(store, "2").take_up(DIGEST, len(CONTENT), parts_of_content())
    assert third.pieces.received_bytes == 7 * PIECE
    await fill(third, *range(11))
    await third.commit(DIGEST)
    await third.discard()


@pytest.mark.parametrize("damage", ["cut", "no data", "no ledger", "other digest", "noise", "folder"])
async def test_what_cannot_be_used_is_begun_anew(store: FilesystemStore, damage: str) -> None:
    first = await area(store).take_up(DIGEST, len(CONTENT), parts_of_content())
    await fill(first, 0)
    await first.suspend()
    folder = store.folder.parent / "arrivals" / first.arrival_id
    match damage:
        case "cut":
            os.truncate(folder / "data", 100)
        case "no data":
            (folder / "data").unlink()
        case "no ledger":
            (folder / "state").unlink()
        case "other digest":
            head = LedgerHead(digest_of(b"x"), len(CONTENT), PIECE, "1", bytes(16)).encode()
            (folder / "state").write_bytes(head)
        case "noise":
            (folder / "state").write_bytes(noise(600))
        case "folder":
            (folder / "data").unlink()
            (folder / "data").mkdir()
    second = await area(store).take_up(DIGEST, len(CONTENT), parts_of_content())
    assert second.arrival_id != first.arrival_id
    assert second.pieces.received_bytes == 0
    await second.discard()
    assert await area(store).reap(-1.0) == 1


async def test_a_ledger_that_is_nonsense_counts_nothing(store: FilesystemStore, tmp_path: Path) -> None:
    assert LedgerHead.decode(b"") is None
    head = LedgerHead(Digest.parse(str(DIGEST)), 7, PIECE, "i" * 32, sum_of(b""))
    assert LedgerHead.decode(head.encode()) == head
    assert LedgerHead.decode(head.encode()[:-1] + b"x") is None
    (tmp_path / "short").write_bytes(b"")
    descriptor = os.open(tmp_path / "short", os.O_RDONLY)
    try:
        assert read_entries(descriptor, 3) == [0] * 3
    finally:
        os.close(descriptor)


async def test_no_arrival_begins_for_which_there_is_no_room(store: FilesystemStore) -> None:
    volume = os.statvfs(store.folder)
    free = volume.f_bavail * volume.f_frsize
    with pytest.raises(StoreFull):
        await area(store).take_up(DIGEST, 2 * free)
    assert not list((store.folder.parent / "arrivals").iterdir())


async def test_what_arrivals_under_way_still_lack_counts_as_taken(store: FilesystemStore) -> None:
    volume = os.statvfs(store.folder)
    most, arrivals = int(volume.f_bavail * volume.f_frsize * 0.6), area(store)
    names = [digest_of(b"%d" % number) for number in range(5)]
    found = await asyncio.gather(*(arrivals.take_up(name, most) for name in names), return_exceptions=True)
    assert sum(isinstance(each, StoreFull) for each in found) == 4
    (first,) = [each for each in found if isinstance(each, FilesystemArrival)]
    name = names[found.index(first)]
    assert len(list((store.folder.parent / "arrivals").iterdir())) == 1
    await first.write(0, b"some of it")
    await first.suspend()
    other = await arrivals.take_up(digest_of(b"other"), most)
    with pytest.raises(StoreFull):  # what is left of it stays there
        await arrivals.take_up(name, most)
    await other.discard()
    again = await arrivals.take_up(name, most)
    assert again.arrival_id == first.arrival_id
    await again.discard()
