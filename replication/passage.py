"""Blobs that pass through, each to one client, and are not kept: for when the disk has no room."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable
from functools import partial

from consensus import clock
from consensus.names import StoreId
from replication.blame import Blame
from replication.fetcher import Observe, TransferRecord
from replication.sources import Gathering, Source, TransferError, TransferFalse, TransfersBusy, Wanted
from replication.transfer import HELD_BACK_BYTES

MAX_PASSAGES = 8

log = logging.getLogger(__name__)


class Passage:
    """A BlobReader of `start` to `stop` that is read once, in order. All of the blob is received, however little of it
    is wanted: otherwise there would be no telling whether it is the right one."""

    def __init__(
        self, wanted: Wanted, source: Source, start: int, stop: int, *, closed: Callable[[Passage], None]
    ) -> None:
        """`closed` is called once; it sees to `end`."""
        self.wanted = wanted
        self.failure: TransferError | None = None
        self._stop = stop
        self._position = start  # the window begins here
        self._gathering = Gathering(source, wanted)
        self._chunks = self._gathering.chunks()
        self._hash = hashlib.new(wanted.digest.algorithm)
        self._window = bytearray()
        self._verified = False
        self._closed = closed
        self._open = True

    @property
    def size_bytes(self) -> int:
        """See BlobReader."""
        return self.wanted.size_bytes

    @property
    def received_bytes(self) -> int:
        """So many have come, right or wrong."""
        return self._gathering.offset

    @property
    def givers(self) -> frozenset[StoreId]:
        """The stores that they came from."""
        return frozenset(self._gathering.givers)

    async def ready(self) -> None:
        """Waits until the first bytes can be read. Raises TransferError."""
        try:
            while not self._verified and len(self._window) <= HELD_BACK_BYTES:
                await self._take_chunk()
        except TransferError as error:
            self.failure = error
            raise

    async def read(self, offset: int, length: int) -> bytes:
        """See BlobReader; `offset` is where the last read ended. Raises TransferError too."""
        if offset != self._position:
            raise ValueError(f"a passage goes on at {self._position}, not at {offset}")
        await self.ready()
        free = len(self._window) if self._verified else len(self._window) - HELD_BACK_BYTES
        piece = bytes(self._window[: min(length, free)])
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
        await self._chunks.aclose()

    async def _take_chunk(self) -> None:
        try:
            chunk = await anext(self._chunks)
        except StopAsyncIteration:
            if self._hash.hexdigest() != self.wanted.digest.hex:
                raise TransferFalse("what came is not what the digest says", self.wanted.digest) from None
            self._verified = True
            return
        self._hash.update(chunk)
        begin = self._gathering.offset - len(chunk)
        first = self._position + len(self._window) - begin
        self._window += memoryview(chunk)[max(first, 0) : max(self._stop - begin, 0)]


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
        """A reader of the bytes from `start` to before `stop`, once the first of them are there. Raises
        TransferError."""
        if self._open >= MAX_PASSAGES:
            raise TransfersBusy(f"{MAX_PASSAGES} blobs are passing through already", wanted.digest)
        wanted = self._blame.without_suspects(wanted, clock.monotonic())
        self._open += 1
        passage = Passage(wanted, self._source, start, stop, closed=partial(self._closed, clock.monotonic()))
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
            fields = {"digest": str(digest), "reason": str(failure), "stores": sorted(passage.givers)}
            log.warning("blob_not_passed", extra=fields)
        if isinstance(failure, TransferFalse):
            # One that broke off in between was followed by another: not to ask either of them costs a pull or two.
            self._blame.false(digest, passage.givers, alone=True, now=now)
        outcome = type(failure).__name__ if failure else "passed"
        self._observe(TransferRecord(outcome, now - began, passage.received_bytes, {}))
