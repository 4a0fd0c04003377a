import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import msgspec
import pytest

from consensus.errors import LogUnavailable
from consensus.names import StoreId
from consensus.replica import Replica
from consensus.solo import SoloLog
from consensus.state import State
from consensus.views import Views
from node.admin import BAD_NEWS_SECONDS, OK, Health, Storage, create_admin
from node.blobs.memory import MemoryStore, MemoryUploads
from node.config import Cluster, Config, Limits, Node
from node.counter import Counter
from node.launch import Launch
from node.rpc import KeeperClient, KeeperStatus, serve_keeper


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
        assert answer.json() == {
            "registry": "does not serve yet",
            "state": "cannot be read",
            "keeper": "does not answer",
            "store": "ok",
        }
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
            assert (answer.status_code, answer.json()["registry"]) == (503, "does not serve yet")
            health.registry = OK
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


def standing(**changes: object) -> KeeperStatus:
    known = {"pid": 1, "applied": 5, "commit": 7, "first": 1, "term": 2, "steward": "us-1", "current": True}
    return KeeperStatus(**{**known, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("keeper", "ready", "cluster"),
    [
        (standing(), True, "ok"),
        (standing(current=False, steward=None), False, "no steward: a majority of the members cannot be reached"),
        (
            standing(current=False),
            False,
            "at entry 5, not sure that this is all: us-1, the steward, does not say",
        ),
        (None, False, "not known"),
    ],
)
async def test_a_member_says_how_it_stands_in_its_cluster(
    tmp_path: Path, keeper: KeeperStatus | None, ready: bool, cluster: str
) -> None:
    launch = launch_in(tmp_path)
    members = Cluster(id="c" * 32, members=("a=127.0.0.1:1",))
    launch = msgspec.structs.replace(launch, config=msgspec.structs.replace(launch.config, cluster=members))
    health = Health(launch, Answering(keeper))
    health.registry = OK
    health.storage = open_storage(tmp_path)
    try:
        found, checks = await health.checks()
        assert (found, checks["cluster"]) == (ready, cluster)
        assert checks["keeper"] == ("ok" if keeper else "does not answer")
    finally:
        health.storage.views.close()


async def test_a_node_alone_that_still_reads_its_log_is_not_ready(tmp_path: Path) -> None:
    health = Health(launch_in(tmp_path), Answering(standing(current=False)))
    ready, checks = await health.checks()
    assert (ready, checks["keeper"]) == (False, "still reads its log: at entry 5 of 7")
    assert "cluster" not in checks


async def test_no_gateway_denies_for_long_that_the_node_is_ready(tmp_path: Path) -> None:
    """Each of them asks the keeper for itself."""
    keeper = Answering(standing(current=False))
    health = Health(launch_in(tmp_path), keeper)
    assert await health.keeper() == standing(current=False)
    keeper.answer = standing()
    await asyncio.sleep(2 * BAD_NEWS_SECONDS)
    assert await health.keeper() == standing()
    keeper.answer = standing(current=False)
    assert await health.keeper() == standing()


class Answering(KeeperClient):
    """A connection to a keeper that says this."""

    def __init__(self, answer: KeeperStatus | None) -> None:
        self.answer = answer

    async def status(self) -> KeeperStatus:
        if self.answer is None:
            raise LogUnavailable("away")
        return self.answer
