"""A blob that passes through to one client and is not kept, for when the disk has no room."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from consensus.names import StoreId
from replication.sources import Gathering, Source, TransferError, TransferFalse, Wanted
from replication.transfer import HELD_BACK_BYTES


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
                raise TransferFalse("what came is not what the digest says") from None
            self._verified = True
            return
        self._hash.update(chunk)
        begin = self._gathering.offset - len(chunk)
        first = self._position + len(self._window) - begin
        self._window += memoryview(chunk)[max(first, 0) : max(self._stop - begin, 0)]
