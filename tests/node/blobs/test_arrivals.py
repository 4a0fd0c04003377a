"""Blobs on their way in, on the disk: read while they grow, taken up again, removed."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from consensus.names import Digest
from node.blobs.arrivals import FilesystemArrival, FilesystemArrivals
from node.blobs.filesystem import FilesystemStore
from node.blobs.ledger import LedgerHead, read_entries
from replication import pieces
from replication.stores import BlobNotFound, DigestMismatch, StoreFull
from tests.node.blobs.suite import STORE_ID, digest_of, held, noise

PIECE = 4096
CONTENT = noise(10 * PIECE + 77)
DIGEST = digest_of(CONTENT)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES", PIECE)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FilesystemStore]:
    store = FilesystemStore.at(tmp_path / "blobs", store_id=STORE_ID, free_bytes=0)
    yield store
    store.close()


def area(store: FilesystemStore, incarnation: str = "1") -> FilesystemArrivals:
    return FilesystemArrivals.open(store.folder.parent / "arrivals", store, incarnation=incarnation)


async def fill(arrival: FilesystemArrival, *numbers: int, upto: int = PIECE, content: bytes = CONTENT) -> None:
    """Adds to some pieces, in chunks of odd lengths, so that each has `upto` bytes at most."""
    for piece in numbers:
        stop = min(arrival.pieces.start(piece) + upto, arrival.pieces.stop(piece))
        while (reached := arrival.pieces.reached(piece)) < stop:
            await arrival.write(piece, content[reached : min(reached + 1000, stop)])


async def test_pieces_come_in_any_order_and_can_be_read_at_once(store: FilesystemStore) -> None:
    arrivals = area(store)
    arrival = await arrivals.take_up(DIGEST, len(CONTENT))
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


async def test_what_is_wrong_does_not_become_a_blob(store: FilesystemStore) -> None:
    arrivals = area(store)
    arrival = await arrivals.take_up(DIGEST, len(CONTENT))
    await fill(arrival, *range(11), content=CONTENT[:-1] + b"!")
    reader = await arrivals.reader(arrival.arrival_id, len(CONTENT))
    with pytest.raises(DigestMismatch):
        await arrival.commit(DIGEST)
    await arrival.discard()
    assert await reader.read(0, 5) == CONTENT[:5]
    reader.close()
    assert not await held(store)
    assert not list((store.folder.parent / "arrivals").iterdir())


@pytest.mark.parametrize("incarnation", ["1", "2"])
async def test_what_was_left_is_taken_up(store: FilesystemStore, incarnation: str) -> None:
    first = await area(store).take_up(DIGEST, len(CONTENT))
    await fill(first, 0, 3, 10)
    await fill(first, 4, upto=100)
    await first.suspend()
    other = await area(store).take_up(digest_of(b"other"), 5)
    second = await area(store, incarnation).take_up(DIGEST, len(CONTENT))
    assert second.arrival_id == first.arrival_id != other.arrival_id
    assert [second.pieces.is_whole(piece) for piece in (0, 3, 10, 1)] == [True, True, True, False]
    assert second.pieces.reached(4) == 4 * PIECE + 100
    await fill(second, *range(11))
    assert await second.commit(DIGEST) == len(CONTENT)
    await second.discard()
    await other.discard()
    assert await held(store) == {DIGEST}


async def test_one_that_is_held_is_left_alone(store: FilesystemStore) -> None:
    first = await area(store).take_up(DIGEST, len(CONTENT))
    await fill(first, 0)
    second = await area(store).take_up(DIGEST, len(CONTENT))
    assert second.arrival_id != first.arrival_id
    assert second.pieces.received_bytes == 0
    assert await area(store).reap(-1.0) == 0
    await first.suspend()
    assert await area(store).reap(-1.0) == 1
    await second.discard()


async def test_a_power_loss_costs_the_pieces_that_it_took(store: FilesystemStore) -> None:
    first = await area(store).take_up(DIGEST, len(CONTENT))
    await fill(first, *range(8))
    await first.suspend()
    folder = store.folder.parent / "arrivals" / first.arrival_id
    with (folder / "data").open("r+b") as file:
        file.seek(2 * PIECE + 9)
        file.write(b"\0\0\0\0")
    with (folder / "state").open("r+b") as file:
        file.seek(512 + 5 * 8)
        file.write(b"\xff\xff\xff\xff")
    second = await area(store, "2").take_up(DIGEST, len(CONTENT))
    assert [second.pieces.is_whole(piece) for piece in range(8)] == [True, True, False, True, True, False, True, True]
    await second.suspend()
    third = await area(store, "2").take_up(DIGEST, len(CONTENT))
    assert third.pieces.received_bytes == 6 * PIECE
    await fill(third, *range(11))
    await third.commit(DIGEST)
    await third.discard()


@pytest.mark.parametrize("damage", ["cut", "no data", "no ledger", "other digest", "noise", "folder"])
async def test_what_cannot_be_used_is_begun_anew(store: FilesystemStore, damage: str) -> None:
    first = await area(store).take_up(DIGEST, len(CONTENT))
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
            head = LedgerHead(digest_of(b"x"), len(CONTENT), PIECE, "1").encode()
            (folder / "state").write_bytes(head)
        case "noise":
            (folder / "state").write_bytes(noise(600))
        case "folder":
            (folder / "data").unlink()
            (folder / "data").mkdir()
    second = await area(store).take_up(DIGEST, len(CONTENT))
    assert second.arrival_id != first.arrival_id
    assert second.pieces.received_bytes == 0
    await second.discard()
    assert await area(store).reap(-1.0) == 1


async def test_a_ledger_that_is_nonsense_counts_nothing(store: FilesystemStore, tmp_path: Path) -> None:
    assert LedgerHead.decode(b"") is None
    head = LedgerHead(Digest.parse(str(DIGEST)), 7, PIECE, "i" * 32)
    assert LedgerHead.decode(head.encode()) == head
    assert LedgerHead.decode(head.encode()[:-1] + b"x") is None
    (tmp_path / "short").write_bytes(b"")
    descriptor = os.open(tmp_path / "short", os.O_RDONLY)
    try:
        assert read_entries(descriptor, 3) == [(0, 0)] * 3
    finally:
        os.close(descriptor)


async def test_no_arrival_begins_for_which_there_is_no_room(store: FilesystemStore) -> None:
    volume = os.statvfs(store.folder)
    free = volume.f_bavail * volume.f_frsize
    with pytest.raises(StoreFull):
        await area(store).take_up(DIGEST, 2 * free)
    assert not list((store.folder.parent / "arrivals").iterdir())
