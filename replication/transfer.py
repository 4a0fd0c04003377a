"""One blob on its way from another store into ours, and the clients who read it meanwhile.

The bytes go to the disk as fast as they come; each follower reads from there at its own pace. The end of what a
follower wants is held back until the whole blob is known to be what its digest says: wrong bytes end in a failure.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress

from consensus.names import StoreId
from replication.sources import Gathering, Source, TransferEnded, TransferError, TransferFalse, Wanted
from replication.stores import Arrival, ArrivalStore, BlobNotFound, BlobReader, BlobStore, DigestMismatch, StoreError

HELD_BACK_BYTES = 64 * 1024


class Transfer:
    """A blob that arrives. `run` is called once; `received_bytes` came from other stores."""

    def __init__(self, wanted: Wanted, source: Source) -> None:
        self.wanted = wanted
        self.verified = False
        self.failure: TransferError | StoreError | None = None
        self._gathering = Gathering(source, wanted)
        self._changed = asyncio.Event()
        self._readable_bytes = 0
        self._reader: BlobReader | None = None
        self._users = 1  # `run` is one

    @property
    def received_bytes(self) -> int:
        """So many have come, right or wrong."""
        return self._gathering.offset

    @property
    def givers(self) -> frozenset[StoreId]:
        """The stores that they came from."""
        return frozenset(self._gathering.givers)

    async def run(self, blobs: BlobStore, arrivals: ArrivalStore) -> None:
        """Brings the blob into `blobs`, whether or not anybody follows. What goes wrong is in `failure`."""
        try:
            await self._obtain(blobs, arrivals)
            self.verified = True
        except (TransferError, StoreError) as error:
            self.failure = error
        except BaseException:
            self.failure = TransferEnded("the node stops")
            raise
        finally:
            self._tell()
            self._leave()

    def follow(self, stop: int) -> Follower:
        """A reader of the bytes before `stop`."""
        self._users += 1
        return Follower(self, stop)

    async def readable(self, offset: int, stop: int) -> int:
        """Waits until a follower up to `stop` may read at `offset`; says up to where. Raises what the transfer failed
        of: TransferError, StoreError."""
        while True:
            if self.verified:
                return self.wanted.size_bytes
            if self.failure:
                raise type(self.failure)(*self.failure.args) from self.failure
            limit = min(self._readable_bytes, stop - HELD_BACK_BYTES)
            if limit > offset:
                return limit
            await self._changed.wait()

    async def read(self, offset: int, length: int) -> bytes:
        """Bytes that `readable` said are there."""
        assert self._reader
        return await self._reader.read(offset, length)

    def leave(self) -> None:
        """A follower goes."""
        self._leave()

    async def _obtain(self, blobs: BlobStore, arrivals: ArrivalStore) -> None:
        with suppress(BlobNotFound):  # it came while this was decided
            self._reader = await blobs.open(self.wanted.digest)
            return
        arrival = await arrivals.begin(self.wanted.digest.algorithm)
        try:
            self._reader = arrival.reader(self.wanted.size_bytes)
            await self._receive(arrival)
            await arrival.commit(self.wanted.digest)
        except DigestMismatch as error:
            raise TransferFalse(f"what came hashes to {error.actual}, not to {error.expected}") from error
        finally:
            with suppress(StoreError):  # what is left is removed later
                await arrival.abort()

    async def _receive(self, arrival: Arrival) -> None:
        taken = asyncio.Event()
        showing = asyncio.get_running_loop().create_task(self._show(arrival, taken))
        try:
            async with aclosing(self._gathering.chunks()) as chunks:
                async for chunk in chunks:
                    await arrival.write(chunk)
                    taken.set()
        finally:
            showing.cancel()
            await asyncio.wait([showing])

    async def _show(self, arrival: Arrival, taken: asyncio.Event) -> None:
        """Writes what has come as soon as what came before is written: followers wait for no batch to become full."""
        with suppress(StoreError):  # which the next `write` or `commit` raises too
            while True:
                await taken.wait()
                taken.clear()
                self._readable_bytes = await arrival.flush()
                self._tell()

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _leave(self) -> None:
        self._users -= 1
        if not self._users and self._reader:
            self._reader.close()
            self._reader = None


class Follower:
    """A BlobReader on a blob that arrives."""

    def __init__(self, transfer: Transfer, stop: int) -> None:
        self._transfer = transfer
        self._stop = stop
        self._open = True

    @property
    def size_bytes(self) -> int:
        """See BlobReader."""
        return self._transfer.wanted.size_bytes

    async def ready(self, offset: int) -> None:
        """Waits until the bytes at `offset` can be read, or are known not to come. Raises TransferError, StoreError."""
        await self._transfer.readable(offset, self._stop)

    async def read(self, offset: int, length: int) -> bytes:
        """See BlobReader. Waits for what has not come yet; raises TransferError too."""
        limit = await self._transfer.readable(offset, self._stop)
        return await self._transfer.read(offset, min(length, limit - offset))

    def close(self) -> None:
        """Idempotent."""
        if self._open:
            self._open = False
            self._transfer.leave()
