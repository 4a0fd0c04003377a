"""What a gateway needs of the other nodes, put together: loaded and made only where there are any."""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

import msgspec

from node import telemetry
from node.blobs.arrivals import FilesystemArrivals
from node.blobs.filesystem import FilesystemStore
from node.config import Config, Limits
from node.credentials import Admission, serving_context
from node.gateway.app import Observer
from node.gateway.elsewhere import Elsewhere
from node.gateway.forwarding import Forwarder
from node.gateway.server import HttpServer
from node.gateway.transfers import Introduction, create_transfers_app
from node.identity import Identity
from node.inventory import holders_of, inventory_file
from node.launch import Launch
from node.members import other_members
from node.registry import Registry
from node.replicator.rpc import ReplicatorClient
from replication.passage import Passages

MAX_CONNECTIONS = 4096


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The ways to the other nodes, for bytes and for requests, and what they are told of this one."""

    introduction: Introduction
    elsewhere: Elsewhere
    forwarder: Forwarder
    replicator: ReplicatorClient


async def connect(launch: Launch, identity: Identity, blobs: FilesystemStore, stack: AsyncExitStack) -> Surroundings:
    """Needs none of them to be there, nor the replicator. Raises StoreError, OSError."""
    config = launch.config
    arrivals = await asyncio.to_thread(
        FilesystemArrivals.open, config.data / "arrivals", blobs, incarnation=launch.incarnation
    )
    peers = other_members(config)
    stack.push_async_callback(peers.close)
    passages = Passages(peers, observe=telemetry.observe_transfer)
    stack.push_async_callback(passages.close)
    replicator = ReplicatorClient(launch.replicator_socket)
    stack.push_async_callback(replicator.close)
    copies = partial(holders_of, inventory_file(config, launch.incarnation))
    elsewhere = Elsewhere(replicator, passages, blobs=blobs, arrivals=arrivals, copies=copies)
    stack.push_async_callback(elsewhere.close)
    introduction = Introduction.of(identity, config)
    return Surroundings(introduction, elsewhere, Forwarder(peers, identity.node_id), replicator)


async def serve_transfers(
    launch: Launch, registry: Registry, introduction: Introduction, observe: Observer
) -> HttpServer:
    """Serves the other nodes on the inherited socket. Raises OSError."""
    config = launch.config
    inventory = inventory_file(config, launch.incarnation)
    app = create_transfers_app(registry, introduction, config=config, inventory=inventory, observe=observe)
    admission = Admission(config.cluster, config.node.name)
    server = HttpServer(app, _limits(config), tls=serving_context(config.cluster), admit=admission)
    await server.start(socket.socket(fileno=launch.transfers_descriptor))
    return server


def _limits(config: Config) -> Limits:
    return msgspec.structs.replace(config.limits, connections=min(MAX_CONNECTIONS, config.limits.connections))
