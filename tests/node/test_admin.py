import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from consensus.names import StoreId
from consensus.replica import Replica
from consensus.solo import SoloLog
from consensus.state import State
from consensus.views import Views
from node.admin import Health, Storage, create_admin
from node.blobs.memory import MemoryStore, MemoryUploads
from node.config import Config, Limits, Node
from node.counter import Counter
from node.launch import Launch
from node.rpc import KeeperClient, serve_keeper


def launch_in(folder: Path, *, free_bytes: int = 0) -> Launch:
    config = Config(node=Node(region="eu", data=str(folder)), limits=Limits(free_bytes=free_bytes))
    return Launch(
        name="gateway-0", config=config, runtime=str(folder), incarnation="0", started_ms=0, ready_descriptor=-1
    )


@asynccontextmanager
async def asking(launch: Launch) -> AsyncIterator[tuple[Health, httpx.AsyncClient]]:
    """The application of a gateway whose keeper is away."""
    keeper = KeeperClient(launch.keeper_socket)
    health = Health(launch, keeper)
    transport = httpx.ASGITransport(create_admin(health))
    async with httpx.AsyncClient(transport=transport, base_url="http://admin") as client:
        yield health, client
    await keeper.close()


def open_storage(folder: Path) -> Storage:
    State.open(folder / "state", "c" * 32).close()
    return Storage(Views(folder / "state"), MemoryUploads(MemoryStore(StoreId("0" * 32))))


async def test_a_node_without_state_and_keeper_lives_and_is_not_ready(tmp_path: Path) -> None:
    async with asking(launch_in(tmp_path)) as (_, client):
        assert (await client.get("/livez")).status_code == 200
        answer = await client.get("/readyz")
        assert answer.status_code == 503
        assert answer.json() == {"state": "cannot be read", "keeper": "does not answer", "store": "ok"}
        report = (await client.get("/meridian/v1/status")).json()
        assert (report["region"], report["applied"], report["keeper_pid"], report["uploads"]) == (
            "eu",
            None,
            None,
            None,
        )


async def test_a_node_with_state_and_keeper_is_ready_even_if_its_disk_is_full(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    launch = launch_in(tmp_path, free_bytes=2**62)
    ready = asyncio.Event()
    log = SoloLog.open(tmp_path / "wal")
    storage = open_storage(tmp_path)
    state = State.open(tmp_path / "state", "c" * 32)
    try:
        async with (
            Replica.open(log, state) as replica,
            serve_keeper(counter := Counter(replica), launch.keeper_socket),
            counter.kept_current(ready.set),
            asking(launch) as (health, client),
        ):
            health.storage = storage
            await ready.wait()
            answer = await client.get("/readyz")
            assert answer.status_code == 200
            assert "uploads are refused" in answer.json()["store"]
            report = (await client.get("/meridian/v1/status")).json()
            assert (report["applied"], report["commit"], report["uploads"]) == (0, 0, 0)
            assert (report["term"], report["steward"]) == (1, "solo")
            assert report["keeper_pid"] > 0
            metrics = await client.get("/metrics")
            assert metrics.status_code == 200
            assert metrics.headers["content-type"].startswith("text/plain")
    finally:
        storage.views.close()
        state.close()
        await log.close()


async def test_a_state_that_fails_is_said(tmp_path: Path) -> None:
    async with asking(launch_in(tmp_path)) as (health, client):
        health.storage = open_storage(tmp_path)
        health.storage.views.close()
        assert (await client.get("/readyz")).json()["state"] == "cannot be read"


async def test_other_paths_and_methods(tmp_path: Path) -> None:
    async with asking(launch_in(tmp_path)) as (_, client):
        assert (await client.get("/")).status_code == 404
        assert (await client.post("/livez")).status_code == 405
