"""The log port on a member: a thread for Raft, bridged to the event loop.

The member's thread steps when something came or is due, does all writing and syncing, and hands commits and answers
over to the loop. Readers take committed entries from memory where they are recent and from the write-ahead log where
not; the no-ops of elections are blank.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Self

from consensus import clock, entropy
from consensus.errors import InvalidCommand, LogError, LogUnavailable
from consensus.log import MAX_PAYLOAD_BYTES, Entry, LogStatus
from consensus.raft.core import Core, Timing
from consensus.raft.inbox import Inbox
from consensus.raft.journal import REGULAR, Journal, decode
from consensus.raft.links import Transport
from consensus.raft.member import Member
from consensus.tail import OVERHEAD_BYTES, Tail
from consensus.wal import DEFAULT_SEGMENT_BYTES

MAX_PENDING_BYTES = 64 * 1024 * 1024

_STEP_SECONDS = 0.02  # between two looks at what is due
_RETIME_SECONDS = 1.0
_GATHER_PART = 20  # of the round trip to the nearest member
_MOST_GATHER_SECONDS = 0.004
_BEHIND_SECONDS = 1.0  # between two looks at whether entries have passed this member by

_logger = logging.getLogger(__name__)


class RaftLog:
    """One member's log. Made by `open` within a running event loop, to which it belongs."""

    def __init__(self, peers: tuple[str, ...], member: Member, transport: Transport) -> None:
        self._peers = peers
        self._member = member
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._wake = threading.Event()
        self._inbox = Inbox(self._wake.set)
        self._orders: list[Callable[[], None]] = []
        self._ordering = threading.Lock()
        self._pending_bytes = 0
        self._tail = Tail()
        self._commit = member.core.commit
        self._handed = self._commit  # on the member's thread
        self._retime_at = 0.0
        self._gather_seconds = self._gather_until = 0.0
        self._watchers: set[asyncio.Future[None]] = set()
        self._failure: LogError | None = None
        self._closing = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="raft", daemon=True)

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        me: str,
        peers: tuple[str, ...],
        transport: Transport,
        applied: int,
        segment_bytes: int = DEFAULT_SEGMENT_BYTES,
    ) -> Self:
        """Opens or creates the member's part of the log; blocks while it is read and checked. `applied` is the last
        entry that the state has applied.

        Raises StateRefused (the log ends before that), LogCorrupt, LogFull, and LogUnavailable if another process holds
        the log or the disk fails.
        """
        journal = Journal.open(folder, applied, segment_bytes=segment_bytes)
        try:
            core = Core(me, peers, journal, transport.send, timing=Timing(), chance=entropy.fraction, applied=applied)
            return cls._begun(peers, core, transport)
        except BaseException:
            journal.wal.close()
            raise

    @classmethod
    def _begun(cls, peers: tuple[str, ...], core: Core, transport: Transport) -> Self:
        commits: list[Callable[[int], None]] = []
        member = Member(
            core, lambda commit: commits[0](commit), first_request=int.from_bytes(entropy.token_bytes(6), "big")
        )
        log = cls(peers, member, transport)
        commits.append(log._hand_over)
        transport.start(log._inbox.put, log._linked)
        log._thread.start()
        return log

    async def append(self, payload: bytes) -> int:
        """As the port says. While MAX_PENDING_BYTES are under way, further ones are refused (LogUnavailable, and then
        certainly not in the log) instead of waiting."""
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise InvalidCommand(f"an entry has at most {MAX_PAYLOAD_BYTES} bytes, this one {len(payload)}")
        size = len(payload) + OVERHEAD_BYTES
        if self._pending_bytes + size > MAX_PENDING_BYTES:
            raise LogUnavailable(f"{self._pending_bytes} bytes are under way already; try again later")
        self._pending_bytes += size
        try:
            return await self._ask(lambda done: self._member.propose(payload, done))
        finally:
            self._pending_bytes -= size

    async def entries(self, after: int) -> AsyncIterator[tuple[Entry, ...]]:
        """As the port says."""
        while not self._closed:
            if self._failure is not None:
                raise LogUnavailable(str(self._failure)) from self._failure
            if after >= self._commit:
                await self._change()
                continue
            commit = self._commit  # what is behind it now may be another entry by the time that it is committed
            found = self._tail.batch(after) if after >= self._member.core.journal.first - 1 else ()
            found = found or await asyncio.to_thread(self._member.core.journal.wal.read, after)
            batch, after = _committed(found, after, commit)
            if batch and not self._closed:
                yield batch

    async def barrier(self) -> int:
        """As the port says: the leader's commit index, once a majority has said that it still leads."""
        return await self._ask(self._member.read_index)

    async def trim(self, upto: int, *, keep_bytes: int = 0) -> None:
        """As the port says: whole segments go, never the one that is being written."""
        await self._ask(lambda done: done(self._trim(upto, keep_bytes)))

    async def behind(self) -> str:
        """See Bridged."""
        while (sender := self._member.core.snapshot_from) is None:
            self._check_usable()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_BEHIND_SECONDS):
                    await self._change()
        return sender

    async def term_at(self, index: int) -> int | None:
        """See Bridged."""
        return await self._ask(lambda done: done(self._member.core.journal.term(index) or 0)) or None

    async def expect(self, base: tuple[int, int]) -> None:
        """See Bridged."""
        await self._ask(lambda done: done(_tried(lambda: self._member.core.journal.begin_from(base))))

    async def restart(self, base: tuple[int, int]) -> None:
        """See Bridged."""
        await self._ask(lambda done: done(_tried(lambda: self._member.restart(*base))))

    async def transfer(self) -> bool:
        """Before a planned stop: hands leadership to the member that is nearest to having everything. False if this one
        does not lead or none can take over."""
        try:
            return bool(await self._ask(lambda done: done(int(self._member.core.transfer(None)))))
        except LogUnavailable:
            return False

    @property
    def status(self) -> LogStatus:
        """As the port says."""
        core = self._member.core
        return LogStatus(
            term=core.term,
            steward=core.leader,
            is_steward=core.is_leader,
            first=min(core.journal.first, self._commit + 1),
            commit=self._commit,
        )

    async def close(self) -> None:
        """As the port says."""
        self._closing.set()
        self._wake.set()
        await asyncio.to_thread(self._thread.join)
        if self._closed:
            return
        self._closed = True
        self._announce()
        self._inbox.close()
        await asyncio.to_thread(self._transport.close)
        self._member.core.journal.wal.close()

    # On the loop

    async def _ask(self, order: Callable[[Callable[[int | LogError], None]], None]) -> int:
        """Has the member's thread carry out an order; its answer."""
        self._check_usable()
        future: asyncio.Future[int] = self._loop.create_future()

        def done(result: int | LogError) -> None:
            with contextlib.suppress(RuntimeError):  # a loop that is closed has nobody left to be told
                self._loop.call_soon_threadsafe(_settle, future, result)

        with self._ordering:
            self._orders.append(lambda: order(done))
        self._wake.set()
        return await future

    def _check_usable(self) -> None:
        if self._closing.is_set():
            raise LogUnavailable("the log is closed")
        if self._failure is not None:
            raise LogUnavailable(str(self._failure)) from self._failure

    async def _change(self) -> None:
        watcher: asyncio.Future[None] = self._loop.create_future()
        self._watchers.add(watcher)
        try:
            await watcher
        finally:
            self._watchers.discard(watcher)

    def _announce(self) -> None:
        for watcher in self._watchers:
            if not watcher.done():
                watcher.set_result(None)

    def _take_over(self, commit: int, entries: tuple[Entry, ...], failure: LogError | None) -> None:
        self._commit = max(self._commit, commit)
        for entry in entries:
            self._tail.add(entry)
        self._failure = self._failure or failure
        self._announce()

    # On the member's thread, or any

    def _linked(self, peer: str, up: bool) -> None:
        self._member.linked(peer, up)
        self._wake.set()

    def _run(self) -> None:
        failure: LogError = LogUnavailable("the log is closed")
        try:
            while not self._closing.is_set():
                self._work()
        except LogError as error:
            failure = error
        except Exception as error:
            # Nobody else would notice the end of this thread.
            _logger.exception("raft_failed")
            failure = LogUnavailable(f"the log's thread failed: {error!r}")
        self._end(failure)

    def _work(self) -> None:
        self._await_work()
        if not self._member.has_work:  # what it has not taken stays where it is bounded
            for peer, message in self._inbox.take():
                self._member.receive(peer, message)
        for order in self._take_orders():
            order()
        self._retime()
        self._member.step()

    def _await_work(self) -> None:
        """Until something is to be done. While entries are under way, what comes within a small part of a round trip
        shares a step, and so one sync and one message to each member; what comes alone does not wait."""
        if not self._member.has_work and self._wake.wait(_STEP_SECONDS):
            if self._member.under_way:
                self._closing.wait(max(0.0, self._gather_until - clock.monotonic()))
            self._gather_until = clock.monotonic() + self._gather_seconds
        self._wake.clear()

    def _take_orders(self) -> list[Callable[[], None]]:
        with self._ordering:
            orders, self._orders = self._orders, []
        return orders

    def _end(self, failure: LogError) -> None:
        """Whoever waits, now or later, is told."""
        if not self._closing.is_set():
            _logger.error("raft_stopped", extra={"reason": str(failure)})
            self._hand_over(self._commit, failure)
        self._closing.set()
        self._member.close()
        for order in self._take_orders():
            order()
        self._member.close()

    def _hand_over(self, commit: int, failure: LogError | None = None) -> None:
        """Newly committed entries, or the end, to the loop."""
        journal = self._member.core.journal
        fresh = journal.recent(self._handed + 1, commit + 1)
        self._handed = commit
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._take_over, commit, fresh, failure)

    def _trim(self, upto: int, keep_bytes: int) -> int | LogError:
        journal = self._member.core.journal
        # The last entry stays: a member has to know its term.
        upto = min(upto, self._member.core.commit, journal.wal.commit - 1)
        return _tried(lambda: journal.wal.trim(upto, keep_bytes=keep_bytes))

    def _retime(self) -> None:
        """Elections wait for as long as the measured distances ask for, and steps as these allow."""
        at = clock.monotonic()
        if at < self._retime_at:
            return
        self._retime_at = at + _RETIME_SECONDS
        measured = [each for each in map(self._transport.round_trip_seconds, self._peers) if each]
        self._member.core.retime(Timing.for_round_trip(max(measured, default=0.0)))
        self._gather_seconds = min(_MOST_GATHER_SECONDS, min(measured, default=0.0) / _GATHER_PART)


def _committed(found: tuple[Entry, ...], after: int, commit: int) -> tuple[tuple[Entry, ...], int]:
    """What readers see of raw entries up to `commit`, and where to go on."""
    batch: list[Entry] = []
    for raw in found:
        if raw.index > commit:
            break
        after = raw.index
        command, index, _ = decode(raw.index, raw.payload)
        batch.append(Entry(index, command[1:], blank=command[:1] != REGULAR))
    return tuple(batch), after


def _tried(work: Callable[[], None]) -> int | LogError:
    try:
        work()
    except LogError as error:
        return error
    return 0


def _settle(future: asyncio.Future[int], result: int | LogError) -> None:
    if future.done():
        return
    if isinstance(result, LogError):
        future.set_exception(result)
    else:
        future.set_result(result)
