"""The keeper: the one process of a node that writes metadata. Owns the log and the state, serves gateways by RPC.

It ends, for the supervisor to start it again, as soon as its log or its disk cannot be trusted any more; what then
hinders it from starting is logged, with what to do. Gateways go on reading meanwhile.

A member of a cluster serves from its start, with or without a majority: what needs one waits and is refused, and goes
on by itself as soon as there is one.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import uvloop

from consensus import clock
from consensus.errors import ConsensusError
from consensus.log import Entry, Log, LogStatus
from consensus.replica import Replica
from consensus.state import State
from node import engines, telemetry
from node.counter import Counter
from node.identity import Identity, IdentityRefused
from node.launch import Launch
from node.rpc import serve_keeper

log = logging.getLogger("node.keeper")


class MeasuredLog:
    """A Log that tells telemetry of its appends and trims."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._metrics = telemetry.metrics()

    async def append(self, payload: bytes) -> int:
        """See Log."""
        began = clock.monotonic()
        index = await self._log.append(payload)
        self._metrics.append_seconds.observe(clock.monotonic() - began)
        return index

    def entries(self, after: int) -> AsyncIterator[tuple[Entry, ...]]:
        """See Log."""
        return self._log.entries(after)

    async def barrier(self) -> int:
        """See Log."""
        return await self._log.barrier()

    async def trim(self, upto: int, *, keep_bytes: int = 0) -> None:
        """See Log. It follows a checkpoint, always."""
        self._metrics.checkpoints.inc()
        await self._log.trim(upto, keep_bytes=keep_bytes)
        self._metrics.trims.inc()

    @property
    def status(self) -> LogStatus:
        """See Log."""
        return self._log.status

    async def close(self) -> None:
        """See Log."""
        await self._log.close()


@asynccontextmanager
async def opened(launch: Launch) -> AsyncIterator[tuple[Replica, engines.Engine]]:
    """The node's replica on its log and its state. Raises ConsensusError, IdentityRefused, OSError, sqlite3.Error."""
    config = launch.config
    identity = Identity.of(config)
    async with engines.opened(config, identity) as engine:
        state = State.open(config.data / "state", identity.cluster_id)
        try:
            async with Replica.open(
                MeasuredLog(engine.log), state, keep_bytes=config.log.keep_bytes, bridge=engine.bridge
            ) as replica:
                yield replica, engine
        finally:
            state.close()


async def serve(launch: Launch) -> None:
    """Until SIGTERM. Raises what `opened` does and what the replica fails with."""
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    async with opened(launch) as (replica, engine):
        counter = Counter(replica)
        async with serve_keeper(counter, launch.keeper_socket), counter.kept_current(launch.report_ready):
            log.info("keeper_serving", extra={"applied": replica.applied})
            await _end_of(stopping.wait(), replica)
            await engines.resign(engine.log)
    log.info("keeper_stopped")


async def _end_of(wait: Coroutine[Any, Any, object], replica: Replica) -> None:
    """Waits for it; raises what the replica fails with if that comes first."""
    waiting, failed = asyncio.create_task(wait), replica.failed
    either: list[asyncio.Future[Any]] = [waiting, failed]
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if failed.done():
            raise failed.result()
        await waiting
    finally:
        waiting.cancel()
        failed.cancel()


def main() -> None:
    """The process."""
    launch = Launch.receive()
    telemetry.configure_logging(launch.name, launch.config.telemetry)
    try:
        uvloop.run(serve(launch))
    except (ConsensusError, IdentityRefused, OSError, sqlite3.Error) as error:
        log.critical("keeper_refused", extra={"error": type(error).__name__, "reason": str(error)})
        sys.exit(1)


if __name__ == "__main__":
    main()
