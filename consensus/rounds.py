"""Rounds that callers share: whoever joins gets what a round came to that began after the call, never an earlier one.

This is what a linearizable read asks of a round trip to the steward: it must have begun after the read did, and may
serve every read that began before it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Rounds(Generic[_T]):
    """Runs `run`, at most `at_once` times at a time and with one more round waiting, however many callers there are.
    Belongs to one event loop."""

    def __init__(self, run: Callable[[], Awaitable[_T]], *, at_once: int = 1) -> None:
        self._run = run
        self._under_way = asyncio.Semaphore(at_once)
        self._waiting: asyncio.Task[_T] | None = None
        self._tasks: set[asyncio.Task[_T]] = set()

    async def join(self) -> _T:
        """What the next round comes to. Raises what `run` raises; a caller that is cancelled disturbs no other."""
        if self._waiting is None:
            self._waiting = asyncio.create_task(self._round(), name="round")
            self._tasks.add(self._waiting)
            self._waiting.add_done_callback(self._end)
        return await asyncio.shield(self._waiting)

    async def close(self) -> None:
        """Rounds under way are cancelled, and with them whoever waits."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _round(self) -> _T:
        async with self._under_way:
            self._waiting = None  # who comes from here on is not covered by this round
            return await self._run()

    def _end(self, task: asyncio.Task[_T]) -> None:
        self._tasks.discard(task)
        if self._waiting is task:  # cancelled before it began
            self._waiting = None
        if not task.cancelled():
            task.exception()  # everybody who waited may have been cancelled; then nobody else asks for it
