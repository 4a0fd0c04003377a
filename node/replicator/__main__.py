"""The replicator process: owns the blobs on their way here, and the connections that they come by.

It keeps some of those to every other member open and warm. When it ends, however that comes, what has arrived stays on
the disk, and whoever asks next goes on from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import uvloop

from node import telemetry
from node.blobs.filesystem import FilesystemStore
from node.identity import Identity, IdentityRefused
from node.launch import Launch
from node.replicator.replicating import replicating
from replication.stores import StoreError

STORE_POLL_SECONDS = 0.1

log = logging.getLogger("node.replicator")


async def serve(launch: Launch) -> None:
    """Until SIGTERM. Raises StoreError, IdentityRefused, OSError."""
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    config = launch.config
    identity = Identity.of(config)
    if not await _is_made(config.data / "blobs", stopping):
        return
    async with AsyncExitStack() as stack:
        blobs = await asyncio.to_thread(
            FilesystemStore.at, config.data / "blobs", store_id=identity.store_id, free_bytes=config.limits.free_bytes
        )
        stack.callback(blobs.close)
        await stack.enter_async_context(replicating(launch, blobs))
        launch.report_ready()
        log.info("replicator_serving")
        await stopping.wait()
    log.info("replicator_stopped")


async def _is_made(folder: Path, stopping: asyncio.Event) -> bool:
    """The gateways make the store when they first start, or refuse to; False if the process is to end before."""
    while not FilesystemStore.is_made(folder):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STORE_POLL_SECONDS):
                await stopping.wait()
                return False
    return True


def main() -> None:
    """The process."""
    launch = Launch.receive()
    telemetry.configure_logging(launch.name, launch.config.telemetry)
    try:
        uvloop.run(serve(launch))
    except (StoreError, IdentityRefused, OSError) as error:
        log.critical("replicator_refused", extra={"error": type(error).__name__, "reason": str(error)})
        sys.exit(1)


if __name__ == "__main__":
    main()
