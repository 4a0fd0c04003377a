"""Blobs that pass through: how long a holder is waited for, and that a client may take its time."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field

import pytest

from consensus import parts
from consensus.names import Digest, StoreId
from consensus.parts import PartsHash
from replication import passage
from replication.fetcher import TransferRecord
from replication.passage import Passages
from replication.peers import BlobStream
from replication.sources import HoldersUnreachable, Wanted

PIECE = 64 * 1024
CONTENT = hashlib.shake_128(b"passage").digest(6 * PIECE + 77)
NEAR, FAR = StoreId("1" * 32), StoreId("2" * 32)
STALL_SECONDS = 0.4


@pytest.fixture(autouse=True)
def small_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_BYTES", PIECE)
    monkeypatch.setattr(parts, "MIN_PARTED_BYTES", PIECE + 1)
    monkeypatch.setattr(passage, "STALL_SECONDS", STALL_SECONDS)


@dataclass
class Holders:
    """A Source of CONTENT. Of its stores some give `burst` bytes and then a byte now and then, or not even a head."""

    drips: set[StoreId] = field(default_factory=set)
    headless: set[StoreId] = field(default_factory=set)
    burst: int = 0
    asked: list[StoreId] = field(default_factory=list)
    let_go: list[StoreId] = field(default_factory=list)

    @asynccontextmanager
    async def blob(self, store: StoreId, digest: Digest, start: int, stop: int) -> AsyncIterator[BlobStream]:
        self.asked.append(store)
        try:
            if store in self.headless:
                await asyncio.Event().wait()
            yield BlobStream(len(CONTENT), self._give(store, start, stop))
        finally:
            self.let_go.append(store)

    def distance(self, store: StoreId) -> float:
        return int(store[:1]) / 100

    async def _give(self, store: StoreId, start: int, stop: int) -> AsyncIterator[bytes]:
        if store in self.drips:
            yield CONTENT[start : min(start + self.burst, stop)]
            for position in range(start + self.burst, stop):
                await asyncio.sleep(STALL_SECONDS / 4)
                yield CONTENT[position : position + 1]
        else:
            for position in range(start, stop, PIECE // 2):
                await asyncio.sleep(0)  # as from a socket: a deadline that is over would end it
                yield CONTENT[position : min(position + PIECE // 2, stop)]


@asynccontextmanager
async def passing(holders: Holders) -> AsyncIterator[tuple[Passages, Wanted, list[TransferRecord]]]:
    running, records = PartsHash(), list[TransferRecord]()
    running.update(CONTENT)
    digest = Digest("sha256", hashlib.sha256(CONTENT).hexdigest())
    wanted = Wanted(digest, len(CONTENT), (NEAR, FAR), running.digests(len(CONTENT)))
    passages = Passages(holders, observe=records.append)
    async with asyncio.timeout(20):
        yield passages, wanted, records
        await passages.close()
    assert holders.let_go == holders.asked


async def pull(passages: Passages, wanted: Wanted, pause: float = 0.0) -> bytes:
    """All of it, by a client that takes a pause before each part."""
    received = b""
    with closing(await passages.open(wanted, 0, wanted.size_bytes)) as reader:
        while len(received) < wanted.size_bytes:
            await asyncio.sleep(pause)
            received += await reader.read(len(received), PIECE)
    return received


@pytest.mark.parametrize("burst", [0, 1, 2 * PIECE + 5])
async def test_a_holder_that_drips_is_left_for_the_next(burst: int) -> None:
    holders = Holders(drips={NEAR}, burst=burst)
    async with passing(holders) as (passages, wanted, records):
        assert await pull(passages, wanted) == CONTENT
        assert holders.asked == [NEAR, FAR]
    assert [record.outcome for record in records] == ["passed"]


async def test_a_holder_whose_head_does_not_come_is_left_for_the_next() -> None:
    holders = Holders(headless={NEAR})
    async with passing(holders) as (passages, wanted, _):
        assert await pull(passages, wanted) == CONTENT
        assert holders.asked == [NEAR, FAR]


async def test_where_all_holders_drip_the_passage_ends_and_makes_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passage, "MAX_PASSAGES", 1)
    holders = Holders(drips={NEAR}, headless={FAR}, burst=1)
    async with passing(holders) as (passages, wanted, records):
        with pytest.raises(HoldersUnreachable, match="stalls"):
            await pull(passages, wanted)
        holders.drips.clear()
        assert await pull(passages, wanted) == CONTENT
    assert [record.outcome for record in records] == ["HoldersUnreachable", "passed"]


async def test_that_a_client_takes_its_time_is_not_held_against_the_holder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passage, "STALL_RATE", 1e6)  # so that no part is worth a pause
    holders = Holders()
    async with passing(holders) as (passages, wanted, _):
        assert await pull(passages, wanted, pause=STALL_SECONDS * 1.5) == CONTENT
        assert holders.asked == [NEAR]
