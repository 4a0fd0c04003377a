"""Members of a cluster whose disks fill up, fail or rot: nothing acknowledged is lost, and who cannot say so stops."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from chaos.faults import Fault
from chaos.mount import fuse_missing
from chaos.regions import NAMES, Regions, regions
from consensus.clock import monotonic

pytestmark = [
    pytest.mark.skipif(bool(fuse_missing()), reason=f"FUSE: {fuse_missing()}"),
    pytest.mark.timeout(240),
]

PLAIN = "application/vnd.example.plain"
FULL = [Fault(operation, "ENOSPC") for operation in ("write", "create", "mkdir")]
REFUSALS = {503, 507}
AGAIN_SECONDS = 30.0


class Cluster:
    """Three regions on lossy file systems, and what they have acknowledged."""

    def __init__(self, made: Regions) -> None:
        self.regions = made
        self.acknowledged: dict[str, bytes] = {}
        self._numbers = itertools.count()

    def disk(self, name: str, *faults: Fault) -> None:
        self.regions.mounts[name].fail(faults)

    async def ask(self, name: str, method: str, path: str, content: bytes = b"") -> httpx.Response:
        address = self.regions.nodes[name].address
        async with httpx.AsyncClient(base_url=f"http://{address}", timeout=60, trust_env=False) as client:
            return await client.request(method, f"/v2/app/{path}", content=content, headers={"content-type": PLAIN})

    async def push(self, name: str) -> int:
        """The status of a push of something new; nothing but 201 and a refusal in OCI's form is an answer."""
        number = next(self._numbers)
        tag, content = f"t{number}", b"image %d" % number * 40
        answer = await self.ask(name, "PUT", f"manifests/{tag}", content)
        if answer.status_code == 201:
            self.acknowledged[tag] = content
        else:
            assert answer.status_code in REFUSALS, answer.text
            assert answer.json()["errors"][0]["message"]
        return answer.status_code

    async def push_until_taken(self, name: str) -> None:
        deadline = monotonic() + AGAIN_SECONDS
        while await self.push(name) != 201:
            assert monotonic() < deadline, self.regions.log_tails()

    async def settle(self) -> None:
        """All disks are well again: every member gets ready by itself, has all that was acknowledged, and is equal."""
        for name in NAMES:
            self.disk(name)
        await self.regions.wait_ready()
        for name in NAMES:
            await self.push_until_taken(name)
        for name in NAMES:
            for tag, content in self.acknowledged.items():
                assert (await self.ask(name, "GET", f"manifests/{tag}")).content == content
        assert len(set((await self.regions.agree()).values())) == 1

    async def lose_power(self) -> None:
        """Everywhere at once: only what was synced is left."""
        self.regions.kill(NAMES)
        for mount in self.regions.mounts.values():
            mount.crash()
        await self.regions.start()


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    with regions(tmp_path, lossy=True) as made:
        try:
            await made.start()
            yield Cluster(made)
        finally:
            await made.close()


async def test_a_follower_whose_disk_is_full_holds_nobody_up(cluster: Cluster) -> None:
    leader = await cluster.regions.steward()
    full, other = (name for name in NAMES if name != leader)
    await cluster.push_until_taken(full)
    cluster.disk(full, *FULL)
    began = monotonic()
    for _ in range(20):
        assert await cluster.push(leader) == 201
        assert await cluster.push(other) == 201
    assert monotonic() - began < AGAIN_SECONDS
    await cluster.push(full)  # is taken or refused, and not lost if it was taken
    for name in (leader, other):
        assert await cluster.regions.steward() == leader
        assert await cluster.push(name) == 201
    await cluster.settle()
    await cluster.lose_power()
    await cluster.settle()


async def test_a_leader_whose_disk_is_full_hands_over(cluster: Cluster) -> None:
    leader = await cluster.regions.steward()
    others = [name for name in NAMES if name != leader]
    await cluster.push_until_taken(leader)
    cluster.disk(leader, *FULL)
    for name in others:
        await cluster.push_until_taken(name)
        for _ in range(10):
            await cluster.push_until_taken(name)
    await cluster.push(leader)
    await cluster.settle()
    await cluster.lose_power()
    await cluster.settle()


async def test_no_disk_has_room(cluster: Cluster) -> None:
    """Nothing is taken, everything is refused, what was there is read, and once there is room it goes on."""
    await cluster.push_until_taken(NAMES[0])
    for name in NAMES:
        cluster.disk(name, *FULL)
    statuses = [await cluster.push(name) for name in NAMES]
    assert 201 not in statuses
    await cluster.settle()
    await cluster.lose_power()
    await cluster.settle()


@pytest.mark.parametrize("role", ["leader", "follower"])
async def test_a_member_whose_log_cannot_be_synced_stops(cluster: Cluster, role: str) -> None:
    leader = await cluster.regions.steward()
    failing = next(name for name in NAMES if (name == leader) == (role == "leader"))
    others = [name for name in NAMES if name != failing]
    await cluster.push_until_taken(failing)
    keeper = await cluster.regions.keeper_pid(failing)
    cluster.disk(failing, Fault("fsync", "EIO", match="/wal/"))
    for name in others * 5:
        await cluster.push_until_taken(name)
    await cluster.push(failing)
    cluster.disk(failing)
    await cluster.regions.wait_ready()
    assert await cluster.regions.keeper_pid(failing) != keeper, "it went on with a log that had failed"
    await cluster.settle()
    await cluster.lose_power()
    await cluster.settle()


async def test_a_member_whose_log_has_rotted_refuses_and_the_others_go_on(cluster: Cluster) -> None:
    leader = await cluster.regions.steward()
    rotten = next(name for name in NAMES if name != leader)
    for name in NAMES * 5:
        await cluster.push_until_taken(name)
    await cluster.regions.agree()
    node = cluster.regions.nodes[rotten]
    node.kill()
    segment = max((node.folders.data / "wal").glob("*.log"))
    good = segment.read_bytes()
    middle = good.index(b"image ", len(good) // 2)
    segment.write_bytes(good[:middle] + b"IMAGE" + good[middle + 5 :])
    before = node.events("keeper_refused")
    node.start()
    deadline = monotonic() + AGAIN_SECONDS
    while node.events("keeper_refused") == before:
        assert monotonic() < deadline, node.log_tail()
        await asyncio.sleep(0.05)
    assert segment.name in node.log_tail()
    for name in NAMES:
        if name != rotten:
            assert await cluster.push(name) == 201
    answer = await cluster.ask(rotten, "GET", "manifests/t0")
    assert answer.status_code == 503
    node.kill()
    segment.write_bytes(good)
    node.start()
    await cluster.settle()
