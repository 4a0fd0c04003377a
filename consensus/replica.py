"""A replica: the log and the state that is its function, kept together.

Entries are applied in order, in one thread of their own, many a transaction; a proposal is answered when its entry has
been applied and committed. Now and then the state is made durable and the log trimmed below that.

A replica stops for good at the first thing it cannot trust: a log that fails, a state that raises. Whoever waits gets
LogUnavailable, `failed` says why, and the process that holds the replica should end and start afresh.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, TypeVar

from consensus import clock
from consensus.bridge import Bridge
from consensus.codec import encode
from consensus.commands import Command, EnrolProposer, Envelope, Outcome, Status
from consensus.errors import InvalidCommand, LogTrimmed, LogUnavailable, StateRefused
from consensus.log import Entry, Log, LogStatus
from consensus.snapshot import VerifiedSnapshot
from consensus.state import State

DEFAULT_KEEP_BYTES = 256 * 1024 * 1024
DEFAULT_CHECKPOINT_SECONDS = 300.0

_MAX_UNCLAIMED = 1024

_T = TypeVar("_T")
_logger = logging.getLogger(__name__)


class Replica:
    """Made by `open`. Belongs to one event loop."""

    def __init__(self, log: Log, state: State, keep_bytes: int) -> None:
        self._log = log
        self._state = state
        self._keep_bytes = keep_bytes
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="state")
        self._applied = state.applied
        self._turn = asyncio.Lock()  # to change the state
        self._bytes_since_checkpoint = 0
        self._checkpoint_due = asyncio.Event()
        self._appending = 0
        self._waiting: dict[int, asyncio.Future[Outcome]] = {}  # by the index of their entry
        self._unclaimed: dict[int, Outcome] = {}  # applied before the append that made the entry had returned
        self._followers: dict[asyncio.Future[None], int] = {}  # and the index that each waits for
        self._stopped: str | None = None
        self._failed: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        log: Log,
        state: State,
        *,
        keep_bytes: int = DEFAULT_KEEP_BYTES,
        checkpoint_seconds: float = DEFAULT_CHECKPOINT_SECONDS,
        bridge: Bridge | None = None,
    ) -> AsyncIterator[Replica]:
        """Applies entries while the block runs, beginning with those the state has not seen; wait for
        `sync()` to have caught up. Log and state stay the caller's, who closes them behind the
        block; within it, only the replica touches the state.

        A checkpoint is taken after `keep_bytes` / 4 of log, or after `checkpoint_seconds` if anything was applied; then
        all but the newest `keep_bytes` of the log are trimmed. With a bridge, entries that nobody keeps any more are
        bridged by a snapshot of another node, and others get theirs here.

        Raises StateRefused if the state is ahead of the log, LogTrimmed if the log no longer has what the state lacks.
        """
        _check_fit(log.status, state.applied)
        replica = cls(log, state, keep_bytes)
        running = asyncio.create_task(replica._run(checkpoint_seconds, bridge), name="replica")
        try:
            yield replica
        finally:
            running.cancel()
            await asyncio.wait([running])
            replica._stop("the replica is closed")
            await asyncio.to_thread(replica._thread.shutdown)

    @property
    def applied(self) -> int:
        """The index of the last entry that is applied and committed; readers of the state see it."""
        return self._applied

    @property
    def status(self) -> LogStatus:
        """Where the log stands."""
        return self._log.status

    @property
    def failed(self) -> asyncio.Future[Exception]:
        """Await it for the reason why the replica has stopped for good; it never ends otherwise."""
        return asyncio.shield(self._failed)

    async def enrol(self, name: str) -> int:
        """A new identity to propose with. Each call makes another one, so that an unanswered one may be asked again.
        Raises InvalidCommand (a name that is not 1 to 255 printable ASCII characters), LogFull, LogUnavailable."""
        outcome = await self.propose(0, 0, 0, EnrolProposer(name))
        if outcome.status is not Status.DONE:
            raise InvalidCommand(f"cannot enrol a proposer of that name: {outcome.reason}")
        return outcome.index

    async def propose(self, proposer: int, sequence: int, acknowledged: int, command: Command) -> Outcome:
        """The outcome of the command, once that is durable in the log and committed in the state.

        Asked again with the same proposer and sequence, also after a restart, it is applied no second time and has the
        same outcome, until `acknowledged` of a later call reaches `sequence`.
        Raises InvalidCommand (over MAX_COMMAND_BYTES; nothing happened), LogFull (nothing happened, nor will), and
        LogUnavailable (it may have happened, or may yet: ask again with the same sequence).
        """
        self._check_running()
        payload = encode(Envelope(proposer, sequence, acknowledged, clock.wall_ms(), command))
        self._appending += 1
        try:
            index = await self._log.append(payload)
        finally:
            self._appending -= 1
        return await self._outcome(index)

    async def barrier(self) -> int:
        """An index at least that of every proposal answered before the call, anywhere. Raises LogUnavailable."""
        self._check_running()
        return await self._log.barrier()

    async def sync(self) -> int:
        """Returns once readers of the state see everything that was acknowledged anywhere before the call; up to which
        index they do at least. Raises LogUnavailable."""
        index = await self.barrier()
        await self.wait_applied(index)
        return index

    async def wait_applied(self, index: int) -> None:
        """Returns once the entry at `index` and all before it are applied. Raises LogUnavailable."""
        if index <= self._applied:
            return
        self._check_running()
        follower: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._followers[follower] = index
        try:
            await follower
        finally:
            del self._followers[follower]

    async def _outcome(self, index: int) -> Outcome:
        unclaimed = self._unclaimed.pop(index, None)
        if unclaimed is not None:
            return unclaimed
        self._check_running()
        if index <= self._applied:
            raise LogUnavailable("applied, but the outcome was not kept for so long; ask again")
        waiting: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiting[index] = waiting
        try:
            return await waiting
        finally:
            del self._waiting[index]

    async def _run(self, checkpoint_seconds: float, bridge: Bridge | None) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._apply_entries())
                tasks.create_task(self._take_checkpoints(checkpoint_seconds))
                if bridge is not None:
                    tasks.create_task(bridge.take_when_wanted(self._state, self._in_thread))
                    tasks.create_task(self._cross_gaps(bridge))
        except* Exception as group:
            self._fail(group.exceptions[0])

    def _fail(self, cause: Exception) -> None:
        _logger.error("replica_failed", exc_info=cause)
        self._stop(f"the replica has stopped for good: {cause}")
        self._failed.set_result(cause)

    async def _apply_entries(self) -> None:
        while True:
            before = self._applied
            try:
                async for batch in self._log.entries(before):
                    async with self._turn:
                        await self._apply_batch(batch)
            except LogTrimmed:
                if self._applied == before:
                    raise
            else:
                raise LogUnavailable("the log was closed")

    async def _apply_batch(self, batch: Sequence[Entry]) -> None:
        fresh = [entry for entry in batch if entry.index > self._applied]  # a snapshot may have brought the others
        if fresh:
            self._publish(fresh, await self._in_thread(partial(self._state.apply, fresh)))

    async def _cross_gaps(self, bridge: Bridge) -> None:
        while True:
            snapshot = await bridge.fetched(lambda: self._applied)
            async with self._turn:
                if snapshot.manifest.applied > self._applied:
                    await bridge.install(snapshot, self._put_in_force)

    async def _put_in_force(self, snapshot: VerifiedSnapshot) -> None:
        await self._in_thread(partial(self._state.install, snapshot))
        self._applied = self._state.applied
        self._unclaimed.clear()
        for index, waiting in self._waiting.items():
            if index <= self._applied and not waiting.done():
                waiting.set_exception(LogUnavailable("applied elsewhere, and its outcome is in the state; ask again"))
        self._tell_followers()

    def _publish(self, batch: Sequence[Entry], outcomes: Sequence[Outcome]) -> None:
        self._applied = batch[-1].index
        if not self._appending:
            self._unclaimed.clear()
        for entry, outcome in zip(batch, outcomes, strict=True):
            self._bytes_since_checkpoint += len(entry.payload)
            waiting = self._waiting.get(entry.index)
            if waiting is None:
                if self._appending:
                    self._unclaimed[entry.index] = outcome
            elif not waiting.done():
                waiting.set_result(outcome)
        while len(self._unclaimed) > _MAX_UNCLAIMED:
            del self._unclaimed[next(iter(self._unclaimed))]
        self._tell_followers()
        if self._bytes_since_checkpoint >= self._keep_bytes // 4:
            self._checkpoint_due.set()

    def _tell_followers(self) -> None:
        for follower, index in self._followers.items():
            if index <= self._applied and not follower.done():
                follower.set_result(None)

    async def _take_checkpoints(self, every_seconds: float) -> None:
        durable = 0
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(every_seconds):
                    await self._checkpoint_due.wait()
            self._checkpoint_due.clear()
            self._bytes_since_checkpoint = 0
            if self._applied > durable:
                durable = await self._in_thread(self._state.checkpoint)
                await self._log.trim(durable, keep_bytes=self._keep_bytes)

    async def _in_thread(self, call: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    def _check_running(self) -> None:
        if self._stopped is not None:
            raise LogUnavailable(self._stopped)

    def _stop(self, reason: str) -> None:
        self._stopped = self._stopped or reason
        futures: list[asyncio.Future[Any]] = [*self._waiting.values(), *self._followers]
        for future in futures:
            if not future.done():
                future.set_exception(LogUnavailable(self._stopped))


def _check_fit(status: LogStatus, applied: int) -> None:
    if applied > status.commit:
        raise StateRefused(
            f"the state has applied entry {applied}, but the log ends at entry {status.commit}: the log was cut, lost "
            f"or restored from an older copy, and going on would give indexes a second time. Restore log and state "
            f"from one and the same backup, or let this node rejoin as a new member and copy its data from a peer."
        )
    if applied + 1 < status.first:
        raise LogTrimmed(
            f"the state has applied entry {applied}, but the log begins at entry {status.first}: the state was lost "
            f"or restored from an older copy. Restore a state of entry {status.first - 1} or later from a backup or a "
            f"peer."
        )
