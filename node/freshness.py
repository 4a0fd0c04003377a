"""Whether this node's state is as new as a read has to see it: the one place that decides what a read costs.

A read is linearizable if the snapshot it is answered from is opened after `fresh()` has returned. Today a member of a
cluster asks the steward, a round trip that reads which begin in the meantime share; with a read lease the answer will
be at hand, and nothing but this module has to know.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from consensus import clock
from consensus.errors import LogUnavailable
from consensus.rounds import Rounds
from node.errors import StateUnconfirmed

CATCH_UP_SECONDS = 15.0
ELECTION_SECONDS = 8.0  # what a change of the steward takes, on a bad day
OUTAGE_SECONDS = 1.0

_FIRST_PAUSE_SECONDS = 0.02
_LOOK_SECONDS = 0.025
_LONGEST_PAUSE_SECONDS = 0.5

log = logging.getLogger(__name__)


class Freshness(Protocol):
    """Asked before a read that must not be stale."""

    async def fresh(self) -> None:
        """Returns once a snapshot opened from now on has everything that was acknowledged anywhere before the call.
        Raises StateUnconfirmed."""


class AlwaysFresh:
    """A node that stands alone has applied whatever it acknowledged, once it has `caught_up`."""

    async def fresh(self) -> None:
        """At once."""


class Standing(Protocol):
    """What a keeper says of itself."""

    @property
    def current(self) -> bool:
        """Whether it has applied all that was acknowledged."""


async def caught_up(ask: Callable[[], Awaitable[Standing]], stopping: asyncio.Event) -> None:
    """Before a node that stands alone is served: after a power loss its state may lack what was acknowledged, until the
    keeper has read its log again. Where the keeper cannot, reads go on after CATCH_UP_SECONDS with what is there. `ask`
    raises LogUnavailable while there is no keeper."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(CATCH_UP_SECONDS):
            while not stopping.is_set():
                with contextlib.suppress(LogUnavailable):
                    if (await ask()).current:
                        return
                await asyncio.sleep(_LOOK_SECONDS)
    if not stopping.is_set():
        log.warning(
            "gateway_behind", extra={"reason": "the keeper has not read its log to the end; serving what is there"}
        )


class Confirmed:
    """A member's. `sync` asks the keeper: it returns once the node has applied everything acknowledged before the call,
    and raises LogUnavailable.

    A round is asked for again for as long as an election may take. While the last one came to nothing the next ones
    give up soon, so that in an outage nobody waits long for the refusal.
    """

    def __init__(
        self,
        sync: Callable[[], Awaitable[object]],
        *,
        election_seconds: float = ELECTION_SECONDS,
        outage_seconds: float = OUTAGE_SECONDS,
    ) -> None:
        self._sync = sync
        self._election_seconds = election_seconds
        self._outage_seconds = outage_seconds
        self._confirmed = True
        self._rounds = Rounds(self._round)

    async def fresh(self) -> None:
        """See Freshness."""
        await self._rounds.join()

    async def close(self) -> None:
        """Whoever waits is cancelled."""
        await self._rounds.close()

    async def _round(self) -> None:
        seconds = self._election_seconds if self._confirmed else self._outage_seconds
        deadline = clock.monotonic() + seconds
        pause, reason = _FIRST_PAUSE_SECONDS, f"no answer within {seconds:g} s"
        self._confirmed = False
        try:
            async with asyncio.timeout(seconds):
                while True:
                    try:
                        await self._sync()
                    except LogUnavailable as error:
                        reason = str(error)
                    else:
                        self._confirmed = True
                        return
                    await asyncio.sleep(min(pause, max(deadline - clock.monotonic(), 0)))
                    pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        except TimeoutError as error:
            raise StateUnconfirmed(reason) from error
