"""What a replicator finds in its own store, and when it tells of it."""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from consensus.commands import BlobFact, RecordBlobs
from consensus.names import Digest, RepositoryName, StoreId
from consensus.proposer import Proposer
from consensus.replica import Replica
from consensus.solo import SoloLog
from consensus.state import State
from node.blobs.filesystem import FilesystemStore
from node.inventory import Inventory
from node.replicator import inventories
from node.replicator.inventories import Inventories

STORE = StoreId("a" * 32)


def put(blobs: FilesystemStore, content: bytes) -> Digest:
    digest = Digest("sha256", hashlib.sha256(content).hexdigest())
    source = blobs.folder.parent / "new"
    source.write_bytes(content)
    blobs.adopt(source, digest, len(content))
    return digest


@asynccontextmanager
async def looking(folder: Path) -> AsyncIterator[tuple[Inventories, FilesystemStore, Proposer]]:
    """An inventory of a new store that is walked all the time."""
    (folder / "state").mkdir()
    log = SoloLog.open(folder / "wal")
    blobs = FilesystemStore.at(folder / "blobs", store_id=STORE, free_bytes=0)
    (folder / "inventory").mkdir()
    with closing(State.open(folder / "state", "c" * 32)) as state, closing(blobs):
        async with Replica.open(log, state) as replica:
            made = Inventories.open(folder / "inventory" / "1.sqlite", blobs, ThreadPoolExecutor(1))
            walking = asyncio.create_task(made.walk(folder / "state"))
            try:
                yield made, blobs, Proposer(replica, "test")
            finally:
                walking.cancel()
                await asyncio.wait([walking])
                made.close()
        await log.close()


async def told(made: Inventories, *digests: Digest) -> None:
    """Until exactly these are told of."""

    def own() -> set[bytes]:
        return set(made._inventory.own(b"", 100_000))

    async with asyncio.timeout(20):
        while await made._run(own) != {digest.packed for digest in digests}:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def restless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventories, "WALK_SECONDS", 0.02)
    monkeypatch.setattr(inventories, "WALK_REST", 0.0)
    monkeypatch.setattr(inventories, "WALK_BLOBS", 3)


async def test_what_the_log_does_not_say_is_told(tmp_path: Path) -> None:
    async with looking(tmp_path) as (made, blobs, proposer):
        copies = [put(blobs, b"copy %d" % number) for number in range(10)]
        await told(made, *copies)
        pushed = put(blobs, b"pushed")
        await told(made, *copies, pushed)  # as long as the log does not say so
        fact = BlobFact(pushed, 6)
        await proposer.propose(RecordBlobs(RepositoryName("team/app"), STORE, (fact,)))
        await proposer.propose(RecordBlobs(RepositoryName("team/app"), StoreId("b" * 32), (BlobFact(copies[0], 6),)))
        await told(made, *copies)
        await blobs.delete(copies[4])
        await told(made, *copies[:4], *copies[5:])
        made.kept(copies[4])  # which is not so
        await told(made, *copies[:4], *copies[5:])
        put(blobs, b"copy 4")
        await told(made, *copies)


async def test_a_walk_goes_on_after_what_went_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventories, "MOST_PAUSE_SECONDS", 0.02)
    async with looking(tmp_path) as (made, blobs, _):
        copy = put(blobs, b"copy")
        await told(made, copy)
        folder = blobs.folder / "sha512" / "00"
        folder.rename(folder.with_name("away"))
        put(blobs, b"another")
        await asyncio.sleep(0.2)
        folder.with_name("away").rename(folder)
        await told(made, copy, put(blobs, b"another"))


async def test_who_cannot_read_the_inventory_knows_of_no_copies(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with looking(tmp_path) as (made, blobs, _):
        copy = put(blobs, b"copy")
        await told(made, copy)
        made._reader.close()
        assert made.holders(copy) == ()
        assert "inventory_failed" in caplog.text

        def fail(self: Inventory, digest: bytes) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        monkeypatch.setattr(Inventory, "kept", fail)
        made.kept(copy)
        await made._run(lambda: None)
        assert "disk is full" in caplog.records[-1].reason  # type: ignore[attr-defined]
