"""One blob on its way from other stores into ours, and those who follow it meanwhile.

Its pieces come by several requests at once (`replication.schedule` says which) and go to the disk as they come. Shown
to a follower is only what is proven (`replication.proof`), and that never changes. A part that is wrong is fetched
again: from the others, if one holder gave all of it, else from one holder alone, so that the next lie is somebody's.
If everybody's bytes are wrong it may be the parts in the log that are: then the blob is tried once more without them,
and nothing more of it is shown before all of it is known to be what its digest says.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Coroutine
from contextlib import suppress
from typing import Any

from consensus import clock
from consensus.names import StoreId
from replication.directory import BlobNotHeld, PeerError, PeerUnreachable, PeerWrong
from replication.hearsay import Hearsay
from replication.schedule import MOST_FLOWS, Flow, Schedule, Trouble
from replication.sources import (
    BlobNowhere,
    HoldersUnreachable,
    Source,
    TransferEnded,
    TransferError,
    TransferFalse,
    Wanted,
    require_size,
)
from replication.stores import Arrival, ArrivalStore, BlobNotFound, BlobStore, DigestMismatch, StoreError

CHECK_BYTES = 1024 * 1024  # hashed at a time, as soon as they are there in order
LOOK_SECONDS = 0.25  # between two looks at flows that may be too slow
PACE_SECONDS = 0.02  # between two words to a follower
PACE_EACH_SECONDS = 0.0002  # more for each other follower, so that many cost no more than few
HEARTBEAT_SECONDS = 5.0
MAX_NEEDS = 64


class Transfer:
    """A blob that arrives. `run` is called once. `most_flows` bounds its requests at one time, and may change; with 0
    it pauses. `left` is called when the last has gone of those who followed it."""

    def __init__(
        self, wanted: Wanted, source: Source, hearsay: Hearsay | None = None, left: Callable[[], None] = lambda: None
    ) -> None:
        self.wanted = wanted
        self.left = left
        self.began = clock.monotonic()
        self.checked_bytes = 0  # hashed so far
        self.arrival: Arrival | None = None
        self.found = False  # it was here already
        self.verified = False
        self.failure: TransferError | StoreError | None = None
        self.received_bytes = 0  # right or wrong, also twice
        self.resumed_bytes = 0
        self.givers: set[StoreId] = set()
        self.named: set[StoreId] = set()  # as holders, by those who have asked since
        self.liars: set[StoreId] = set()  # they gave wrong bytes
        self.disbelieved = False  # the parts; then the liars are none
        self.troubles: defaultdict[Trouble, int] = defaultdict(int)
        self.followings: set[Following] = set()
        self.most_flows = MOST_FLOWS
        self.asked = False  # somebody has followed it, and may have left
        self.suspended = False  # it ends without having failed, and may go on later
        self.changed = asyncio.Event()
        self._hearsay = hearsay or Hearsay()
        self._source = source
        self._stirred = asyncio.Event()
        self._flows: dict[Flow, asyncio.Task[None]] = {}
        self._writes: set[asyncio.Task[None]] = set()
        self._locks: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
        # Of each piece, who gave what is not proven; None for what was there before.
        self._unproven: defaultdict[int, set[StoreId | None]] = defaultdict(set)
        self._disk_failure: StoreError | None = None
        self._last_trouble = "no other store is known to hold the blob"

    @property
    def flows(self) -> int:
        """Requests under way."""
        return len(self._flows)

    @property
    def flows_by_store(self) -> Counter[StoreId]:
        """Which store is asked by how many of them."""
        return Counter(flow.holder for flow in self._flows)

    @property
    def idle(self) -> bool:
        """Whether nobody waits for it, and some of it is still to come."""
        return not self.followings and not (self.arrival and self.arrival.pieces.whole)

    async def run(self, blobs: BlobStore, arrivals: ArrivalStore, after: Collection[asyncio.Task[None]] = ()) -> None:
        """Brings the blob into `blobs`, whether or not anybody follows, once those `after` which it comes have let go
        of its arrival. What goes wrong is in `failure`."""
        try:
            if after:
                await asyncio.wait(after)
            await self._obtain(blobs, arrivals)
            self.verified = True
        except (TransferError, StoreError) as error:
            self.failure = error
        except BaseException:
            self.failure = TransferEnded("the node stops", self.wanted.digest)
            raise
        finally:
            self._tell()

    def follow(self, start: int, stop: int) -> Following:
        """Somebody wants the bytes from `start` to before `stop`."""
        self.asked = True
        following = Following(self, start, stop)
        self.followings.add(following)
        self._stirred.set()
        return following

    def limit(self, reached: int, stop: int) -> int:
        """Up to where somebody may read who wants what is before `stop` and was shown what is before `reached`."""
        if self.verified:
            return stop
        if self.arrival is None:
            return reached
        return max(reached, min(self.arrival.pieces.proven_extent(reached), stop))

    async def _obtain(self, blobs: BlobStore, arrivals: ArrivalStore) -> None:
        wanted = self.wanted
        with suppress(BlobNotFound):  # it came while this was decided
            self.found = await blobs.stat(wanted.digest) == wanted.size_bytes
            if self.found:
                return
        arrival = await arrivals.take_up(wanted.digest, wanted.size_bytes, wanted.parts)
        self.resumed_bytes = arrival.pieces.received_bytes
        self._unproven.update((piece, {None}) for piece in arrival.pieces.unproven())
        self.arrival = arrival
        self._tell()
        resumable = False
        try:
            await self._receive(arrival)
            await arrival.commit(wanted.digest)
        except DigestMismatch as error:
            if len(self.givers) == 1 and not self.resumed_bytes:
                self.liars |= self.givers
            raise TransferFalse(
                f"what came hashes to {error.actual}, not to {error.expected}", wanted.digest
            ) from error
        except (TransferError, asyncio.CancelledError):
            resumable = arrival.pieces.received_bytes > 0
            raise
        finally:
            with suppress(StoreError):  # what is left is removed later
                await (arrival.suspend() if resumable else arrival.discard())

    async def _receive(self, arrival: Arrival) -> None:
        schedule = self._schedule(arrival)
        checking = asyncio.get_running_loop().create_task(self._check(arrival))
        try:
            while not arrival.pieces.whole:
                self._direct(arrival, schedule)
                now = clock.monotonic()
                if self._hearsay.is_over(now, hopeless=schedule.hopeless(now)):
                    schedule = await self._disbelieve(arrival, schedule)
                    continue
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECONDS):
                        await self._stirred.wait()
                self._stirred.clear()
            await checking
        finally:
            checking.cancel()
            for task in self._flows.values():
                task.cancel()
            # A write goes on when its flow is cut, and `checking` when it is cancelled; nothing may outlive this.
            await asyncio.gather(checking, *self._flows.values(), return_exceptions=True)
            await asyncio.gather(*self._writes, return_exceptions=True)

    def _direct(self, arrival: Arrival, schedule: Schedule) -> None:
        """Begins flows and cuts others. Raises StoreError."""
        now = clock.monotonic()
        if self._disk_failure:
            raise self._disk_failure
        for flow in schedule.overdue(now):
            self._flows[flow].cancel()
        schedule.most_flows = self.most_flows
        schedule.admit(self._hearsay.others(now, hopeless=schedule.hopeless(now)))
        needs = self._needs(arrival)
        while begun := schedule.next(needs, now):
            self._flows[begun] = asyncio.get_running_loop().create_task(self._bring(arrival, schedule, begun))

    def _schedule(self, arrival: Arrival) -> Schedule:
        """With one holder alone, as long as it gives, if no lie of several could ever be told from the truth."""
        spread = arrival.pieces.provable
        return Schedule(arrival.pieces, self.wanted.holders, distance=self._source.distance, spread=spread)

    async def _disbelieve(self, arrival: Arrival, schedule: Schedule) -> Schedule:
        """The way out where nobody is left to be asked. Raises TransferError if there is none."""
        if schedule.lost:
            raise BlobNowhere("none of the stores that should hold the blob has it", self.wanted.digest)
        if not schedule.deceived:
            raise HoldersUnreachable(self._last_trouble, self.wanted.digest)
        if not self.wanted.parts:
            raise TransferFalse("whoever has the blob gives wrong bytes", self.wanted.digest)
        await asyncio.gather(*self._writes)
        await arrival.disbelieve()
        self.disbelieved, self.resumed_bytes = True, 0
        self.liars.clear()
        self.givers.clear()
        self._unproven.clear()
        self._tell()
        return self._schedule(arrival)

    def _needs(self, arrival: Arrival) -> list[int]:
        """The first bytes that those who follow lack."""
        found: dict[int, None] = {}
        for following in self.followings:
            offset = arrival.pieces.extent(following.limit)
            if offset < following.stop:
                found[offset] = None
            if len(found) == MAX_NEEDS:
                break
        return [*found]

    async def _bring(self, arrival: Arrival, schedule: Schedule, flow: Flow) -> None:
        trouble = None
        try:
            await self._receive_flow(arrival, schedule, flow)
            trouble = Trouble.WRONG if flow.holder in self.liars else None
        except PeerError as error:
            trouble = _trouble(error)
            self._last_trouble = str(error)
        except asyncio.CancelledError:
            trouble = self._why_cut(schedule, flow)
            raise
        finally:
            del self._flows[flow]
            if flow.piece in schedule.doubted:  # what comes next comes from one holder again
                flow.void = True
                self._spawn(self._drop(arrival, schedule, flow.piece, flow.holder))
            schedule.ended(flow, trouble, clock.monotonic())
            if trouble:
                self.troubles[trouble] += 1
            if trouble is Trouble.NOT_HELD:
                self._hearsay.untrue(flow.holder, self.wanted.digest)
            self._stirred.set()

    async def _receive_flow(self, arrival: Arrival, schedule: Schedule, flow: Flow) -> None:
        stop = arrival.pieces.stop(flow.piece)
        async with self._source.blob(flow.holder, self.wanted.digest, flow.position, stop) as stream:
            require_size(stream, self.wanted.size_bytes)
            async for chunk in stream.chunks:
                if flow.position + len(chunk) > stop:
                    raise PeerWrong("a holder sends more than was asked for")
                begin = flow.position
                schedule.brought(flow, len(chunk), clock.monotonic())
                self.received_bytes += len(chunk)
                self.givers.add(flow.holder)
                await asyncio.shield(self._spawn(self._add(arrival, schedule, flow, begin=begin, chunk=chunk)))
                if flow.void:
                    return
        if flow.position < stop:
            raise PeerUnreachable("a holder broke off")

    def _why_cut(self, schedule: Schedule, flow: Flow) -> Trouble | None:
        if flow.holder in self.liars:
            return Trouble.WRONG
        if flow.void and flow.piece not in schedule.doubted:  # somebody else has lied
            return None
        if flow.void or not schedule.is_stalled(flow, clock.monotonic()):
            return Trouble.OVERTAKEN
        self._last_trouble = "a holder stalls"
        return Trouble.STALLED

    def _spawn(self, writing: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """It goes on when the caller is cancelled: two writers of a piece at once would not know of each other."""
        task = asyncio.get_running_loop().create_task(writing)
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)
        return task

    async def _add(self, arrival: Arrival, schedule: Schedule, flow: Flow, *, begin: int, chunk: bytes) -> None:
        pieces, piece = arrival.pieces, flow.piece
        try:
            async with self._locks[piece]:
                known = pieces.reached(piece) - begin
                if flow.void or not 0 <= known < len(chunk):
                    return
                proven = pieces.proven(piece)
                self._unproven[piece].add(flow.holder)
                right = await arrival.write(piece, chunk[known:])
                if pieces.proven(piece) > proven:
                    self._unproven[piece] = {flow.holder}
                    schedule.doubted.discard(piece)
                if not right:
                    self._refute(arrival, schedule, piece)
                elif pieces.proven(piece) == pieces.reached(piece):
                    self._unproven.pop(piece)
                self._tell()
                if pieces.whole:
                    self._stirred.set()
        except StoreError as error:
            self._disk_failure = error
            self._stirred.set()

    def _refute(self, arrival: Arrival, schedule: Schedule, piece: int) -> None:
        """A part of the piece was wrong, and is not there any more."""
        schedule.drop(piece)
        self._stirred.set()
        givers = self._unproven.pop(piece)
        (giver, *others) = givers
        if others or giver is None:
            schedule.doubted.add(piece)
            return
        self._last_trouble = "a holder gives wrong bytes"
        self.liars.add(giver)
        schedule.expose(giver)
        for other in [other for other, givers in self._unproven.items() if giver in givers]:
            self._spawn(self._drop(arrival, schedule, other, giver))

    async def _drop(self, arrival: Arrival, schedule: Schedule, piece: int, giver: StoreId) -> None:
        """What is not proven of a piece does not count if this holder gave some of it."""
        async with self._locks[piece]:
            if giver in self._unproven[piece]:
                arrival.pieces.drop(piece)
                del self._unproven[piece]
                schedule.drop(piece)
                self._stirred.set()

    async def _check(self, arrival: Arrival) -> None:
        """Hashes what is there in order, while the rest comes."""
        try:
            checked, size_bytes = 0, self.wanted.size_bytes
            while checked < size_bytes:
                changed = self.changed
                pieces = arrival.pieces
                extent = pieces.proven_extent(checked) if pieces.provable else pieces.extent(checked)
                if extent - checked >= CHECK_BYTES or extent == size_bytes:
                    checked = self.checked_bytes = await arrival.check(min(extent, checked + CHECK_BYTES))
                else:
                    await changed.wait()
        except StoreError as error:
            self._disk_failure = error
            self._stirred.set()
            raise

    def _tell(self) -> None:
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()


def _trouble(error: PeerError) -> Trouble:
    match error:
        case BlobNotHeld():
            return Trouble.NOT_HELD
        case PeerWrong():
            return Trouble.WRONG
        case _:
            return Trouble.UNREACHABLE


class Following:
    """Somebody's interest in a part of a blob that arrives; ends with `leave`. What is before `limit` was shown."""

    def __init__(self, transfer: Transfer, start: int, stop: int) -> None:
        self.transfer = transfer
        self.limit = start
        self.stop = stop

    async def updates(self) -> AsyncIterator[int]:
        """Up to where may be read, each time that it has become more, and every HEARTBEAT_SECONDS; the first comes when
        the arrival is there. Ends when all may be read. Raises TransferError, StoreError."""
        transfer, start, told = self.transfer, self.limit, False
        while not transfer.verified:
            changed = transfer.changed
            limit = transfer.limit(self.limit, self.stop)
            if transfer.arrival and (limit > self.limit or not told):
                paced, told, self.limit = told, True, limit
                yield limit
                if start < limit == self.stop:
                    return
                if paced:
                    await asyncio.sleep(PACE_SECONDS + PACE_EACH_SECONDS * len(transfer.followings))
                continue
            if transfer.failure:
                raise transfer.failure
            try:
                async with asyncio.timeout(HEARTBEAT_SECONDS):
                    await changed.wait()
            except TimeoutError:
                yield self.limit

    def leave(self) -> None:
        """Idempotent."""
        if self in self.transfer.followings:
            self.transfer.followings.discard(self)
            if not self.transfer.followings:
                self.transfer.left()
