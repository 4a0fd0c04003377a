"""What a replicator finds in its own store, and when it tells of it."""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
import ssl
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path

import msgspec
import pytest

from consensus.commands import BlobFact, RecordBlobs
from consensus.names import Digest, RepositoryName, StoreId
from consensus.proposer import Proposer
from consensus.replica import Replica
from consensus.solo import SoloLog
from consensus.state import State
from node.blobs.filesystem import FilesystemStore
from node.config import Config
from node.inventory import Inventory, inventory_file, page_of
from node.launch import Launch
from node.replicator import inventories
from node.replicator.inventories import Inventories, exchanging
from replication.peers import Peers

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
    (folder / "state").mkdir(parents=True)
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


async def test_an_inventory_that_cannot_be_opened_is_opened_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inventories, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(inventories, "MOST_PAUSE_SECONDS", 0.03)
    async with looking(tmp_path / "node") as (_, blobs, _):
        launch = launch_in(tmp_path / "node")
        folder = tmp_path / "node" / "inventory"
        folder.rename(tmp_path / "away")
        folder.write_text("in the way")
        copy = put(blobs, b"copy")
        async with nobody_else() as peers, exchanging(launch, blobs, peers) as copies:
            await asyncio.sleep(0.3)
            copies.kept(copy)
            assert copies.holders(copy) == ()
            assert [each.message for each in caplog.records] == ["inventory_failed"]
            folder.unlink()
            async with asyncio.timeout(20):
                while not has_told(inventory_file(launch.config, "2"), copy):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            with closing(sqlite3.connect(inventory_file(launch.config, "2"))) as other:
                other.execute("INSERT INTO members VALUES (1, 'us', ?, '', 0, 0, 0, 0, 0)", ("b" * 32,))
                other.execute("INSERT INTO copies VALUES (?, 1, 0)", (copy.packed,))
                other.commit()
            assert copies.holders(copy) == ("b" * 32,)
        assert [each.message for each in caplog.records] == ["inventory_failed"]


async def test_an_exchange_that_breaks_off_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def walk(self: Inventories, state: Path) -> None:
        raise RuntimeError("nobody expects this")

    monkeypatch.setattr(Inventories, "walk", walk)
    async with looking(tmp_path / "node") as (_, blobs, _), nobody_else() as peers:
        async with exchanging(launch_in(tmp_path / "node"), blobs, peers), asyncio.timeout(20):
            while not caplog.records:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert [each.message for each in caplog.records] == ["inventory_failed"]
        assert "nobody expects this" in caplog.text


@asynccontextmanager
async def nobody_else() -> AsyncIterator[Peers]:
    peers = Peers({}, "c" * 32, ssl.create_default_context())
    try:
        yield peers
    finally:
        await peers.close()


def launch_in(data: Path) -> Launch:
    config = msgspec.convert({"node": {"name": "eu", "data": str(data)}}, Config)
    return Launch(name="x", config=config, runtime="", incarnation="2", started_ms=0, ready_descriptor=-1)


def has_told(file: Path, digest: Digest) -> bool:
    with suppress(sqlite3.Error):
        return digest.packed in page_of(file, "", 0, 0).held
    return False


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
