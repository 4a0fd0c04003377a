"""The admin address: is this node alive, is it ready, how is it. Every gateway answers for the whole node."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from consensus import clock
from consensus.errors import LogUnavailable, StateRefused
from consensus.views import Views
from node import telemetry
from node.launch import Launch
from node.overview.operations import STATUS
from node.overview.overview import Overview
from node.overview.routes import overview_routes
from node.overview.shapes import NodeStatus
from node.rpc import KeeperClient, KeeperStatus
from replication.stores import StoreError, UploadStore

ASK_SECONDS = 0.5  # the keeper is asked no more often
BAD_NEWS_SECONDS = 0.02  # while it says that the node is not current, or nothing

OK = "ok"


@dataclass(slots=True)
class Storage:
    """What a gateway reads and writes, once it is open."""

    views: Views
    uploads: UploadStore


class ReplicatorStatus(Protocol):
    """What is asked of the replicator."""

    @property
    def pid(self) -> int:
        """Its process."""

    @property
    def transfers(self) -> int:
        """Blobs on their way here."""


class Health:
    """What one gateway knows of its node. `storage` and `overview` are set when it is open, `replicator` where there is
    one to ask, and `registry` says whether clients are served."""

    def __init__(self, launch: Launch, keeper: KeeperClient) -> None:
        self.launch = launch
        self.storage: Storage | None = None
        self.registry = "does not serve yet"
        self.overview: Overview | None = None
        self.replicator: Callable[[], Awaitable[ReplicatorStatus | None]] | None = None
        self._keeper = keeper
        self._asking = asyncio.Lock()
        self._asked_at = float("-inf")
        self._answer: KeeperStatus | None = None

    async def keeper(self) -> KeeperStatus | None:
        """Where the keeper stood at most ASK_SECONDS ago; None if it did not answer. Bad news grows old sooner: once a
        gateway has said that the node is ready, no other should deny it."""
        async with self._asking:
            kept_seconds = ASK_SECONDS if self._answer and self._answer.current else BAD_NEWS_SECONDS
            if clock.monotonic() - self._asked_at > kept_seconds:
                try:
                    self._answer = await self._keeper.status()
                except LogUnavailable:
                    self._answer = None
                self._asked_at = clock.monotonic()
            return self._answer

    def applied(self) -> int | None:
        """The last index that reads see; None if nothing can be read."""
        try:
            return self.storage.views.applied() if self.storage else None
        except (sqlite3.Error, StateRefused, OSError):
            return None

    def free_bytes(self) -> int:
        """Free space below the data folder. Raises OSError."""
        volume = os.statvfs(self.launch.config.node.data)
        return volume.f_bavail * volume.f_frsize

    async def checks(self) -> tuple[bool, dict[str, str]]:
        """Whether the node is ready, and what was found. Neither a full disk nor a missing replicator makes it unready:
        pulls go on, of what is here at least."""
        keeper = await self.keeper()
        found = {
            "registry": self.registry,
            "state": OK if self.applied() is not None else "cannot be read",
            "keeper": OK if keeper else "does not answer",
        }
        if self.launch.config.cluster.members:
            found["cluster"] = _standing(keeper)
        elif keeper and not keeper.current:
            found["keeper"] = f"still reads its log: at entry {keeper.applied} of {keeper.commit}"
        beside = {"store": self._store()}
        if self.replicator:
            beside["replicator"] = OK if await self.replicator() else "does not answer"
        return set(found.values()) == {OK}, found | beside

    async def report(self) -> NodeStatus:
        """All that `/meridian/v1/status` says."""
        node, keeper = self.launch.config.node, await self.keeper()
        replicator = await self.replicator() if self.replicator else None
        return NodeStatus(
            region=node.region,
            node=node.name,
            version=version(),
            uptime_seconds=(clock.wall_ms() - self.launch.started_ms) // 1000,
            applied=self.applied(),
            commit=keeper.commit if keeper else None,
            term=keeper.term if keeper else None,
            steward=keeper.steward if keeper else None,
            keeper_pid=keeper.pid if keeper else None,
            replicator_pid=replicator.pid if replicator else None,
            fetches=replicator.transfers if replicator else None,
            gateway_pid=os.getpid(),
            gateways=node.gateways or len(os.sched_getaffinity(0)),
            free_bytes=self._free_bytes(),
            uploads=await self._uploads(),
        )

    def _free_bytes(self) -> int | None:
        try:
            return self.free_bytes()
        except OSError:
            return None

    async def _uploads(self) -> int | None:
        try:
            return await self.storage.uploads.count() if self.storage else None
        except StoreError:
            return None

    def _store(self) -> str:
        try:
            free_bytes = self.free_bytes()
        except OSError as error:
            return error.strerror or "fails"
        if free_bytes < self.launch.config.limits.free_bytes:
            return f"{free_bytes} bytes are free: uploads are refused"
        return OK


def _standing(keeper: KeeperStatus | None) -> str:
    """Of a member in its cluster."""
    if keeper is None:
        return "not known"
    if keeper.current:
        return OK
    if keeper.steward is None:
        return "no steward: a majority of the members cannot be reached"
    return f"at entry {keeper.applied}, not sure that this is all: {keeper.steward}, the steward, does not say"


def version() -> str:
    """Of the product."""
    from importlib.metadata import version as version_of

    return version_of("meridian-registry")


def create_admin(health: Health) -> Starlette:
    """The application."""

    async def livez(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(_: Request) -> Response:
        ready, checks = await health.checks()
        return JSONResponse(checks, 200 if ready else 503)

    async def metrics(_: Request) -> Response:
        body, content_type = await asyncio.to_thread(telemetry.render_metrics)
        return Response(body, media_type=content_type)

    async def status(_: Request) -> Response:
        return Response(msgspec.json.encode(await health.report()), media_type="application/json")

    return Starlette(
        routes=[
            Route("/livez", livez),
            Route("/readyz", readyz),
            Route("/metrics", metrics),
            Route(STATUS.path, status),
            *overview_routes(lambda: health.overview),
        ]
    )
