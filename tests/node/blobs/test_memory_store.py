"""The stores of simulations keep the promises of the real ones."""

import pytest

from node.blobs.memory import MemoryStore, MemoryUploads
from replication.stores import StoreFull
from tests.node.blobs.parts_suite import PartsSuite
from tests.node.blobs.suite import STORE_ID, MakeStores, Stores, StoreSuite, digest_of


def memory_stores() -> Stores:
    store = MemoryStore(STORE_ID)
    uploads = MemoryUploads(store)
    return Stores(store, uploads, uploads)


class TestMemoryStore(PartsSuite, StoreSuite):
    @pytest.fixture
    def make(self) -> MakeStores:
        return memory_stores


async def test_room_is_bounded_and_comes_back() -> None:
    store = MemoryStore(STORE_ID, capacity_bytes=10)
    uploads = MemoryUploads(store)
    first = await uploads.begin()
    await first.write(b"123456")
    second = await uploads.begin()
    with pytest.raises(StoreFull):
        await second.write(b"12345")
    assert second.offset == 0
    await second.write(b"1234")
    await second.abort()
    await first.commit(digest_of(b"123456"))
    again = await uploads.begin()
    await again.write(b"1234")
    with pytest.raises(StoreFull):
        await again.write(b"5")
    await store.delete(digest_of(b"123456"))
    await again.write(b"567890")
    assert (await again.commit(digest_of(b"1234567890"))).size_bytes == 10
