"""Holders that lie, break off and dawdle at random, beside one that is right: every byte that is shown is right."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from consensus import parts
from consensus.names import Digest, StoreId
from consensus.parts import PartsHash
from node.blobs.arrivals import FilesystemArrivals
from node.blobs.filesystem import FilesystemStore
from replication import schedule
from replication.directory import PeerUnreachable
from replication.fetcher import Fetcher
from replication.peers import BlobStream
from replication.sources import TransferError, Wanted

KIB = 1024
PIECE = 64 * KIB
STORES = [StoreId(f"{number}" * 32) for number in range(4)]
HONEST = STORES[-1]


@pytest.fixture(autouse=True)
def small_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_BYTES", PIECE)
    monkeypatch.setattr(parts, "MIN_PARTED_BYTES", PIECE + 1)
    monkeypatch.setattr(schedule, "SILENCE_SECONDS", 0.05)
    monkeypatch.setattr(schedule, "MOST_BACKLOG_SECONDS", 0.1)
    monkeypatch.setattr(schedule, "STALL_SECONDS", 0.5)
    monkeypatch.setattr(schedule, "ANSWER_SECONDS", 0.5)


@dataclass
class Crowd:
    """A Source in which every store but the honest ones does as chance has it."""

    content: bytes
    chance: random.Random
    honest: set[StoreId]
    asked: list[StoreId] = field(default_factory=list)

    @asynccontextmanager
    async def blob(self, store: StoreId, digest: Digest, start: int, stop: int) -> AsyncIterator[BlobStream]:
        self.asked.append(store)
        await asyncio.sleep(self.chance.uniform(0, 0.004))
        yield BlobStream(len(self.content), self._give(store, start, stop))

    def distance(self, store: StoreId) -> float:
        return int(store[0]) / 1000

    async def _give(self, store: StoreId, start: int, stop: int) -> AsyncIterator[bytes]:
        given = bytearray(self.content[start:stop])
        end = len(given)
        if store not in self.honest:
            match self.chance.choice(["lie", "lie", "lie and end", "end", "lie and stall", "stall", "nothing"]):
                case "lie":
                    given[self.chance.randrange(end)] ^= 1
                case "lie and end" | "lie and stall" as what:
                    given[self.chance.randrange(end)] ^= 1
                    end = self.chance.randrange(end)
                    if what == "lie and stall":
                        end = -end
                case "end":
                    end = self.chance.randrange(end)
                case "stall":
                    end = -self.chance.randrange(end)
        position = 0
        while position < abs(end):
            length = self.chance.choice([100, 5000, 40_000])
            yield bytes(given[position : min(position + length, abs(end))])
            position += length
            await asyncio.sleep(self.chance.choice([0, 0, 0.001]))
        if end < 0:
            await asyncio.Event().wait()
        if end < len(given):
            raise PeerUnreachable("on purpose")


async def look(fetcher: Fetcher, arrivals: FilesystemArrivals, wanted: Wanted, content: bytes, *, start: int) -> bool:
    """Follows some of the blob, and compares all that is shown at the moment when it is; whether all of it came."""
    following = fetcher.follow(wanted, start, len(content))
    reader, shown = None, start
    try:
        async for limit in following.updates():
            assert limit >= shown
            if reader is None and following.transfer.arrival:
                reader = await arrivals.reader(following.transfer.arrival.arrival_id, len(content))
            if limit > shown:
                assert reader
                assert await reader.read(shown, limit - shown) == content[shown:limit]
            shown = limit
        if reader:  # as a client that is slow: what has been shown has not changed since
            assert await reader.read(start, len(content) - start) == content[start:]
    except TransferError:
        if reader and shown > start:
            assert await reader.read(start, shown - start) == content[start:shown]
        return False
    finally:
        following.leave()
        if reader:
            reader.close()
    return True


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("honest", [1, 0])
async def test_every_byte_that_is_shown_is_right(tmp_path: Path, seed: int, honest: int) -> None:
    chance = random.Random(seed)
    size = chance.choice([5, PIECE, PIECE + 1, 3 * PIECE, 9 * PIECE + 77])
    content = hashlib.shake_128(b"%d" % seed).digest(size)
    running = PartsHash()
    running.update(content)
    digest = Digest("sha256", hashlib.sha256(content).hexdigest())
    wanted = Wanted(digest, size, tuple(STORES), running.digests(size))
    store = FilesystemStore.at(tmp_path / "blobs", store_id=StoreId("f" * 32), free_bytes=0)
    arrivals = FilesystemArrivals.open(tmp_path / "arrivals", store, incarnation="1")
    crowd = Crowd(content, chance, {HONEST} if honest else set())
    try:
        async with asyncio.timeout(60), Fetcher(crowd, store, arrivals, observe=lambda _: None) as fetcher:
            starts = [0, *(chance.randrange(size) for _ in range(3))]
            came = await asyncio.gather(*(look(fetcher, arrivals, wanted, content, start=start) for start in starts))
            while fetcher.status.transfers:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            held = [each async for each in store.digests()]
            if honest:
                assert all(came)
                assert held == [digest]
            if held:
                reader = await store.open(digest)
                assert await reader.read(0, size) == content
                reader.close()
    finally:
        store.close()
