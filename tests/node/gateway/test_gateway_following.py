"""A blob on its way as one client reads it, while its arrival ends, is replaced, or becomes the blob: a replicator says
what a test has it say, over a real socket, and the files are real ones."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import grpc
import pytest

from consensus import entropy
from consensus.names import Digest
from node.blobs.arrivals import FilesystemArrivals
from node.blobs.filesystem import FilesystemStore
from node.gateway.following import Follower
from node.replicator.rpc import SERVICE, ReplicatorClient
from node.rpc import pack, serving
from replication.sources import TransferEnded, Wanted
from tests.node.gateway.rig import STORE_ID, digest_of
from tests.node.gateway.test_gateway_fetching import noise

SIZE = 3000
Message = tuple[object, ...]


class Setting:
    """`replicator` says what is put there to whoever follows at the moment; after None it is another process."""

    def __init__(self, blobs: FilesystemStore, arrivals: Path, content: bytes) -> None:
        self.replicator = asyncio.Queue[Message | None]()
        self.content = content
        self._blobs = blobs
        self._arrivals = arrivals

    def arrives(self, content: bytes) -> str:
        """An arrival with these bytes in it."""
        name = entropy.new_uuid()
        (self._arrivals / name).mkdir()
        (self._arrivals / name / "data").write_bytes(content)
        return name

    def becomes_blob(self, arrival_id: str) -> None:
        self._blobs.adopt(self._arrivals / arrival_id / "data", Digest.parse(digest_of(self.content)), SIZE)
        self.ends(arrival_id)

    def ends(self, arrival_id: str) -> None:
        shutil.rmtree(self._arrivals / arrival_id)

    def says(self, *messages: Message | None) -> None:
        for message in messages:
            self.replicator.put_nowait(message)

    async def follow(self, request: bytes, _: Any) -> AsyncIterator[bytes]:
        yield pack(("wait",))
        while message := await self.replicator.get():
            yield pack(message)


@asynccontextmanager
async def following(blobs: Path, folder: Path, seed: str) -> AsyncIterator[tuple[Setting, Follower]]:
    """Somebody reads a blob that is not here, from its begin."""
    (folder / "arrivals").mkdir()
    content = noise(SIZE, seed)
    wanted = Wanted(Digest.parse(digest_of(content)), SIZE, ())
    with closing(FilesystemStore.at(blobs, store_id=STORE_ID, free_bytes=0)) as store:
        setting = Setting(store, folder / "arrivals", content)
        arrivals = FilesystemArrivals.open(folder / "arrivals", store, incarnation="test")
        method = grpc.unary_stream_rpc_method_handler(setting.follow)
        handler = grpc.method_handlers_generic_handler(SERVICE, {"Follow": method})
        async with asyncio.timeout(20), serving(handler, folder / "socket"):
            client = ReplicatorClient(folder / "socket")
            with closing(Follower(client, store, arrivals, wanted, start=0, stop=SIZE)) as follower:
                yield setting, follower
            await client.close()


async def at(follower: Follower, arrival_id: str) -> None:
    """Until it has heard of the arrival."""
    while follower._arrival_id != arrival_id:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("again", [False, True])
async def test_bytes_of_an_arrival_and_of_a_blob_that_came_otherwise_never_make_one_answer(
    blobs: Path, tmp_path: Path, *, again: bool
) -> None:
    async with following(blobs, tmp_path, f"otherwise {again}") as (setting, follower):
        wrong = noise(SIZE, "wrong")
        first, other = setting.arrives(wrong), setting.arrives(setting.content)
        setting.says(("arrival", first, 1000))
        assert await follower.read(0, 2000) == wrong[:1000]
        setting.becomes_blob(other)
        setting.says(*([None] if again else []), ("whole", "" if again else other))
        with pytest.raises(TransferEnded, match="has come in another way meanwhile"):
            await follower.read(1000, 2000)


async def test_bytes_of_two_arrivals_never_make_one_answer(blobs: Path, tmp_path: Path) -> None:
    async with following(blobs, tmp_path, "two") as (setting, follower):
        wrong = noise(SIZE, "wrong")
        first, other = setting.arrives(wrong), setting.arrives(setting.content)
        setting.says(("arrival", first, 1000))
        assert await follower.read(0, 2000) == wrong[:1000]
        setting.says(None, ("arrival", other, 2000))
        with pytest.raises(TransferEnded, match="what had come of the blob is lost"):
            await follower.read(1000, 2000)


async def test_an_arrival_that_becomes_the_blob_is_read_on(blobs: Path, tmp_path: Path) -> None:
    async with following(blobs, tmp_path, "becomes") as (setting, follower):
        arrival = setting.arrives(setting.content)
        setting.says(("arrival", arrival, 1000))
        received = await follower.read(0, 2000)
        setting.becomes_blob(arrival)
        setting.says(None, ("whole", ""))
        assert received + await follower.read(len(received), SIZE) == setting.content


async def test_of_what_nobody_has_read_another_arrival_takes_the_place_from_its_begin(
    blobs: Path, tmp_path: Path
) -> None:
    async with following(blobs, tmp_path, "place") as (setting, follower):
        first, other = setting.arrives(noise(SIZE, "wrong")), setting.arrives(setting.content)
        setting.says(("arrival", first, 1000))
        await follower.ready()
        setting.says(None, ("arrival", other, 0))
        await at(follower, other)
        reading = asyncio.create_task(follower.read(0, SIZE))
        await asyncio.sleep(0)
        assert not reading.done()
        setting.says(("limit", 500))
        assert await reading == setting.content[:500]


@pytest.mark.parametrize("known", [False, True])
async def test_of_an_arrival_that_has_ended_meanwhile_nothing_is_read(
    blobs: Path, tmp_path: Path, *, known: bool
) -> None:
    async with following(blobs, tmp_path, f"ended {known}") as (setting, follower):
        if known:
            setting.says(("arrival", setting.arrives(noise(SIZE, "wrong")), 1000))
            await follower.ready()
        ended, whole = setting.arrives(setting.content), setting.arrives(setting.content)
        setting.ends(ended)
        setting.says(("arrival", ended, 700), ("limit", 800))
        await at(follower, ended)
        reading = asyncio.create_task(follower.read(0, SIZE))
        await asyncio.wait([reading], timeout=0.2)
        assert not reading.done()
        setting.becomes_blob(whole)
        setting.says(("whole", whole))
        assert await reading == setting.content


async def test_an_arrival_that_was_the_blob_before_it_could_be_opened_is_read_as_that(
    blobs: Path, tmp_path: Path
) -> None:
    async with following(blobs, tmp_path, "soon") as (setting, follower):
        arrival = setting.arrives(setting.content)
        setting.becomes_blob(arrival)
        setting.says(("arrival", arrival, 0))
        await at(follower, arrival)
        setting.says(("whole", arrival))
        assert await follower.read(0, SIZE) == setting.content


async def test_who_has_read_nothing_yet_reads_the_blob_however_it_came(blobs: Path, tmp_path: Path) -> None:
    async with following(blobs, tmp_path, "however") as (setting, follower):
        wrong, other = setting.arrives(noise(SIZE, "wrong")), setting.arrives(setting.content)
        setting.says(("arrival", wrong, 0))
        await at(follower, wrong)
        setting.becomes_blob(other)
        setting.says(("whole", ""))
        assert await follower.read(0, SIZE) == setting.content
