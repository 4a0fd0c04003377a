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
from node.overview.here import Here
from node.overview.members import Members
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
    here: Here
    members: Members


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
    here = Here(config.node.name, config.node.region, state=config.data / "state", blobs=blobs, replicator=replicator)
    others = [member for member in config.cluster.transfer_addresses if member != config.node.name]
    members = Members(here, others, peers)
    return Surroundings(introduction, elsewhere, Forwarder(peers, identity.node_id), replicator, here, members)


async def serve_transfers(launch: Launch, registry: Registry, around: Surroundings, observe: Observer) -> HttpServer:
    """Serves the other nodes on the inherited socket. Raises OSError."""
    config = launch.config
    inventory = inventory_file(config, launch.incarnation)
    app = create_transfers_app(
        registry, around.introduction, config=config, inventory=inventory, here=around.here, observe=observe
    )
    admission = Admission(config.cluster, config.node.name)
    server = HttpServer(app, _limits(config), tls=serving_context(config.cluster), admit=admission)
    await server.start(socket.socket(fileno=launch.transfers_descriptor))
    return server


def _limits(config: Config) -> Limits:
    return msgspec.structs.replace(config.limits, connections=min(MAX_CONNECTIONS, config.limits.connections))
