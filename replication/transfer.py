"""One blob on its way from other stores into ours, and those who follow it meanwhile.

Its pieces come by several requests at once (`replication.schedule` says which) and go to the disk as they come. What
has once been shown to a follower never changes: a second request for a piece only adds to what the first has brought,
and an arrival that turns out to be wrong is removed, never mended. The last HELD_BACK_BYTES of what a follower wants
are shown only once all of the blob is known to be what its digest says.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import suppress

from consensus import clock
from consensus.names import StoreId
from replication.directory import BlobNotHeld, PeerError, PeerUnreachable, PeerWrong
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

HELD_BACK_BYTES = 64 * 1024
CHECK_BYTES = 1024 * 1024  # hashed at a time, as soon as they are there in order
LOOK_SECONDS = 0.25  # between two looks at flows that may be too slow
PACE_SECONDS = 0.02  # between two words to a follower
PACE_EACH_SECONDS = 0.0002  # more for each other follower, so that many cost no more than few
HEARTBEAT_SECONDS = 5.0
MAX_NEEDS = 64


class Transfer:
    """A blob that arrives. `run` is called once. `most_flows` bounds its requests at one time, and may change."""

    def __init__(self, wanted: Wanted, source: Source, *, spread: bool = True) -> None:
        self.wanted = wanted
        self.began = clock.monotonic()
        self.checked_bytes = 0  # hashed so far
        self.arrival: Arrival | None = None
        self.found = False  # it was here already
        self.verified = False
        self.failure: TransferError | StoreError | None = None
        self.received_bytes = 0  # right or wrong, also twice
        self.resumed_bytes = 0
        self.givers: set[StoreId] = set()
        self.troubles: defaultdict[Trouble, int] = defaultdict(int)
        self.followings: set[Following] = set()
        self.most_flows = MOST_FLOWS
        self.asked = False  # somebody has followed it, and may have left
        self.changed = asyncio.Event()
        self._spread = spread
        self._source = source
        self._stirred = asyncio.Event()
        self._flows: dict[Flow, asyncio.Task[None]] = {}
        self._writes: set[asyncio.Task[None]] = set()
        self._locks: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._disk_failure: StoreError | None = None
        self._last_trouble = "no other store is known to hold the blob"

    @property
    def alone(self) -> bool:
        """Whether one store gave all of it."""
        return len(self.givers) == 1 and not self.resumed_bytes

    @property
    def flows(self) -> int:
        """Requests under way."""
        return len(self._flows)

    @property
    def flows_by_store(self) -> Counter[StoreId]:
        """Which store is asked by how many of them."""
        return Counter(flow.holder for flow in self._flows)

    async def run(self, blobs: BlobStore, arrivals: ArrivalStore) -> None:
        """Brings the blob into `blobs`, whether or not anybody follows. What goes wrong is in `failure`."""
        try:
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
        most = stop - HELD_BACK_BYTES
        if self.arrival is None or reached >= most:
            return reached
        return max(reached, min(self.arrival.pieces.extent(reached), most))

    async def _obtain(self, blobs: BlobStore, arrivals: ArrivalStore) -> None:
        wanted = self.wanted
        with suppress(BlobNotFound):  # it came while this was decided
            await blobs.stat(wanted.digest)
            self.found = True
            return
        arrival = await arrivals.take_up(wanted.digest, wanted.size_bytes)
        self.resumed_bytes = arrival.pieces.received_bytes
        self.arrival = arrival
        self._tell()
        resumable = False
        try:
            await self._receive(arrival)
            await arrival.commit(wanted.digest)
        except DigestMismatch as error:
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
        holders, distance = self.wanted.holders, self._source.distance
        schedule = Schedule(arrival.pieces, holders, distance=distance, spread=self._spread)
        checking = asyncio.get_running_loop().create_task(self._check(arrival))
        try:
            while not arrival.pieces.whole:
                self._direct(arrival, schedule)
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
            await asyncio.gather(checking, *self._flows.values(), *self._writes, return_exceptions=True)

    def _direct(self, arrival: Arrival, schedule: Schedule) -> None:
        """Begins flows and cuts others. Raises what there is no way out of."""
        now = clock.monotonic()
        if self._disk_failure:
            raise self._disk_failure
        for flow in schedule.overdue(now):
            self._flows[flow].cancel()
        schedule.most_flows = self.most_flows
        needs = self._needs(arrival)
        while begun := schedule.next(needs, now):
            self._flows[begun] = asyncio.get_running_loop().create_task(self._bring(arrival, schedule, begun))
        if schedule.hopeless(now):
            if schedule.lost:
                raise BlobNowhere("none of the stores that should hold the blob has it", self.wanted.digest)
            raise HoldersUnreachable(self._last_trouble, self.wanted.digest)

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
        except PeerError as error:
            trouble = _trouble(error)
            self._last_trouble = str(error)
        except asyncio.CancelledError:
            stalled = schedule.is_stalled(flow, clock.monotonic())
            trouble = Trouble.STALLED if stalled else Trouble.OVERTAKEN
            self._last_trouble = "a holder stalls" if stalled else self._last_trouble
            raise
        finally:
            del self._flows[flow]
            schedule.ended(flow, trouble, clock.monotonic())
            if trouble:
                self.troubles[trouble] += 1
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
                await self._write(arrival, flow.piece, begin, chunk)
        if flow.position < stop:
            raise PeerUnreachable("a holder broke off")

    async def _write(self, arrival: Arrival, piece: int, begin: int, chunk: bytes) -> None:
        """Goes on when the caller is cancelled: two writers of a piece at once would not know of each other."""
        task = asyncio.get_running_loop().create_task(self._add(arrival, piece, begin, chunk))
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)
        await asyncio.shield(task)

    async def _add(self, arrival: Arrival, piece: int, begin: int, chunk: bytes) -> None:
        try:
            async with self._locks[piece]:
                known = arrival.pieces.reached(piece) - begin
                if known < len(chunk):
                    await arrival.write(piece, chunk[known:])
                    self._tell()
                if arrival.pieces.whole:
                    self._stirred.set()
        except StoreError as error:
            self._disk_failure = error
            self._stirred.set()

    async def _check(self, arrival: Arrival) -> None:
        """Hashes what is there in order, while the rest comes."""
        try:
            checked, size_bytes = 0, self.wanted.size_bytes
            while checked < size_bytes:
                changed = self.changed
                extent = arrival.pieces.extent(checked)
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
        transfer = self.transfer
        told = False
        while not transfer.verified:
            if transfer.failure:
                raise transfer.failure
            changed = transfer.changed
            limit = transfer.limit(self.limit, self.stop)
            if transfer.arrival and not told:
                told, self.limit = True, limit
                yield limit
                continue
            if limit > self.limit:
                self.limit = limit
                yield limit
                await asyncio.sleep(PACE_SECONDS + PACE_EACH_SECONDS * len(transfer.followings))
                continue
            try:
                async with asyncio.timeout(HEARTBEAT_SECONDS):
                    await changed.wait()
            except TimeoutError:
                yield self.limit

    def leave(self) -> None:
        """Idempotent."""
        self.transfer.followings.discard(self)
