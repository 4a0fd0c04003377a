"""The gateway process: one of several that serve the registry, and the admin address, on sockets they inherit."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import resource
import signal
import socket
import sqlite3
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import uvloop

from consensus import generation
from consensus.errors import StateRefused
from consensus.names import StoreId
from consensus.proposer import Proposer
from consensus.views import Views
from node import telemetry
from node.admin import OK, Health, Storage, create_admin
from node.blobs.filesystem import FilesystemStore
from node.blobs.uploads import FilesystemUploads
from node.config import Config, Limits
from node.freshness import Confirmed, caught_up
from node.gateway.app import create_app
from node.gateway.housekeeping import keep_house
from node.gateway.server import HttpServer
from node.identity import Identity, IdentityRefused
from node.launch import SUPERSEDED, Launch
from node.overview.here import Here
from node.overview.members import Members
from node.overview.overview import Overview
from node.registry import Registry
from node.rpc import KeeperClient
from node.tls import TlsRefused, tls_of
from node.tokens import UploadTokens
from replication.stores import StoreError, StoreRefused

if TYPE_CHECKING:
    from node.gateway.surroundings import Surroundings

ADMIN_LIMITS = Limits(connections=256, url_bytes=1024, header_bytes=16384, header_count=64, body_stall_seconds=10.0)
ADMIN_DRAIN_SECONDS = 2.0
STATE_POLL_SECONDS = 0.1
SPARE_DESCRIPTORS = 1024  # for blobs, uploads and the like, beside connections

log = logging.getLogger("node.gateway")


async def serve(launch: Launch) -> None:
    """Until SIGTERM, or SUPERSEDED once others have taken over, and then until what is under way has ended. Raises
    TlsRefused, StoreError, StateRefused, IdentityRefused, OSError, sqlite3.Error."""
    config = launch.config
    tls = tls_of(config.listen)
    stopping, superseded = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    loop.add_signal_handler(SUPERSEDED, superseded.set)
    async with AsyncExitStack() as stack:
        keeper = KeeperClient(launch.keeper_socket)
        stack.push_async_callback(keeper.close)
        health = Health(launch, keeper)
        admin = HttpServer(create_admin(health), ADMIN_LIMITS)
        await admin.start(socket.socket(fileno=launch.admin_descriptor))
        stack.push_async_callback(admin.drain, ADMIN_DRAIN_SECONDS)
        opened = await _open_registry(launch, health, keeper, stack, stopping)
        if opened is None:
            return
        registry, around = opened
        observer = telemetry.RequestObserver(launch.name, config.telemetry)
        stack.callback(observer.close)
        forwarder = around.forwarder if around else None
        app = create_app(registry, config=config, observe=observer, forwarder=forwarder)
        server = HttpServer(app, _limits(config), tls=tls)
        if not config.cluster.members:
            await caught_up(keeper.status, stopping)
        await server.start(socket.socket(fileno=launch.registry_descriptor))
        servers = [server]
        if around:
            from node.gateway.surroundings import serve_transfers

            servers.append(await serve_transfers(launch, registry, around, observer))
        gc.collect()
        gc.freeze()  # what is here stays: the collector need not look at it again
        health.registry = OK
        launch.report_ready()
        log.info("gateway_serving")
        await _first(stopping, superseded)
        if superseded.is_set():
            admin.stop_accepting()  # what this one would say is not true of the node any more
        else:
            health.registry = "drains"
        clean = await asyncio.gather(*(each.drain(config.supervisor.drain_seconds) for each in servers))
        log.info("gateway_stopped", extra={"clean": all(clean)})


async def _open_registry(
    launch: Launch, health: Health, keeper: KeeperClient, stack: AsyncExitStack, stopping: asyncio.Event
) -> tuple[Registry, Surroundings | None] | None:
    """With the way to the other nodes, if there are any. None if the process is to end before there is a state."""
    config = launch.config
    identity = Identity.of(config)
    folder = config.data / "blobs"
    await asyncio.to_thread(_require_blobs, folder, config.data / "state", identity.store_id)
    blobs = await asyncio.to_thread(
        FilesystemStore.at, folder, store_id=identity.store_id, free_bytes=config.limits.free_bytes
    )
    stack.callback(blobs.close)
    uploads = FilesystemUploads.open(config.data / "uploads", blobs, incarnation=launch.incarnation)
    views = await _open_views(config.data / "state", stopping)
    if views is None:
        return None
    stack.callback(views.close)
    health.storage = Storage(views, uploads)
    around = None
    if config.cluster.members:
        from node.gateway.surroundings import connect  # the client for other nodes: only who needs it loads it

        around = await connect(launch, identity, blobs, stack)
        health.replicator = around.replicator.status
    if launch.number == 0:
        keeping = keep_house(uploads, health)
        stack.push_async_callback(_cancel, asyncio.create_task(keeping))
    freshness = None
    if config.cluster.members:
        freshness = Confirmed(keeper.sync)
        stack.push_async_callback(freshness.close)
    registry = Registry(
        views=views,
        proposer=Proposer(keeper, f"{config.node.name}/{launch.name}"),
        blobs=blobs,
        uploads=uploads,
        tokens=UploadTokens(identity.node_id, identity.upload_secret),
        config=config,
        freshness=freshness,
        elsewhere=around.elsewhere if around else None,
    )
    if around:
        here, members = around.here, around.members
    else:
        here = Here(config.node.name, config.node.region, state=config.data / "state", blobs=blobs, replicator=None)
        members = Members(here, (), None)
    health.overview = Overview(here, members, registry.resolve)
    return registry, around


def _require_blobs(folder: Path, state: Path, store_id: StoreId) -> None:
    """A store that has held blobs is not begun anew where they should be. Raises StoreRefused, and what Views does."""
    if FilesystemStore.is_made(folder) or generation.current(state) is None:
        return
    with contextlib.closing(Views(state)) as views:
        # Looked at again: it may just have been made by the first gateway of a new node, and have held its first blob.
        if views.has_store(store_id) and not FilesystemStore.is_made(folder):
            raise StoreRefused(
                f"the blobs of this node are not in {folder}: is their disk mounted? Put them back. If they are lost, "
                f"write {store_id} into {folder / 'STORE'} to serve what is pushed from now on"
            )


async def _open_views(folder: Path, stopping: asyncio.Event) -> Views | None:
    """The keeper makes the state when it first starts."""
    while generation.current(folder) is None:
        log.info("gateway_waiting", extra={"reason": f"there is no state in {folder} yet"})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STATE_POLL_SECONDS):
                await stopping.wait()
                return None
    return Views(folder)


async def _first(*events: asyncio.Event) -> None:
    waits = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


def _limits(config: Config) -> Limits:
    """The bound on connections leaves descriptors for what they ask for."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    connections = min(config.limits.connections, max(most - SPARE_DESCRIPTORS, most // 2))
    if connections < config.limits.connections:
        log.warning("connections_bounded", extra={"connections": connections, "descriptors": most})
    return msgspec.structs.replace(config.limits, connections=connections)


def main() -> None:
    """The process."""
    launch = Launch.receive()
    telemetry.configure_logging(launch.name, launch.config.telemetry)
    try:
        uvloop.run(serve(launch))
    except (TlsRefused, StoreError, StateRefused, IdentityRefused, OSError, sqlite3.Error) as error:
        log.critical("gateway_refused", extra={"error": type(error).__name__, "reason": str(error)})
        sys.exit(1)


if __name__ == "__main__":
    main()
