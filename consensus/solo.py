"""The log of a node that stands alone: the port of `consensus.log` on nothing but the write-ahead log.

Appends wait in a queue; one thread takes all that wait, writes and syncs them together, and answers them together, so
that a sync is shared by everyone who came while the previous one ran. Entries just written are also kept in memory, up
to a bound, which is where an apply loop that keeps up reads them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Self

from consensus.errors import InvalidCommand, LogError, LogFull, LogUnavailable
from consensus.log import MAX_PAYLOAD_BYTES, Entry, LogStatus
from consensus.tail import OVERHEAD_BYTES, Tail
from consensus.wal import DEFAULT_SEGMENT_BYTES, Wal

MAX_PENDING_BYTES = 64 * 1024 * 1024

_MAX_WRITE_BYTES = 8 * 1024 * 1024

_logger = logging.getLogger(__name__)

_Waiting = tuple[bytes, asyncio.Future[int]]


class SoloLog:
    """The only node is always the steward, in term 1, and what is on its disk is committed."""

    def __init__(self, wal: Wal, node_id: str) -> None:
        self._wal = wal
        self._node_id = node_id
        self._waiting: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._pending_bytes = 0
        self._tail = Tail()
        self._watchers: set[asyncio.Future[None]] = set()
        self._failure: LogError | None = None
        self._closing = False
        self._closed = False
        self._writer = threading.Thread(target=self._write_forever, name="log-writer", daemon=True)
        self._writer.start()

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        segment_bytes: int = DEFAULT_SEGMENT_BYTES,
        node_id: str = "solo",
        lock_seconds: float = 10.0,
    ) -> Self:
        """Opens or creates the log in `folder`; blocks while it is read and checked, and needs no event loop.

        Raises LogCorrupt, LogFull, and LogUnavailable if another process holds the log or the disk fails.
        """
        return cls(Wal.open(folder, segment_bytes=segment_bytes, lock_seconds=lock_seconds), node_id)

    async def append(self, payload: bytes) -> int:
        """As the port says. While MAX_PENDING_BYTES wait for the disk, further ones are refused (LogUnavailable, and
        then certainly not in the log) instead of waiting."""
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise InvalidCommand(f"an entry has at most {MAX_PAYLOAD_BYTES} bytes, this one {len(payload)}")
        self._check_usable()
        size = len(payload) + OVERHEAD_BYTES
        if self._pending_bytes + size > MAX_PENDING_BYTES:
            raise LogUnavailable(f"{self._pending_bytes} bytes are waiting for the disk already; try again later")
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._pending_bytes += size
        self._waiting.put((payload, future))
        return await future

    async def entries(self, after: int) -> AsyncIterator[tuple[Entry, ...]]:
        """As the port says."""
        while not self._closed:
            if self._failure is not None:
                raise LogUnavailable(str(self._failure)) from self._failure
            if after >= self._wal.commit:
                await self._change()
                continue
            batch = self._tail.batch(after) if after >= self._wal.first - 1 else ()
            batch = batch or await asyncio.to_thread(self._wal.read, after)
            if batch and not self._closed:
                yield batch
                after = batch[-1].index

    async def barrier(self) -> int:
        """As the port says; answered at once, since all acknowledgements were given here."""
        self._check_usable()
        return self._wal.commit

    async def trim(self, upto: int, *, keep_bytes: int = 0) -> None:
        """As the port says: whole segments go, never the one that is being written."""
        self._check_usable()
        await asyncio.to_thread(self._wal.trim, upto, keep_bytes=keep_bytes)

    @property
    def status(self) -> LogStatus:
        """As the port says."""
        return LogStatus(term=1, steward=self._node_id, is_steward=True, first=self._wal.first, commit=self._wal.commit)

    async def close(self) -> None:
        """As the port says; what is being written is finished and answered, what waits behind it is not written."""
        if not self._closing:
            self._closing = True
            self._waiting.put(None)
        await asyncio.to_thread(self._writer.join)
        self._closed = True
        self._announce()
        await asyncio.to_thread(self._wal.close)

    def _check_usable(self) -> None:
        if self._closing:
            raise LogUnavailable("the log is closed")
        if self._failure is not None:
            raise LogUnavailable(str(self._failure)) from self._failure

    async def _change(self) -> None:
        """Returns after the next commit, failure or close."""
        watcher: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._watchers.add(watcher)
        try:
            await watcher
        finally:
            self._watchers.discard(watcher)

    def _announce(self) -> None:
        for watcher in self._watchers:
            if not watcher.done():
                watcher.set_result(None)

    def _write_forever(self) -> None:
        while batch := self._take():
            first, error = 0, None
            try:
                first = self._write(batch)
            except LogError as raised:
                error = raised
            except Exception as raised:
                # Nobody else would notice the end of this thread.
                _logger.exception("log_writer_failed")
                error = self._wal.fail(f"the log's writer failed: {raised!r}")
            # A loop that is closed has nobody left to be told.
            with contextlib.suppress(RuntimeError):
                batch[0][1].get_loop().call_soon_threadsafe(self._settle, batch, first, error)

    def _write(self, batch: list[_Waiting]) -> int:
        if self._closing:
            raise LogUnavailable("the log is closed")
        return self._wal.append([payload for payload, _ in batch])

    def _take(self) -> list[_Waiting]:
        """Everything that waits, up to a bound; nothing once the log is closed and nothing waits."""
        batch: list[_Waiting] = []
        size = 0
        while (item := self._waiting.get()) is not None:
            batch.append(item)
            size += len(item[0])
            if size >= _MAX_WRITE_BYTES or self._waiting.empty():
                return batch
        if batch:
            self._waiting.put(None)
        return batch

    def _settle(self, batch: list[_Waiting], first: int, error: LogError | None) -> None:
        """On the event loop: what the writer did becomes known."""
        for index, (payload, future) in enumerate(batch, start=first):
            self._pending_bytes -= len(payload) + OVERHEAD_BYTES
            if error is None:
                self._tail.add(Entry(index, payload))
            if future.done():
                continue
            if error is None:
                future.set_result(index)
            else:
                future.set_exception(type(error)(*error.args))
        if error is not None and not isinstance(error, LogFull) and not self._closing:
            self._failure = error
        self._announce()
