"""What a gateway does for the other nodes, on a listener of its own that only they can reach.

Blobs of this node's store, whichever repositories they are in; which copies it has; who this node is; how replication
goes here; and the requests of upload sessions that are this node's. Nothing that comes in here is passed on to another
node.
"""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import msgspec

from node.access import Policy
from node.config import Config
from node.gateway import blobs, routes
from node.gateway.app import App, Observer, create_app
from node.gateway.gateway import Gateway
from node.gateway.refusals import MalformedRequest, Overloaded, RouteUnknown
from node.gateway.reporting import reporting_routes
from node.gateway.requests import Request
from node.gateway.responses import Header, Response, json_response
from node.gateway.routes import Endpoint, Match, Route
from node.identity import Identity
from node.inventory import page_of
from node.overview.here import Here
from node.registry import Registry
from replication.inventory import INVENTORY_PATH

IDENTITY_PATH = b"/meridian/v1/identity"
BLOBS_PREFIX = b"/meridian/v1/blobs/"

_NUMBER = re.compile(r"[0-9]{1,18}", re.ASCII)
_PACKED: Header = (b"content-type", b"application/msgpack")

HELD_BLOB = Route("held_blob", dict.fromkeys(("GET", "HEAD"), Endpoint(None, blobs.get_held_blob)))


class Introduction(msgspec.Struct, frozen=True, kw_only=True):
    """What a node says of itself."""

    cluster_id: str
    node_id: str
    member: str
    region: str
    store_id: str

    @classmethod
    def of(cls, identity: Identity, config: Config) -> Introduction:
        """This node's."""
        return cls(
            cluster_id=config.cluster.id,
            node_id=identity.node_id,
            member=config.node.name,
            region=config.node.region,
            store_id=identity.store_id,
        )


def create_transfers_app(
    registry: Registry,
    introduction: Introduction,
    *,
    config: Config,
    inventory: Path,
    here: Here,
    policy: Policy | None = None,
    observe: Observer | None = None,
) -> App:
    """The application behind the transfers listener, which has settled who may talk to it. `inventory` is the file of
    the node's copies."""

    async def get_identity(gateway: Gateway, request: Request) -> Response:
        return json_response(introduction)

    async def get_inventory(gateway: Gateway, request: Request) -> Response:
        incarnation = request.parameter("incarnation") or ""
        after, forgotten = (_number(request, name) for name in ("after", "forgotten"))
        try:
            page = await asyncio.to_thread(page_of, inventory, incarnation, after, forgotten)
        except sqlite3.OperationalError as error:  # the replicator has not made it yet
            raise Overloaded("the inventory cannot be read at the moment") from error
        return Response(200, (_PACKED,), page.encode())

    exact = {
        IDENTITY_PATH: Route("identity", {"GET": Endpoint(None, get_identity)}),
        INVENTORY_PATH.encode(): Route("inventory", {"GET": Endpoint(None, get_inventory)}),
        **reporting_routes(here),
    }
    return create_app(registry, config=config, policy=policy, observe=observe, match=partial(_match, exact))


def _number(request: Request, name: str) -> int:
    text = request.parameter(name) or "0"
    if not _NUMBER.fullmatch(text):
        raise MalformedRequest(f"{name} takes decimal digits")
    return int(text)


def _match(exact: Mapping[bytes, Route], path: bytes) -> Match:
    if path in exact:
        return Match(exact[path], None, ())
    if path.startswith(BLOBS_PREFIX):
        return Match(HELD_BLOB, None, (path.removeprefix(BLOBS_PREFIX).decode("latin-1"),))
    found = routes.match(path)
    if found.route is not routes.UPLOAD:
        raise RouteUnknown("there is no such endpoint for other nodes")
    return found
