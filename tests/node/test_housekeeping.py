import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from consensus.names import StoreId
from node import telemetry
from node.admin import Health
from node.blobs.memory import MemoryStore, MemoryUploads
from node.config import Config, Limits, Node
from node.gateway.housekeeping import keep_house
from node.launch import Launch
from node.rpc import KeeperClient


@asynccontextmanager
async def house(data: Path) -> AsyncIterator[MemoryUploads]:
    config = Config(node=Node(data=str(data)), limits=Limits(upload_idle_seconds=0.2))
    launch = Launch(name="g", config=config, runtime=str(data), incarnation="0", started_ms=0, ready_descriptor=-1)
    uploads = MemoryUploads(MemoryStore(StoreId("0" * 32)))
    keeper = KeeperClient(launch.keeper_socket)
    keeping = asyncio.create_task(keep_house(uploads, Health(launch, keeper)))
    try:
        async with asyncio.timeout(20):
            yield uploads
    finally:
        keeping.cancel()
        await asyncio.wait([keeping])
        await keeper.close()


async def test_idle_uploads_are_removed_and_gauges_kept(tmp_path: Path) -> None:
    async with house(tmp_path) as uploads:
        await (await uploads.begin()).suspend()
        while await uploads.count():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        [sample] = next(iter(telemetry.metrics().free_bytes.collect())).samples
        assert sample.value > 0


async def test_what_the_disk_refuses_is_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with house(tmp_path / "missing"):
        while caplog.text.count("housekeeping_failed") < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
