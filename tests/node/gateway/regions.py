"""Nodes of one cluster within this process, with sockets, TLS, files, logs and states of their own.

Their logs are not replicated: a test makes their states equal by telling each what the other was told (`Region.learn`).
"""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import httpx
import msgspec

from consensus.commands import BlobFact, RecordBlobs
from consensus.names import Digest, RepositoryName, StoreId
from consensus.parts import PartsHash
from consensus.proposer import Proposer
from consensus.replica import Replica
from consensus.solo import SoloLog
from consensus.state import State
from consensus.views import Views
from node.blobs.filesystem import FilesystemStore
from node.blobs.uploads import FilesystemUploads
from node.config import Config
from node.gateway.app import create_app
from node.gateway.requests import RequestRecord
from node.gateway.server import HttpServer
from node.gateway.surroundings import Surroundings, connect, serve_transfers
from node.identity import Identity
from node.launch import Launch
from node.overview.overview import Overview
from node.registry import Registry
from node.replicator.replicating import replicating
from node.tokens import UploadTokens
from replication.fetcher import Fetcher
from replication.peers import Peers
from tests.node.gateway.rig import CLUSTER_ID as STATE_ID
from tests.node.gateway.rig import Records, digest_of
from tests.node.member_certificates import CLUSTER_ID, CertificateAuthority, Issued

REPOSITORY = "team/app"


class PeerRecords(Records):
    """But for inventories, which members ask for all the time."""

    def __call__(self, record: RequestRecord) -> None:
        if record.route == "inventory":
            self.begun -= 1
        else:
            super().__call__(record)


def parts_of(content: bytes) -> bytes:
    running = PartsHash()
    running.update(content)
    return running.digests(len(content))


@dataclass
class Region:
    """One node."""

    name: str
    config: Config
    identity: Identity
    folder: Path
    proposer: Proposer
    blobs: FilesystemStore
    around: Surroundings
    fetcher: Fetcher
    records: Records = field(default_factory=Records)
    peer_records: Records = field(default_factory=PeerRecords)
    port: int = field(init=False)
    transfers: HttpServer = field(init=False)
    overview: Overview = field(init=False)
    client: httpx.AsyncClient = field(init=False)

    async def learn(self, content: bytes, *holders: StoreId, parts: bytes | None = None) -> str:
        """The state knows the blob, at these stores; returns its digest. Its parts are those of the content unless
        others are given, or none."""
        digest = digest_of(content)
        found = parts_of(content) if parts is None else parts
        await self.learn_fact(BlobFact(Digest.parse(digest), len(content), found), *holders)
        return digest

    async def learn_fact(self, fact: BlobFact, *holders: StoreId, repository: str = REPOSITORY) -> None:
        for store in holders:
            await self.proposer.propose(RecordBlobs(RepositoryName(repository), store, (fact,)))

    async def push(self, content: bytes, repository: str = REPOSITORY) -> str:
        """Pushes a blob to this node."""
        digest = digest_of(content)
        url = f"/v2/{repository}/blobs/uploads/?digest={digest}"
        (await self.client.post(url, content=content)).raise_for_status()
        return digest

    @property
    def store(self) -> StoreId:
        return self.identity.store_id

    async def holds(self, digest: str) -> bool:
        return Digest.parse(digest) in {each async for each in self.blobs.digests()}

    async def keeps(self, digest: str) -> bool:
        """Whether it holds it soon, and all that was on its way has come."""
        async with asyncio.timeout(20):
            while self.arrivals() or not await self.holds(digest):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return True

    def arrivals(self) -> int:
        """Blobs on their way in."""
        return len(list((self.folder / "arrivals").iterdir()))

    def prefer(self, *stores: StoreId) -> None:
        """From now on these stores are the nearest, the first most of all."""
        peers = cast(Peers, self.fetcher._source)
        peers.distance = lambda store: stores.index(store) / 100 if store in stores else 1.0  # type: ignore[method-assign]

    async def stop_transfers(self) -> None:
        """The others cannot reach it any more; what is under way is cut off."""
        await self.transfers.drain(0)


@dataclass
class Place:
    """Where a member is, or will be."""

    name: str
    listener: socket.socket
    port: int
    files: Issued


