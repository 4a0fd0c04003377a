"""Bounds and turns among many transfers. The source gives nothing until it is told to; the rest is real."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from consensus import parts
from consensus.names import Digest, StoreId
from consensus.parts import PartsHash
from node.blobs.arrivals import FilesystemArrivals
from node.blobs.filesystem import FilesystemStore
from replication import fetcher as fetchers
from replication import schedule
from replication.directory import BlobNotHeld, PeerUnreachable
from replication.fetcher import Fetcher, TransferRecord
from replication.peers import BlobStream
from replication.sources import BlobNowhere, HoldersUnreachable, TransferFalse, TransfersBusy, Wanted
from replication.transfer import Transfer

PIECE = 128 * 1024
STORE, OTHER = StoreId("1" * 32), StoreId("2" * 32)


@dataclass
class Gate:
    """A Source that has some blobs and gives them once `open` is set. Of its stores some lie, from an offset on, lack
    all or are gone; `stops` says after how many bytes some fall silent."""

    contents: dict[Digest, bytes] = field(default_factory=dict)
    open: asyncio.Event = field(default_factory=asyncio.Event)
    lies: set[StoreId] = field(default_factory=set)
    lacks: set[StoreId] = field(default_factory=set)
    gone: set[StoreId] = field(default_factory=set)
    lies_from: int = 0
    stops: dict[StoreId, int] = field(default_factory=dict)
    asked: list[tuple[StoreId, Digest]] = field(default_factory=list)

    def add(self, content: bytes, *holders: StoreId) -> Wanted:
        digest = Digest("sha256", hashlib.sha256(content).hexdigest())
        self.contents[digest] = content
        running = PartsHash()
        running.update(content)
        return Wanted(digest, len(content), holders or (STORE,), running.digests(len(content)))

    @asynccontextmanager
    async def blob(self, store: StoreId, digest: Digest, start: int, stop: int) -> AsyncIterator[BlobStream]:
        self.asked.append((store, digest))
        await self.open.wait()
        if store in self.gone:
            raise PeerUnreachable(store)
        if digest not in self.contents or store in self.lacks:
            raise BlobNotHeld(store)
        content = self.contents[digest]
        given = content[: self.lies_from].ljust(len(content), b"\0") if store in self.lies else content
        yield BlobStream(len(content), _once(given[start:stop], self.stops.get(store)))

    def distance(self, store: StoreId) -> float:
        return int(store[:1]) / 100


async def _once(content: bytes, stop: int | None) -> AsyncIterator[bytes]:
    yield content[:stop]
    if stop is not None and stop < len(content):
        await asyncio.Event().wait()


def noise(size: int) -> bytes:
    return hashlib.shake_128(b"%d" % size).digest(size)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_BYTES", PIECE)
    monkeypatch.setattr(parts, "MIN_PARTED_BYTES", PIECE + 1)


async def ended(fetcher: Fetcher) -> None:
    while fetcher.status.transfers:  # noqa: ASYNC110
        await asyncio.sleep(0.02)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FilesystemStore]:
    store = FilesystemStore.at(tmp_path / "blobs", store_id=StoreId("f" * 32), free_bytes=0)
    yield store
    store.close()


@dataclass
class Hearsay:
    """Copies that a test says there are."""

    said: dict[Digest, list[StoreId]] = field(default_factory=dict)
    here: list[Digest] = field(default_factory=list)

    def holders(self, digest: Digest) -> list[StoreId]:
        return self.said.get(digest, [])

    def kept(self, digest: Digest) -> None:
        self.here.append(digest)

    def untrue(self, store: StoreId, digest: Digest) -> None:
        self.said[digest] = [each for each in self.holders(digest) if each != store]


@asynccontextmanager
async def fetching(
    store: FilesystemStore, gate: Gate, copies: Hearsay | None = None
) -> AsyncIterator[tuple[Fetcher, list[TransferRecord]]]:
    records: list[TransferRecord] = []
    arrivals = FilesystemArrivals.open(store.folder.parent / "arrivals", store, incarnation="1")
    fetcher = Fetcher(gate, store, arrivals, observe=records.append, copies=copies)
    async with asyncio.timeout(20), fetcher:
        yield fetcher, records


async def follow(fetcher: Fetcher, wanted: Wanted) -> None:
    """To the end. Raises what the transfer does."""
    following = fetcher.follow(wanted, 0, wanted.size_bytes)
    try:
        async for _ in following.updates():
            pass
    finally:
        following.leave()


async def idle(fetcher: Fetcher) -> None:
    """Clients have all bytes before the blob is one."""
    while fetcher.status.transfers:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


def transfers(fetcher: Fetcher) -> list[Transfer]:
    return list(fetcher._transfers.values())


async def test_the_bounds_are_kept_and_room_comes_back(store: FilesystemStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetchers, "MAX_TRANSFERS", 3)
    monkeypatch.setattr(fetchers, "MAX_FOLLOWINGS", 5)
    gate = Gate()
    async with fetching(store, gate) as (fetcher, records):
        wanted = [gate.add(b"%d" % number) for number in range(4)]
        following = [asyncio.create_task(follow(fetcher, each)) for each in (*wanted[:3], wanted[0])]
        await asyncio.sleep(0)
        with pytest.raises(TransfersBusy, match="3 blobs"):
            await follow(fetcher, wanted[3])
        following.append(asyncio.create_task(follow(fetcher, wanted[1])))
        await asyncio.sleep(0)
        with pytest.raises(TransfersBusy, match="5 requests"):
            await follow(fetcher, wanted[0])
        following[2].cancel()
        await asyncio.sleep(0)
        following.append(asyncio.create_task(follow(fetcher, wanted[3])))
        await asyncio.sleep(0)
        assert fetcher.status.transfers == 4  # the other goes on, though nobody waits for it any more
        gate.open.set()
        await asyncio.gather(*following, return_exceptions=True)
        await ended(fetcher)
        assert [record.outcome for record in records] == ["kept"] * 4
        assert fetcher.status.followings == 0


async def test_what_is_asked_for_goes_before_what_is_ahead(store: FilesystemStore) -> None:
    gate = Gate()
    async with fetching(store, gate) as (fetcher, records):
        ahead = [gate.add(b"ahead %d" % number) for number in range(2 * fetchers.MAX_AHEAD)]
        fetcher.ahead(ahead)
        assert fetcher.status.transfers == fetchers.AHEAD_TRANSFERS
        assert fetcher.status.waiting <= fetchers.MAX_AHEAD
        assert {transfer.most_flows for transfer in transfers(fetcher)} == {16}
        asked = asyncio.create_task(follow(fetcher, gate.add(b"asked for")))
        await asyncio.sleep(0)
        assert [transfer.most_flows for transfer in transfers(fetcher)] == [1, 1, 16]
        late = asyncio.create_task(follow(fetcher, ahead[1]))
        await asyncio.sleep(0)
        assert [transfer.most_flows for transfer in transfers(fetcher)] == [1, 16, 16]
        fetcher.ahead(ahead[:10])
        assert fetcher.status.waiting <= fetchers.MAX_AHEAD
        gate.open.set()
        await asyncio.gather(asked, late)
        while fetcher.status.transfers:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        assert len(records) >= fetchers.MAX_AHEAD
        assert len(gate.asked) == len(set(gate.asked))
        before = len(records)
        fetcher.ahead(ahead[:10])
        while fetcher.status.transfers:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        assert len(records) == before  # they are here


@pytest.mark.parametrize("size", [1, 70_000, PIECE + 1, 5 * PIECE + 77])
async def test_a_liar_is_replaced_without_a_word(
    store: FilesystemStore, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate(lies={STORE})
    gate.open.set()
    async with fetching(store, gate) as (fetcher, records):
        wanted = gate.add(noise(size), STORE, OTHER)
        await follow(fetcher, wanted)
        await ended(fetcher)
        assert await store.stat(wanted.digest) == wanted.size_bytes
        assert [record.outcome for record in records] == ["kept"]
        assert records[0].troubles["wrong"] >= 1
        assert caplog.records[-1].msg == "wrong_bytes_given"
        assert caplog.records[-1].__dict__["stores"] == [STORE]


@pytest.mark.parametrize("size", [70_000, 5 * PIECE])
async def test_alone_a_liar_is_not_asked_again_for_a_while(store: FilesystemStore, size: int) -> None:
    gate = Gate(lies={STORE})
    gate.open.set()
    async with fetching(store, gate) as (fetcher, _):
        wanted = gate.add(noise(size))
        with pytest.raises(TransferFalse):
            await follow(fetcher, wanted)
        await ended(fetcher)
        asked = len(gate.asked)
        with pytest.raises(HoldersUnreachable, match="wrong bytes"):
            await follow(fetcher, wanted)
        assert len(gate.asked) == asked


@pytest.mark.parametrize("lies", [set(), {STORE}])
async def test_parts_that_everybody_contradicts_are_not_believed(store: FilesystemStore, lies: set[StoreId]) -> None:
    gate = Gate(lies=lies)
    gate.open.set()
    async with fetching(store, gate) as (fetcher, records):
        wanted = gate.add(noise(5 * PIECE), STORE, OTHER)
        false = replace(wanted, parts=wanted.parts[:-16] + bytes(16))
        for _ in range(1 + len(lies)):  # which of them lies is seen in the whole
            with suppress(TransferFalse):
                await follow(fetcher, false)
            await ended(fetcher)
        assert await store.stat(wanted.digest) == wanted.size_bytes
        assert [record.outcome for record in records] == ["TransferFalse"] * len(lies) + ["kept"]


async def test_a_part_of_which_two_gave_some_is_fetched_from_one_alone(
    store: FilesystemStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The liar gives the wrong beginning of each part that it is asked for, and then nothing."""
    monkeypatch.setattr(schedule, "SILENCE_SECONDS", 0.1)
    gate = Gate(lies={STORE}, lies_from=PIECE, stops={STORE: PIECE - 1000})
    gate.open.set()
    async with fetching(store, gate) as (fetcher, records):
        wanted = gate.add(noise(4 * PIECE), STORE, OTHER)
        await asyncio.wait_for(follow(fetcher, wanted), 10)
        await ended(fetcher)
        assert [record.outcome for record in records] == ["kept"]
        assert "wrong" not in records[0].troubles  # nobody can be said to have lied


