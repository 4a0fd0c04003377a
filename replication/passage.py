"""Blobs that pass through, each to one client, and are not kept: for when the disk has no room."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from consensus import clock
from consensus.names import StoreId
from replication.blame import Blame
from replication.directory import BlobNotHeld, PeerError, PeerUnreachable, PeerWrong
from replication.fetcher import Observe, TransferRecord
from replication.proof import Proof, Proving
from replication.schedule import STALL_RATE, STALL_SECONDS
from replication.sources import (
    BlobNowhere,
    HoldersUnreachable,
    Source,
    TransferError,
    TransferFalse,
    TransfersBusy,
    Wanted,
    require_size,
)
from replication.stores import StoreFull

MAX_PASSAGES = 8
ROUNDS = 4  # through the holders, as long as each round brings something

T = TypeVar("T")
log = logging.getLogger(__name__)


class _Patience:
    """With one holder: STALL_SECONDS of waiting for it, and one more for each STALL_RATE bytes that it brings, as in
    `replication.schedule`. While the client does not read, nobody waits for the holder, and no time passes."""

    def __init__(self) -> None:
        self._seconds = STALL_SECONDS

    async def wait(self, coming: Awaitable[T]) -> T:
        """What comes. Raises PeerUnreachable if it takes too long."""
        began = clock.monotonic()
        try:
            async with asyncio.timeout(self._seconds):
                return await coming
        except TimeoutError as error:
            raise PeerUnreachable("a holder stalls") from error
        finally:
            self._seconds -= clock.monotonic() - began

    def brought(self, count: int) -> None:
        """So many bytes have come."""
        self._seconds = min(self._seconds + count / STALL_RATE, STALL_SECONDS)


@dataclass(slots=True)
class Gathering:
    """A blob's bytes in order from `offset`, where a part begins, to before `stop`, where one ends: part by part, each
    from one holder and proven. `liars` are holders that gave a wrong one."""

    source: Source
    wanted: Wanted
    proof: Proof
    offset: int
    stop: int
    received_bytes: int = 0  # right or wrong
    liars: set[StoreId] = field(default_factory=set)
    _without: set[StoreId] = field(default_factory=set)
    _last: str = "no other store is known to hold the blob"

    async def parts(self) -> AsyncGenerator[bytes, None]:
        """To be iterated once, and closed. Raises HoldersUnreachable, BlobNowhere, TransferFalse."""
        for _ in range(ROUNDS):
            before = self.offset
            for store in sorted(self.wanted.holders, key=self.source.distance):
                async with aclosing(self._from(store)) as parts:
                    async for part in parts:
                        yield part
                if self.offset == self.stop:
                    return
            if self.offset == before:
                break
        digest = self.wanted.digest
        if self.liars and self.liars | self._without == {*self.wanted.holders}:
            raise TransferFalse("whoever has the blob gives wrong bytes", digest)
        if self._without.issuperset(self.wanted.holders) and self.wanted.holders:
            raise BlobNowhere("none of the stores that should hold the blob has it", digest)
        raise HoldersUnreachable(self._last, digest)

    async def _from(self, store: StoreId) -> AsyncGenerator[bytes, None]:
        if store in self._without | self.liars or self.offset == self.stop:
            return
        proving, gathered, patience = Proving(self.proof, self.offset), bytearray(), _Patience()
        try:
            async with AsyncExitStack() as stack:
                coming = self.source.blob(store, self.wanted.digest, self.offset, self.stop)
                stream = await patience.wait(stack.enter_async_context(coming))
                require_size(stream, self.wanted.size_bytes)
                chunks = aiter(stream.chunks)
                while (chunk := await patience.wait(anext(chunks, None))) is not None:
                    if proving.position + len(chunk) > self.stop:
                        raise PeerWrong("a holder sends more than was asked for")
                    patience.brought(len(chunk))
                    self.received_bytes += len(chunk)
                    gathered += chunk
                    right = proving.add(chunk)
                    part = bytes(memoryview(gathered)[: proving.proven - self.offset])
                    if part:
                        del gathered[: len(part)]
                        self.offset = proving.proven
                        yield part
                    if not right:
                        self.liars.add(store)
                        raise PeerWrong("a holder gives wrong bytes")
        except BlobNotHeld:
            self._without.add(store)
        except PeerError as error:
            self._last = str(error)


class Passage:
    """A BlobReader of `start` to `stop` that is read once, in order. Received are the parts which have any of that, and
    shown is what is proven."""

    def __init__(
        self, wanted: Wanted, gathering: Gathering, start: int, stop: int, *, closed: Callable[[Passage], None]
    ) -> None:
        """`closed` is called once; it sees to `end`."""
        self.wanted = wanted
        self.gathering = gathering
        self.failure: TransferError | None = None
        self._stop = stop
        self._position = start  # the window begins here
        self._parts = gathering.parts()
        self._window = bytearray()
        self._closed = closed
        self._open = True

    @property
    def size_bytes(self) -> int:
        """See BlobReader."""
        return self.wanted.size_bytes

    async def ready(self) -> None:
        """Waits until the first bytes can be read. Raises TransferError."""
        try:
            while not self._window and self._position < self._stop:
                await self._take_part()
        except TransferError as error:
            self.failure = error
            raise

    async def read(self, offset: int, length: int) -> bytes:
        """See BlobReader; `offset` is where the last read ended. Raises TransferError too."""
        if offset != self._position:
            raise ValueError(f"a passage goes on at {self._position}, not at {offset}")
        await self.ready()
        piece = bytes(memoryview(self._window)[:length])
        del self._window[: len(piece)]
        self._position += len(piece)
        return piece

    def close(self) -> None:
        """Idempotent."""
        if self._open:
            self._open = False
            self._closed(self)

    async def end(self) -> None:
        """Lets go of the source."""
        await self._parts.aclose()

    async def _take_part(self) -> None:
        part = await anext(self._parts)
        begin = self.gathering.offset - len(part)
        self._window += memoryview(part)[max(self._position - begin, 0) : max(self._stop - begin, 0)]


class Passages:
    """Those of one process."""

    def __init__(self, source: Source, *, observe: Observe) -> None:
        """`observe` is told of each."""
        self._source = source
        self._observe = observe
        self._blame = Blame()
        self._open = 0
        self._ending: set[asyncio.Task[None]] = set()

    async def open(self, wanted: Wanted, start: int, stop: int) -> Passage:
        """A reader of the bytes from `start` to before `stop`, once the first of them are there. Raises TransferError,
        and StoreFull for a blob of which nothing is proven before all of it is there."""
        proof = wanted.proof
        if proof is None:
            raise StoreFull("there is no room for the blob, and its parts are not known")
        if self._open >= MAX_PASSAGES:
            raise TransfersBusy(f"{MAX_PASSAGES} blobs are passing through already", wanted.digest)
        wanted = self._blame.without_suspects(wanted, clock.monotonic())
        self._open += 1
        last = proof.stop(stop - 1) if start < stop else proof.start(start)
        gathering = Gathering(self._source, wanted, proof, proof.start(start), last)
        passage = Passage(wanted, gathering, start, stop, closed=partial(self._closed, clock.monotonic()))
        try:
            await passage.ready()
        except BaseException:
            passage.close()
            raise
        return passage

    async def close(self) -> None:
        """Waits until those that were closed have let go of their sources."""
        await asyncio.gather(*self._ending, return_exceptions=True)

    def _closed(self, began: float, passage: Passage) -> None:
        self._open -= 1
        task = asyncio.get_running_loop().create_task(passage.end())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        failure, digest, now = passage.failure, passage.wanted.digest, clock.monotonic()
        if failure:
            fields = {"digest": str(digest), "reason": str(failure), "stores": sorted(passage.wanted.holders)}
            log.warning("blob_not_passed", extra=fields)
        if liars := passage.gathering.liars:
            log.warning("wrong_bytes_given", extra={"digest": str(digest), "stores": sorted(liars)})
            self._blame.suspect(digest, liars, now)
        outcome = type(failure).__name__ if failure else "passed"
        self._observe(TransferRecord(outcome, now - began, passage.gathering.received_bytes, {}))
