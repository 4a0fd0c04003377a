"""Blocking work in threads, which a cancelled caller can neither cut short nor leave holding something."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import TypeVar

T = TypeVar("T")


async def finished(future: Future[T]) -> T:
    """The future's result. Cancelling the caller leaves the job alone: it runs to its end."""
    return await asyncio.shield(asyncio.wrap_future(future))


async def run(executor: Executor, job: Callable[[], T]) -> T:
    """What `job` returns, or raises, in a thread of `executor`."""
    return await finished(executor.submit(job))


async def obtain(executor: Executor, job: Callable[[], T], release: Callable[[T], None]) -> T:
    """Like `run` for a job that takes hold of something; it is released when the caller is gone by then."""
    future = executor.submit(job)
    try:
        return await finished(future)
    except asyncio.CancelledError:
        future.add_done_callback(lambda done: None if done.exception() else release(done.result()))
        raise
