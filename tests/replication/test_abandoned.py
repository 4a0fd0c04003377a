"""What clients asked for and left: it goes on where it is in nobody's way."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from consensus.names import Digest, StoreId
from node.blobs.filesystem import FilesystemStore
from replication import fetcher as fetchers
from replication.peers import BlobStream
from replication.sources import TransfersBusy
from tests.replication.test_fetcher import (
    PIECE,
    STORE,
    Gate,
    ended,
    fetching,
    follow,
    noise,
    small_parts,
    store,
    transfers,
)

__all__ = ["small_parts", "store"]


@dataclass
class Slow(Gate):
    """Its requests do not end before `closed` is set."""

    closed: asyncio.Event = field(default_factory=asyncio.Event)

    @asynccontextmanager
    async def blob(self, store: StoreId, digest: Digest, start: int, stop: int) -> AsyncIterator[BlobStream]:
        async with super().blob(store, digest, start, stop) as part:
            try:
                yield part
            finally:
                await self.closed.wait()


async def test_what_nobody_waits_for_any_more_is_in_nobodys_way(
    store: FilesystemStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetchers, "MAX_TRANSFERS", 3)
    gate = Gate()
    async with fetching(store, gate) as (fetcher, records):
        left = [gate.add(noise(2 * PIECE + number)) for number in range(10)]
        for each in left:
            fetcher.follow(each, 0, 1).leave()
            await asyncio.sleep(0)  # it has begun
        assert fetcher.status.transfers == 3 + fetchers.AHEAD_TRANSFERS
        assert [transfer.most_flows for transfer in transfers(fetcher)] == [16, 16, 0, 0, 0]
        following = [asyncio.create_task(follow(fetcher, gate.add(b"%d" % number))) for number in range(3)]
        await asyncio.sleep(0)
        assert [transfer.most_flows for transfer in transfers(fetcher)] == [1, 1, 16, 16, 16]
        with pytest.raises(TransfersBusy, match="3 blobs"):
            await follow(fetcher, gate.add(b"one more"))
        gate.open.set()
        await asyncio.gather(*following)
        await ended(fetcher)
        assert [await store.stat(each.digest) for each in left] == [each.size_bytes for each in left]
        assert Counter(record.outcome for record in records) == {"kept": 13, "suspended": 8}
        assert fetcher.report(1, ()).totals.failed == {"TransfersBusy": 1}


async def test_what_was_suspended_goes_on_where_it_was_even_at_once(
    store: FilesystemStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetchers, "MAX_TRANSFERS", 1)
    monkeypatch.setattr(fetchers, "AHEAD_TRANSFERS", 1)
    gate = Slow(stops={STORE: 1000})
    gate.open.set()
    async with fetching(store, gate) as (fetcher, _):
        ahead, wanted, other = (gate.add(noise(4 * PIECE + number)) for number in range(3))
        fetcher.ahead([ahead])
        first = fetcher.follow(wanted, 0, 1)
        while not first.transfer.arrival or first.transfer.arrival.pieces.received_bytes < 4000:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        first.leave()
        fetcher.follow(other, 0, 1).leave()
        assert wanted.digest not in fetcher._transfers
        gate.stops.clear()
        asyncio.get_running_loop().call_later(0.3, gate.closed.set)
        second = fetcher.follow(wanted, 0, wanted.size_bytes)  # while the first still lets go
        async for _ in second.updates():
            pass
        second.leave()
        assert second.transfer.resumed_bytes >= 4000
        assert second.transfer.arrival
        assert second.transfer.arrival.arrival_id == first.transfer.arrival.arrival_id
        await ended(fetcher)
        assert [await store.stat(each.digest) for each in (ahead, wanted, other)]
