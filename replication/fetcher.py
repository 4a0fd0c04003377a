"""Blobs that this node does not hold: brought here, each once however many ask, and read while they come."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

from consensus import clock
from consensus.names import Digest, StoreId
from replication.passage import Passage
from replication.sources import HoldersUnreachable, Source, TransferFalse, TransfersBusy, Wanted
from replication.stores import ArrivalStore, BlobReader, BlobStore, StoreError
from replication.transfer import Transfer

MAX_TRANSFERS = 32
MAX_PASSAGES = 8
SUSPECT_SECONDS = 60.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TransferRecord:
    """A transfer that is over. `outcome` is "kept", "passed" (to a client, there being no room) or what went wrong."""

    outcome: str
    seconds: float
    received_bytes: int


Observe = Callable[[TransferRecord], None]


class Fetcher:
    """The transfers of one process. Used as a context manager, at whose end all of them are cut off."""

    def __init__(self, source: Source, blobs: BlobStore, arrivals: ArrivalStore, *, observe: Observe) -> None:
        """`arrivals` end in `blobs`. `observe` is told of each transfer."""
        self._source = source
        self._blobs = blobs
        self._arrivals = arrivals
        self._observe = observe
        self._transfers: dict[Digest, Transfer] = {}
        self._passages = 0
        self._suspects: dict[tuple[StoreId, Digest], float] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def open(self, wanted: Wanted, start: int, stop: int) -> BlobReader:
        """A reader of the bytes from `start` to before `stop`, in order; returns once the first of them can be read.
        Later ones are waited for as they are read, and the last ones come only if all of the blob was right: `read`
        raises TransferError otherwise. Raises TransferError, StoreError."""
        transfer = self._transfers.get(wanted.digest) or self._begin(wanted)
        follower = transfer.follow(stop)
        try:
            await follower.ready(start)
        except BaseException as error:
            follower.close()
            if isinstance(error, StoreError):
                return await self._pass_through(wanted, start, stop)
            raise
        return follower

    def _begin(self, wanted: Wanted) -> Transfer:
        if len(self._transfers) >= MAX_TRANSFERS:
            raise TransfersBusy(f"{MAX_TRANSFERS} blobs are being fetched already")
        transfer = Transfer(self._without_suspects(wanted), self._source)
        self._transfers[wanted.digest] = transfer
        self._spawn(self._run(transfer))
        return transfer

    async def _run(self, transfer: Transfer) -> None:
        began = clock.monotonic()
        try:
            await transfer.run(self._blobs, self._arrivals)
        finally:
            del self._transfers[transfer.wanted.digest]
            self._record(transfer, began, "kept")

    def _record(self, transfer: Transfer | Passage, began: float, outcome: str) -> None:
        """The end of a transfer; `outcome` is that of one which did not fail."""
        failure, digest = transfer.failure, transfer.wanted.digest
        if failure:
            outcome = type(failure).__name__
            fields = {"digest": str(digest), "reason": str(failure), "stores": sorted(transfer.givers)}
            log.warning("blob_not_fetched", extra=fields)
        if isinstance(failure, TransferFalse):
            for store in transfer.givers:
                self._suspects[store, digest] = clock.monotonic() + SUSPECT_SECONDS
        self._observe(TransferRecord(outcome, clock.monotonic() - began, transfer.received_bytes))

    def _without_suspects(self, wanted: Wanted) -> Wanted:
        """Who gave wrong bytes is not asked for the same blob again for a while."""
        now = clock.monotonic()
        self._suspects = {key: until for key, until in self._suspects.items() if until > now}
        holders = tuple(store for store in wanted.holders if (store, wanted.digest) not in self._suspects)
        if not holders and wanted.holders:
            raise HoldersUnreachable("every store that holds the blob has lately given wrong bytes")
        return replace(wanted, holders=holders)

    async def _pass_through(self, wanted: Wanted, start: int, stop: int) -> BlobReader:
        """There is no room to keep the blob: pulls go on all the same."""
        if self._passages >= MAX_PASSAGES:
            raise TransfersBusy(f"{MAX_PASSAGES} blobs are passing through already")
        wanted, closed = self._without_suspects(wanted), partial(self._passage_closed, clock.monotonic())
        self._passages += 1
        passage = Passage(wanted, self._source, start, stop, closed=closed)
        try:
            await passage.ready()
        except BaseException:
            passage.close()
            raise
        return passage

    def _passage_closed(self, began: float, passage: Passage) -> None:
        self._passages -= 1
        self._record(passage, began, "passed")
        self._spawn(passage.end())

    def _spawn(self, job: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(job)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
