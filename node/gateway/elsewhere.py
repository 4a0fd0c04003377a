"""Blobs that are not here, for one gateway: by way of the node's replicator, and past it where there is no room."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from consensus.names import Digest, StoreId
from node.blobs.arrivals import FilesystemArrivals
from node.blobs.filesystem import FilesystemStore
from node.gateway.following import Follower
from node.replicator.rpc import ReplicatorClient
from replication.passage import Passages
from replication.sources import TransferFalse, Wanted
from replication.stores import BlobReader, StoreError

MAX_TELLING = 64
ATTEMPTS = 4  # each of the others means that a holder gave wrong bytes


class Elsewhere:
    """See node.registry.BlobsElsewhere."""

    def __init__(
        self,
        replicator: ReplicatorClient,
        passages: Passages,
        *,
        blobs: FilesystemStore,
        arrivals: FilesystemArrivals,
        copies: Callable[[Digest], Sequence[StoreId]],
    ) -> None:
        """`copies` says which stores hold a blob beyond those that the log names."""
        self._replicator = replicator
        self._passages = passages
        self._blobs = blobs
        self._arrivals = arrivals
        self._copies = copies
        self._telling: set[asyncio.Task[bool]] = set()

    async def open(self, wanted: Wanted, start: int, stop: int) -> BlobReader:
        """A reader of the bytes from `start` to before `stop`, in order; returns once the first of them can be read.
        Later ones are waited for as they are read; `read` raises TransferError if they do not come. Raises
        TransferError, StoreError."""
        for attempt in range(ATTEMPTS):
            follower = Follower(self._replicator, self._blobs, self._arrivals, wanted, start=start, stop=stop)
            try:
                await follower.ready()
            except TransferFalse:  # of which nobody here has seen anything
                follower.close()
                if attempt == ATTEMPTS - 1:
                    raise
            except StoreError:
                follower.close()
                return await self._passages.open(wanted.held_too(self._copies(wanted.digest)), start, stop)
            except BaseException:
                follower.close()
                raise
            else:
                return follower
        raise AssertionError

    def ahead(self, wanted: Sequence[Wanted]) -> None:
        """These are likely to be asked for soon. The replicator is told beside; where it cannot be, it is not."""
        if wanted and len(self._telling) < MAX_TELLING:
            task = asyncio.get_running_loop().create_task(self._replicator.ahead(wanted))
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)

    async def close(self) -> None:
        """Ends what is under way beside."""
        for task in self._telling:
            task.cancel()
        await asyncio.gather(*self._telling, return_exceptions=True)
