"""The keeper's counter: what gateways are served at. It stands before the replica, shares rounds among them, makes sure
now and then that the node is current, and tells telemetry.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from consensus import clock
from consensus.commands import Command, Outcome
from consensus.errors import LogUnavailable
from consensus.log import LogStatus
from consensus.replica import Replica
from consensus.rounds import Rounds
from node import telemetry

SYNC_SECONDS = 4.0  # less than a gateway waits for an answer
CHECK_SECONDS = 1.0
RETRY_SECONDS = 0.1
CURRENT_SECONDS = 6.0  # an election passes without a word

# A gateway asks for one round at a time and lets its own readers share it. Would a few gateways have to wait here for
# each other's, a read could take four round trips; many of them share after all.
_ROUNDS_AT_ONCE = 4

log = logging.getLogger(__name__)


class Counter:
    """Implements `node.rpc.Keeper`."""

    def __init__(self, replica: Replica, *, sync_seconds: float = SYNC_SECONDS) -> None:
        self._replica = replica
        self._sync_seconds = sync_seconds
        self._metrics = telemetry.metrics()
        self._rounds = Rounds(self._round, at_once=_ROUNDS_AT_ONCE)
        self._confirmed_at = float("-inf")
        self._told: tuple[bool, str | None] | None = None  # of what was logged last: current, steward

    @property
    def current(self) -> bool:
        """See KeeperStatus."""
        return clock.monotonic() - self._confirmed_at < CURRENT_SECONDS

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

    async def sync(self) -> int:
        """See Replica. Raises LogUnavailable, at the latest after two rounds of SYNC_SECONDS."""
        return await self._rounds.join()

    @asynccontextmanager
    async def kept_current(self, report: Callable[[], None]) -> AsyncIterator[None]:
        """Keeps `current` true to the fact while the block runs; calls `report` when it first is."""
        keeping = asyncio.create_task(self._keep_current(report), name="current")
        try:
            yield
        finally:
            keeping.cancel()
            await asyncio.wait([keeping])
            await self._rounds.close()

    async def _keep_current(self, report: Callable[[], None]) -> None:
        reported = False
        while True:
            reason = await self._check()
            if not reason and not reported:
                report()
                reported = True
            self._tell(reason)
            await asyncio.sleep(RETRY_SECONDS if reason else CHECK_SECONDS)

    async def _check(self) -> str:
        """Why it is not known that the node is current; nothing if it is."""
        began = clock.monotonic()
        try:
            await self.sync()
        except LogUnavailable as error:
            return str(error)
        self._confirmed_at = began
        return ""

    def _tell(self, reason: str) -> None:
        status, current = self._replica.status, self.current
        gauges = self._metrics
        gauges.applied.set(self._replica.applied)
        gauges.commit.set(status.commit)
        gauges.term.set(status.term)
        gauges.steward.set(status.is_steward)
        gauges.current.set(current)
        if self._told != (current, status.steward):
            self._told = (current, status.steward)
            told = {"current": current, "steward": status.steward, "term": status.term, "applied": self.applied}
            log.info("keeper_standing", extra=told | ({} if current else {"reason": reason}))

    async def _round(self) -> int:
        began = clock.monotonic()
        try:
            async with asyncio.timeout(self._sync_seconds):
                index = await self._replica.sync()
        except TimeoutError as error:
            raise LogUnavailable(f"not sure within {self._sync_seconds:g} s to have applied everything") from error
        self._metrics.sync_seconds.observe(clock.monotonic() - began)
        return index
