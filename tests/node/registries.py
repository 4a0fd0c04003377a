"""A registry on a log and a state of its own, without HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from consensus.names import RepositoryName, StoreId, Tag
from consensus.proposer import Channel, Proposer
from consensus.replica import Replica
from consensus.solo import SoloLog
from consensus.state import State
from consensus.views import Views
from node.blobs.memory import MemoryStore, MemoryUploads
from node.conditions import UNCONDITIONAL, Condition
from node.config import Config
from node.freshness import Freshness
from node.registry import ManifestPush, Registry
from node.tokens import UploadTokens

APP = RepositoryName("team/app")
V1 = Tag("v1")
PLAIN = "application/vnd.example.plain"


@asynccontextmanager
async def replicated(folder: Path) -> AsyncIterator[tuple[Replica, Views]]:
    log, state = SoloLog.open(folder / "wal"), State.open(folder / "state", "c" * 32)
    views = Views(folder / "state")
    try:
        async with Replica.open(log, state) as replica:
            yield replica, views
    finally:
        views.close()
        await log.close()
        state.close()


def registry_on(channel: Channel, views: Views, freshness: Freshness | None = None) -> Registry:
    blobs = MemoryStore(StoreId("a" * 32))
    return Registry(
        views=views,
        proposer=Proposer(channel, "test"),
        blobs=blobs,
        uploads=MemoryUploads(blobs),
        tokens=UploadTokens("1" * 32, b"s" * 32),
        config=Config(),
        freshness=freshness,
    )


def push(content: bytes, condition: Condition = UNCONDITIONAL, *, tag: Tag = V1) -> ManifestPush:
    return ManifestPush(content, PLAIN, None, (tag,), condition)
