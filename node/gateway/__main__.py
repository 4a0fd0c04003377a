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
import ssl
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import uvloop

from consensus import generation
from consensus.errors import StateRefused
from consensus.proposer import Proposer
from consensus.views import Views
from node import telemetry
from node.admin import Health, Storage, create_admin
from node.blobs.filesystem import FilesystemStore
from node.blobs.uploads import FilesystemUploads
from node.config import Config, Limits
from node.freshness import Confirmed
from node.gateway.app import create_app
from node.gateway.housekeeping import keep_house
from node.gateway.server import HttpServer, tls_context
from node.identity import Identity, IdentityRefused
from node.launch import Launch
from node.registry import Registry
from node.rpc import KeeperClient
from node.tokens import UploadTokens
from replication.stores import StoreError

ADMIN_LIMITS = Limits(connections=256, url_bytes=1024, header_bytes=16384, header_count=64, body_stall_seconds=10.0)
ADMIN_DRAIN_SECONDS = 2.0
STATE_POLL_SECONDS = 0.1
SPARE_DESCRIPTORS = 1024  # for blobs, uploads and the like, beside connections

log = logging.getLogger("node.gateway")


async def serve(launch: Launch) -> None:
    """Until SIGTERM, and then until what is under way has ended. Raises StoreError, StateRefused, IdentityRefused,
    OSError, sqlite3.Error."""
    config = launch.config
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    async with AsyncExitStack() as stack:
        keeper = KeeperClient(launch.keeper_socket)
        stack.push_async_callback(keeper.close)
        health = Health(launch, keeper)
        admin = HttpServer(create_admin(health), ADMIN_LIMITS)
        await admin.start(socket.socket(fileno=launch.admin_descriptor))
        stack.push_async_callback(admin.drain, ADMIN_DRAIN_SECONDS)
        registry = await _open_registry(launch, health, keeper, stack, stopping)
        if registry is None:
            return
        observer = telemetry.RequestObserver(launch.name, config.telemetry)
        stack.callback(observer.close)
        app = create_app(registry, config=config, observe=observer)
        server = HttpServer(app, _limits(config), tls=_tls(config))
        await server.start(socket.socket(fileno=launch.registry_descriptor))
        gc.collect()
        gc.freeze()  # what is here stays: the collector need not look at it again
        launch.report_ready()
        log.info("gateway_serving")
        await stopping.wait()
        clean = await server.drain(config.supervisor.drain_seconds)
        log.info("gateway_stopped", extra={"clean": clean})


async def _open_registry(
    launch: Launch, health: Health, keeper: KeeperClient, stack: AsyncExitStack, stopping: asyncio.Event
) -> Registry | None:
    """None if the process is to end before there is a state to read."""
    config = launch.config
    identity = Identity.of(config)
    blobs = await asyncio.to_thread(
        FilesystemStore.at, config.data / "blobs", store_id=identity.store_id, free_bytes=config.limits.free_bytes
    )
    stack.callback(blobs.close)
    uploads = FilesystemUploads.open(config.data / "uploads", blobs, incarnation=launch.incarnation)
    views = await _open_views(config.data / "state", stopping)
    if views is None:
        return None
    stack.callback(views.close)
    health.storage = Storage(views, uploads)
    if launch.number == 0:
        stack.push_async_callback(_cancel, asyncio.create_task(keep_house(uploads, health)))
    freshness = None
    if config.cluster.members:
        freshness = Confirmed(keeper.sync)
        stack.push_async_callback(freshness.close)
    return Registry(
        views=views,
        proposer=Proposer(keeper, f"{config.node.name}/{launch.name}"),
        blobs=blobs,
        uploads=uploads,
        tokens=UploadTokens(identity.node_id, identity.upload_secret),
        config=config,
        freshness=freshness,
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


def _tls(config: Config) -> ssl.SSLContext | None:
    listen = config.listen
    return tls_context(Path(listen.tls_certificate), Path(listen.tls_key)) if listen.tls_certificate else None


def main() -> None:
    """The process."""
    launch = Launch.receive()
    telemetry.configure_logging(launch.name, launch.config.telemetry)
    try:
        uvloop.run(serve(launch))
    except (StoreError, StateRefused, IdentityRefused, OSError, sqlite3.Error) as error:
        log.critical("gateway_refused", extra={"error": type(error).__name__, "reason": str(error)})
        sys.exit(1)


if __name__ == "__main__":
    main()
