"""The keeper: the one process of a node that writes metadata. Owns the log and the state, serves gateways by RPC.

It ends, for the supervisor to start it again, as soon as its log or its disk cannot be trusted any more; what then
hinders it from starting is logged, with what to do. Gateways go on reading meanwhile.
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
from consensus.commands import Command, Outcome
from consensus.errors import ConsensusError
from consensus.log import Entry, LogStatus
from consensus.replica import Replica
from consensus.solo import SoloLog
from consensus.state import State
from node import telemetry
from node.identity import Identity, IdentityRefused
from node.launch import Launch
from node.rpc import serve_keeper

log = logging.getLogger("node.keeper")


class MeasuredLog:
    """A Log that tells telemetry of its appends and trims."""

    def __init__(self, log: SoloLog) -> None:
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


class MeasuredReplica:
    """What gateways call: the replica, telling telemetry of what it applies."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._metrics = telemetry.metrics()

    @property
    def applied(self) -> int:
        """See Replica."""
        return self._replica.applied

    @property
    def status(self) -> LogStatus:
        """See Replica."""
        return self._replica.status

    async def enrol(self, name: str) -> int:
        """See Replica."""
        return await self._replica.enrol(name)

    async def propose(self, proposer: int, sequence: int, acknowledged: int, command: Command) -> Outcome:
        """See Replica."""
        outcome = await self._replica.propose(proposer, sequence, acknowledged, command)
        self._metrics.commands.labels(type(command).__name__, outcome.status.value).inc()
        self._metrics.applied.set(self._replica.applied)
        return outcome

    async def barrier(self) -> int:
        """See Replica."""
        return await self._replica.barrier()


@asynccontextmanager
async def opened(launch: Launch) -> AsyncIterator[Replica]:
    """The node's replica on its log and its state. Raises ConsensusError, IdentityRefused, OSError, sqlite3.Error."""
    config = launch.config
    identity = Identity.load_or_create(config.data)
    solo = SoloLog.open(config.data / "wal", segment_bytes=config.log.segment_bytes, node_id=identity.node_id)
    try:
        state = State.open(config.data / "state", identity.cluster_id)
        try:
            async with Replica.open(MeasuredLog(solo), state, keep_bytes=config.log.keep_bytes) as replica:
                yield replica
        finally:
            state.close()
    finally:
        await solo.close()


async def serve(launch: Launch) -> None:
    """Until SIGTERM. Raises what `opened` does and what the replica fails with."""
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    async with opened(launch) as replica:
        await _end_of(replica.wait_applied(await replica.barrier()), replica)
        telemetry.metrics().applied.set(replica.applied)
        async with serve_keeper(MeasuredReplica(replica), launch.keeper_socket):
            launch.report_ready()
            log.info("keeper_serving", extra={"applied": replica.applied})
            await _end_of(stopping.wait(), replica)
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
