"""What the first gateway of a node does beside serving: removes idle uploads, keeps gauges of the node's storage."""

from __future__ import annotations

import asyncio
import logging

from consensus import clock
from node import telemetry
from node.admin import Health
from replication.stores import StoreError, UploadStore

LOOK_SECONDS = 5.0
MAX_REAP_SECONDS = 60.0

log = logging.getLogger(__name__)


async def keep_house(uploads: UploadStore, health: Health) -> None:
    """Until cancelled. What the disk refuses is logged and tried again later."""
    idle_seconds = health.launch.config.limits.upload_idle_seconds
    every_seconds = min(MAX_REAP_SECONDS, idle_seconds / 4)
    reaped_at = clock.monotonic()
    while True:
        try:
            if clock.monotonic() - reaped_at >= every_seconds:
                reaped_at = clock.monotonic()
                if reaped := await uploads.reap(idle_seconds):
                    log.info("uploads_reaped", extra={"uploads": reaped})
            telemetry.metrics().uploads.set(await uploads.count())
            telemetry.metrics().free_bytes.set(health.free_bytes())
        except (StoreError, OSError) as error:
            log.warning("housekeeping_failed", extra={"reason": str(error)})
        await asyncio.sleep(min(LOOK_SECONDS, every_seconds))
