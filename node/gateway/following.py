"""A blob that the node's replicator brings here, as one client reads it: from the file that grows, up to where the
replicator says.

If the replicator dies it is asked again, and the client notices nothing, as long as what it has been given is of the
same arrival: bytes of two arrivals, of which one may have been wrong, never make one answer.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import aclosing
from typing import Any

from consensus import clock
from node.blobs.arrivals import FilesystemArrivals
from node.blobs.filesystem import FileReader, FilesystemStore
from node.replicator.rpc import BEGIN_SECONDS, ReplicatorClient
from replication.sources import TransferEnded, TransferError, TransfersSilent, Wanted
from replication.stores import BlobNotFound, StoreError

AGAIN_SECONDS = 0.1


class Follower:
    """A BlobReader of the bytes from `start` to before `stop`, in order."""

    def __init__(
        self,
        replicator: ReplicatorClient,
        blobs: FilesystemStore,
        arrivals: FilesystemArrivals,
        wanted: Wanted,
        *,
        start: int,
        stop: int,
    ) -> None:
        self.given = False  # something of it has been read
        self._replicator = replicator
        self._blobs = blobs
        self._arrivals = arrivals
        self._wanted = wanted
        self._start = start
        self._stop = stop
        self._limit = start
        self._whole = False
        self._arrival_id = ""
        self._reader: FileReader | None = None
        self._failure: TransferError | StoreError | None = None
        self._changed = asyncio.Event()
        self._listening = asyncio.get_running_loop().create_task(self._listen())

    @property
    def size_bytes(self) -> int:
        """See BlobReader."""
        return self._wanted.size_bytes

    async def ready(self) -> None:
        """Waits until the first bytes can be read. Raises TransferError, StoreError."""
        await self._readable(self._start)

    async def read(self, offset: int, length: int) -> bytes:
        """See BlobReader. Waits for what has not come yet; raises TransferError too."""
        limit = await self._readable(offset)
        assert self._reader
        self.given = True
        return await self._reader.read(offset, min(length, limit - offset))

    def close(self) -> None:
        """Idempotent."""
        self._listening.cancel()
        self._drop()

    async def _readable(self, offset: int) -> int:
        while True:
            if self._limit > offset or self._whole:
                return self._limit
            if self._failure:
                raise self._failure
            self._changed.clear()
            await self._changed.wait()

    async def _listen(self) -> None:
        try:
            await self._hear_all()
        except (TransferError, StoreError) as error:
            self._failure = error
        except BaseException:
            self._failure = TransferEnded("nobody listens any more to how the blob comes", self._wanted.digest)
            raise
        finally:
            self._changed.set()

    async def _hear_all(self) -> None:
        heard_at = clock.monotonic()
        while not self._whole:
            try:
                async with aclosing(self._replicator.follow(self._wanted, self._start, self._stop)) as messages:
                    async for message in messages:
                        heard_at = clock.monotonic()
                        await self._hear(message)
                        self._changed.set()
                        if self._whole:
                            return
            except TransfersSilent:
                if clock.monotonic() - heard_at > BEGIN_SECONDS:
                    raise
                await asyncio.sleep(AGAIN_SECONDS)

    async def _hear(self, message: tuple[Any, ...]) -> None:
        match message:
            case ("arrival", arrival_id, limit):
                await self._take(arrival_id)
                self._reach(limit)
            case ("limit", limit):
                self._reach(limit)
            case ("whole", arrival_id):
                await self._take_whole(arrival_id)
                self._limit, self._whole = self._stop, True

    def _reach(self, limit: int) -> None:
        if self._reader:
            self._limit = max(self._limit, limit)

    async def _take(self, arrival_id: str) -> None:
        """What comes is in this arrival."""
        if arrival_id == self._arrival_id and self._reader:
            return
        if self.given:
            raise TransferEnded("what had come of the blob is lost", self._wanted.digest)
        self._limit = self._start
        self._arrival_id = arrival_id
        try:
            self._replace(await self._arrivals.reader(arrival_id, self._wanted.size_bytes))
        except BlobNotFound:  # it has ended meanwhile, which the next message is about
            self._drop()

    async def _take_whole(self, arrival_id: str) -> None:
        if self._reader and arrival_id and arrival_id == self._arrival_id:
            return
        whole = await self._blobs.open(self._wanted.digest)
        if self._reader and self.given and not _is_same(self._reader, whole):
            whole.close()
            raise TransferEnded("the blob has come in another way meanwhile", self._wanted.digest)
        self._replace(whole)

    def _replace(self, reader: FileReader) -> None:
        self._drop()
        self._reader = reader

    def _drop(self) -> None:
        if self._reader:
            self._reader.close()
            self._reader = None


def _is_same(one: FileReader, other: FileReader) -> bool:
    """Whether both have the same file open: an arrival becomes the blob by being renamed."""
    return os.path.samestat(os.fstat(one.fileno()), os.fstat(other.fileno()))
