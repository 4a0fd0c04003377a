"""Uploads that are read while they grow, as blobs that come from other nodes are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from node.blobs.filesystem import FilesystemStore
from node.blobs.uploads import FilesystemUploads
from replication.stores import DigestMismatch
from tests.node.blobs.suite import STORE_ID, digest_of, held, noise


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FilesystemStore]:
    store = FilesystemStore.at(tmp_path / "blobs", store_id=STORE_ID, free_bytes=0)
    yield store
    store.close()


async def test_what_was_flushed_can_be_read(tmp_path: Path, store: FilesystemStore) -> None:
    content = noise(3_000_000)
    arrival = await FilesystemUploads.open(tmp_path / "arrivals", store, incarnation="1").begin()
    reader = arrival.reader(len(content))
    assert await arrival.flush() == 0
    for start in range(0, len(content), 250_000):
        end = start + 250_000
        await arrival.write(content[start:end])
        assert await arrival.flush() == end
        assert await reader.read(start, 250_000) == content[start:end]
    assert reader.size_bytes == len(content)
    digest = digest_of(content)
    await arrival.commit(digest)
    await arrival.abort()
    assert await reader.read(5, 10) == content[5:15]
    await store.delete(digest)
    assert await reader.read(len(content) - 3, 10) == content[-3:]
    reader.close()


async def test_a_reader_outlives_an_arrival_that_was_wrong(tmp_path: Path, store: FilesystemStore) -> None:
    arrival = await FilesystemUploads.open(tmp_path / "arrivals", store, incarnation="1").begin()
    reader = arrival.reader(5)
    await arrival.write(b"wrong")
    assert await arrival.flush() == 5
    with pytest.raises(DigestMismatch):
        await arrival.commit(digest_of(b"right"))
    await arrival.abort()
    assert await reader.read(0, 5) == b"wrong"
    reader.close()
    assert not await held(store)
    assert not list((tmp_path / "arrivals").iterdir())