async def test_a_blob_that_nobody_has_is_a_loss(store: FilesystemStore, caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate()
    gate.open.set()
    async with fetching(store, gate) as (fetcher, _):
        wanted = gate.add(b"lost", STORE, OTHER)
        gate.contents.clear()
        with pytest.raises(BlobNowhere):
            await follow(fetcher, wanted)
        assert {holder for holder, _ in gate.asked} == {STORE, OTHER}
        assert "blob_lost" in caplog.text


async def test_copies_are_asked_beside_the_holders_and_what_was_kept_is_one(store: FilesystemStore) -> None:
    gate, copies = Gate(gone={STORE}), Hearsay()
    gate.open.set()
    async with fetching(store, gate, copies) as (fetcher, _):
        wanted, unclaimed = gate.add(b"a copy"), gate.add(b"without a copy")
        copies.said[wanted.digest] = [OTHER, store.store_id, STORE]
        await follow(fetcher, wanted)
        await idle(fetcher)
        assert {holder for holder, _ in gate.asked} <= {STORE, OTHER}
        assert copies.here == [wanted.digest]
        with pytest.raises(HoldersUnreachable):
            await follow(fetcher, unclaimed)
        assert copies.here == [wanted.digest]
        lonely = gate.add(b"whose only holder in the log is this node")
        copies.said[lonely.digest] = [OTHER]
        await follow(fetcher, Wanted(lonely.digest, lonely.size_bytes, ()))


async def test_a_copy_that_becomes_known_is_used_by_what_runs_already(store: FilesystemStore) -> None:
    gate, copies = Gate(), Hearsay()
    async with fetching(store, gate, copies) as (fetcher, _):
        wanted = gate.add(b"later known")
        following = asyncio.create_task(follow(fetcher, wanted))
        while not gate.asked:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        gate.gone.add(STORE)
        copies.said[wanted.digest] = [OTHER]
        gate.open.set()
        await following
        assert gate.asked[-1] == (OTHER, wanted.digest)


async def test_a_copy_that_becomes_known_when_nobody_is_left_is_used_too(store: FilesystemStore) -> None:
    gate, copies = Gate(gone={STORE}), Hearsay()
    gate.open.set()
    async with fetching(store, gate, copies) as (fetcher, records):
        wanted = gate.add(b"known at last")
        following = asyncio.create_task(follow(fetcher, wanted))
        await asyncio.sleep(0.8)
        copies.said[wanted.digest] = [OTHER]
        await following
        await idle(fetcher)
        assert [record.outcome for record in records] == ["kept"]


async def test_a_false_claim_costs_one_request_and_a_lie_of_a_copy_is_blamed(store: FilesystemStore) -> None:
    gate, copies = Gate(lacks={OTHER}), Hearsay()
    gate.open.set()
    async with fetching(store, gate, copies) as (fetcher, _):
        wanted = gate.add(b"not there", STORE)
        gate.gone.add(STORE)
        copies.said[wanted.digest] = [OTHER]
        with pytest.raises(HoldersUnreachable):
            await follow(fetcher, wanted)
        assert copies.said[wanted.digest] == []
        assert gate.asked.count((OTHER, wanted.digest)) == 1
        gate.gone, gate.lacks, gate.lies = set(), {STORE}, {OTHER}
        copies.said[wanted.digest] = [OTHER]
        with pytest.raises(TransferFalse):
            await follow(fetcher, wanted)
        before = gate.asked.count((OTHER, wanted.digest))
        with pytest.raises(BlobNowhere):
            await follow(fetcher, wanted)
        assert gate.asked.count((OTHER, wanted.digest)) == before


async def test_a_file_of_another_size_is_not_the_blob(store: FilesystemStore) -> None:
    gate = Gate()
    gate.open.set()
    async with fetching(store, gate) as (fetcher, records):
        wanted = gate.add(b"all of it")
        await follow(fetcher, wanted)
        await idle(fetcher)
        path = store.folder / "sha256" / wanted.digest.hex[:2] / wanted.digest.hex
        os.truncate(path, 3)
        await follow(fetcher, wanted)
        await idle(fetcher)
        assert path.read_bytes() == b"all of it"
        assert [record.outcome for record in records] == ["kept"] * 2


async def test_a_holder_that_is_named_later_is_asked_by_what_runs_already(store: FilesystemStore) -> None:
    gate, copies = Gate(gone={STORE}), Hearsay()
    gate.open.set()
    async with fetching(store, gate, copies) as (fetcher, _):
        wanted = gate.add(b"pushed again elsewhere")
        first = asyncio.create_task(follow(fetcher, wanted))
        await asyncio.sleep(0.3)
        await follow(fetcher, replace(wanted, holders=(OTHER,)))
        await first
        assert gate.asked[-1] == (OTHER, wanted.digest)
