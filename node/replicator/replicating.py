"""What the replicator process is made of, put together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from consensus import clock
from node import telemetry
from node.blobs.arrivals import FilesystemArrivals
from node.blobs.filesystem import FilesystemStore
from node.launch import Launch
from node.members import other_members
from node.replicator.inventories import exchanging
from node.replicator.rpc import serve_replicator
from replication.fetcher import Fetcher
from replication.stores import ArrivalStore, StoreError

LOOK_SECONDS = 1.0
REAP_SECONDS = 60.0
IDLE_SECONDS = 3600.0  # an arrival that nobody has asked for in so long is removed

log = logging.getLogger(__name__)


@asynccontextmanager
async def replicating(launch: Launch, blobs: FilesystemStore) -> AsyncIterator[Fetcher]:
    """Brings blobs into `blobs` for those who ask at the launch's socket, and exchanges with the other members who has
    which. Raises StoreError, OSError."""
    config = launch.config
    arrivals = await asyncio.to_thread(
        FilesystemArrivals.open, config.data / "arrivals", blobs, incarnation=launch.incarnation
    )
    async with AsyncExitStack() as stack:
        peers = other_members(config)
        stack.push_async_callback(peers.close)
        copies = await stack.enter_async_context(exchanging(launch, blobs, peers))
        fetcher = await stack.enter_async_context(
            Fetcher(peers, blobs, arrivals, observe=telemetry.observe_transfer, copies=copies)
        )
        for beside in (peers.keep_warm(), _keep_house(fetcher, arrivals)):
            stack.push_async_callback(_cancel, asyncio.create_task(beside))
        await stack.enter_async_context(serve_replicator(fetcher, launch.replicator_socket, directory=peers.directory))
        yield fetcher


async def _keep_house(fetcher: Fetcher, arrivals: ArrivalStore) -> None:
    """Until cancelled: gauges, and arrivals that nobody wants any more."""
    reaped_at, misses = float("-inf"), 0
    while True:
        misses, before = fetcher.look(), misses
        telemetry.metrics().misses.inc(misses - before)
        status = fetcher.status
        telemetry.metrics().fetching.set(status.transfers)
        telemetry.metrics().fetch_flows.set(status.flows)
        if clock.monotonic() - reaped_at >= REAP_SECONDS:
            reaped_at = clock.monotonic()
            try:
                if reaped := await arrivals.reap(IDLE_SECONDS):
                    log.info("arrivals_reaped", extra={"arrivals": reaped})
            except StoreError as error:
                log.warning("housekeeping_failed", extra={"reason": str(error)})
        await asyncio.sleep(LOOK_SECONDS)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