@dataclass
class Cluster:
    """Members and their CA. `stores` are folders with an identity and an empty store, which tests may share."""

    folder: Path
    authority: CertificateAuthority
    stores: Path
    places: dict[str, Place] = field(default_factory=dict)
    sections: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str) -> Place:
        listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        place = self.places[name] = Place(name, listener, listener.getsockname()[1], self.authority.issue(name))
        return place

    def config(self, name: str) -> Config:
        files = self.places[name].files
        members = [f"{place.name}=127.0.0.1:{1 + at}/{place.port}" for at, place in enumerate(self.places.values())]
        cluster = {
            "id": CLUSTER_ID,
            "members": members,
            "ca": str(files.ca),
            "certificate": str(files.certificate),
            "key": str(files.key),
        }
        node = {"name": name, "region": name, "data": str(self.folder / name)}
        return msgspec.convert({**self.sections, "node": node, "cluster": cluster}, Config)

    def prepare(self, name: str) -> Path:
        """A data folder with the shared identity and store of that name."""
        data = self.folder / name
        (data / "state").mkdir(parents=True)
        shared = self.stores / name
        if not shared.exists():
            shared.mkdir(parents=True)
            identity = Identity.load_or_create(shared)
            FilesystemStore.at(shared / "blobs", store_id=identity.store_id, free_bytes=0).close()
        shutil.copy(shared / "identity", data / "identity")
        (data / "blobs").symlink_to(shared / "blobs")
        return data

    @asynccontextmanager
    async def running(self, name: str) -> AsyncIterator[Region]:
        """The node of that name."""
        config = self.config(name)
        data = self.prepare(name)
        identity = Identity.load_or_create(data)
        launch = Launch(
            name="gateway-0",
            config=config,
            runtime=str(data),
            incarnation="test",
            started_ms=0,
            ready_descriptor=-1,
            transfers_descriptor=self.places[name].listener.detach(),
        )
        async with AsyncExitStack() as stack:
            log = SoloLog.open(data / "wal")
            stack.push_async_callback(log.close)
            state = State.open(data / "state", STATE_ID)
            stack.callback(state.close)
            blobs = FilesystemStore.at(data / "blobs", store_id=identity.store_id, free_bytes=config.limits.free_bytes)
            stack.callback(blobs.close)
            uploads = FilesystemUploads.open(data / "uploads", blobs, incarnation="test")
            views = Views(data / "state")
            stack.callback(views.close)
            proposer = Proposer(await stack.enter_async_context(Replica.open(log, state)), name)
            fetcher = await stack.enter_async_context(replicating(launch, blobs))
            around = await connect(launch, identity, blobs, stack)
            registry = Registry(
                views=views,
                proposer=proposer,
                blobs=blobs,
                uploads=uploads,
                tokens=UploadTokens(identity.node_id, identity.upload_secret),
                config=config,
                elsewhere=around.elsewhere,
            )
            yield await stack.enter_async_context(
                _served(launch, registry, Region(name, config, identity, data, proposer, blobs, around, fetcher))
            )


@asynccontextmanager
async def _served(launch: Launch, registry: Registry, region: Region) -> AsyncIterator[Region]:
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    region.port = listener.getsockname()[1]
    forwarder = region.around.forwarder
    app = create_app(registry, config=region.config, observe=region.records, forwarder=forwarder)
    server = HttpServer(app, region.config.limits)
    await server.start(listener)
    region.overview = Overview(region.around.here, region.around.members, registry.resolve)
    region.transfers = await serve_transfers(launch, registry, region.around, region.peer_records)
    try:
        base = f"http://127.0.0.1:{region.port}"
        async with httpx.AsyncClient(base_url=base, timeout=30, trust_env=False) as region.client:
            yield region
    finally:
        await region.transfers.drain(0)
        await server.drain(0)


@asynccontextmanager
async def two_regions(cluster: Cluster, *others: str) -> AsyncIterator[tuple[Region, Region]]:
    """The nodes eu and us; `others` are members that do not run."""
    for name in ("eu", "us", *others):
        if name not in cluster.places:
            cluster.add(name)
    async with asyncio.timeout(60), cluster.running("eu") as eu, cluster.running("us") as us:
        yield eu, us


@asynccontextmanager
async def first_region(cluster: Cluster, *others: str) -> AsyncIterator[Region]:
    """The node eu; `others` are members that do not run, and so ask nothing of it."""
    for name in ("eu", *others):
        cluster.add(name)
    async with asyncio.timeout(60), cluster.running("eu") as eu:
        yield eu


def peak_memory(*, reset: bool = False) -> int:
    """The most bytes that this process had in memory since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024
