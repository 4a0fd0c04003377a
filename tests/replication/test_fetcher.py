"""Bounds and turns among many transfers. The source gives nothing until it is told to; the rest is real."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from consensus.names import Digest, StoreId
from node.blobs.arrivals import FilesystemArrivals
from node.blobs.filesystem import FilesystemStore
from replication import fetcher as fetchers
from replication.directory import BlobNotHeld, PeerUnreachable
from replication.fetcher import Fetcher, TransferRecord
from replication.sources import BlobNowhere, HoldersUnreachable, TransferFalse, TransfersBusy, Wanted
from replication.transfer import Transfer

STORE, OTHER = StoreId("1" * 32), StoreId("2" * 32)


@dataclass
class Gate:
    """A Source that has some blobs and gives them once `open` is set. Of its stores some lie, lack all or are gone."""

    contents: dict[Digest, bytes] = field(default_factory=dict)
    open: asyncio.Event = field(default_factory=asyncio.Event)
    lies: set[StoreId] = field(default_factory=set)
    lacks: set[StoreId] = field(default_factory=set)
    gone: set[StoreId] = field(default_factory=set)
    asked: list[tuple[StoreId, Digest]] = field(default_factory=list)

    def add(self, content: bytes, *holders: StoreId) -> Wanted:
        digest = Digest("sha256", hashlib.sha256(content).hexdigest())
        self.contents[digest] = content
        return Wanted(digest, len(content), holders or (STORE,))

    @asynccontextmanager
    async def blob(self, store: StoreId, digest: Digest, start: int, stop: int) -> AsyncIterator[Gate.Part]:
        self.asked.append((store, digest))
        await self.open.wait()
        if store in self.gone:
            raise PeerUnreachable(store)
        if digest not in self.contents or store in self.lacks:
            raise BlobNotHeld(store)
        content = self.contents[digest]
        given = bytes(len(content)) if store in self.lies else content
        yield Gate.Part(len(content), _once(given[start:stop]))

    def distance(self, store: StoreId) -> float:
        return int(store[:1]) / 100

    @dataclass(frozen=True)
    class Part:
        size_bytes: int
        chunks: AsyncIterator[bytes]


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content


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
        with pytest.raises(TransfersBusy, match="3 blobs"):  # it goes on, though nobody waits for it any more
            await follow(fetcher, wanted[3])
        gate.open.set()
        await asyncio.gather(*following, return_exceptions=True)
        while fetcher.status.transfers:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        await follow(fetcher, wanted[3])
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


async def test_of_two_givers_the_one_that_lied_is_found(
    store: FilesystemStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("replication.pieces.PIECE_BYTES", 1000)
    gate = Gate(lies={STORE})
    gate.open.set()
    async with fetching(store, gate) as (fetcher, records):
        wanted = gate.add(bytes(range(256)) * 400, STORE, OTHER)
        outcomes = []
        for _ in range(4):
            try:
                await follow(fetcher, wanted)
            except TransferFalse:
                outcomes.append(False)
            else:
                outcomes.append(True)
                break
        assert outcomes[-1]
        assert await store.stat(wanted.digest) == wanted.size_bytes
        assert {record.outcome for record in records} == {"TransferFalse", "kept"}
        alone = gate.add(b"x" * 70_000)
        with pytest.raises(TransferFalse):
            await follow(fetcher, alone)
        with pytest.raises(HoldersUnreachable, match="wrong bytes"):
            await follow(fetcher, alone)


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
