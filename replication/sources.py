"""Where a blob's bytes come from, and why they may not get here.

TransferError
├── HoldersUnreachable   no holder can be reached now, or each of them broke off
├── BlobNowhere          every holder says that it does not have the blob
├── TransferFalse        the bytes that came are not the blob
├── TransferEnded        the process that was receiving the blob has ended
├── TransfersBusy        as many blobs are on their way as this node takes
└── TransfersSilent      the process that brings blobs here does not answer
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, field
from typing import Protocol

from consensus.names import Digest, StoreId
from replication.directory import BlobNotHeld, PeerError, PeerWrong

ROUNDS = 4  # through the holders, as long as each round brings something


class TransferError(Exception):
    """The root of why a blob, `digest`, does not get here."""

    def __init__(self, reason: str, digest: Digest | None = None) -> None:
        super().__init__(reason)
        self.digest = digest


class HoldersUnreachable(TransferError):
    """Nobody who has the blob can be reached; later perhaps."""


class BlobNowhere(TransferError):
    """Everybody who should have the blob says that it is not there: it is lost, or its disk is elsewhere."""


class TransferFalse(TransferError):
    """What came is not what the digest says."""


class TransferEnded(TransferError):
    """The process that was receiving the blob ends, or has ended."""


class TransfersBusy(TransferError):
    """The bound on transfers is reached; later perhaps."""


class TransfersSilent(TransferError):
    """The process that brings blobs here is not there or does not answer; it is started again by itself."""


class Stream(Protocol):
    """A part of a blob on its way."""

    @property
    def size_bytes(self) -> int:
        """Of the whole blob."""

    @property
    def chunks(self) -> AsyncIterator[bytes]:
        """The part that was asked for. Raises PeerError when it breaks off, or stalls."""


class Source(Protocol):
    """Where blobs come from."""

    def blob(self, store: StoreId, digest: Digest, start: int, stop: int) -> AbstractAsyncContextManager[Stream]:
        """The blob from `start` to before `stop`, as `store` has it. Raises PeerError, within a bounded time."""

    def distance(self, store: StoreId) -> float:
        """The round trip to a store in seconds, as last measured; infinity while it is unknown."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A blob that the state knows, the other stores that hold it, and when it was pushed, 0 where that is not known."""

    digest: Digest
    size_bytes: int
    holders: tuple[StoreId, ...]
    pushed_ms: int = 0


@dataclass(slots=True)
class Gathering:
    """All of a blob's bytes in order, unverified. `givers` are those who gave any of them."""

    source: Source
    wanted: Wanted
    offset: int = 0
    givers: set[StoreId] = field(default_factory=set)
    _without: set[StoreId] = field(default_factory=set)
    _last: str = "no other store is known to hold the blob"

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """To be iterated once, and closed. Raises HoldersUnreachable, BlobNowhere."""
        for _ in range(ROUNDS):
            before = self.offset
            for store in sorted(self.wanted.holders, key=self.source.distance):
                async with aclosing(self._from(store)) as chunks:
                    async for chunk in chunks:
                        yield chunk
                if self.offset == self.wanted.size_bytes:
                    return
            if self.offset == before:
                break
        if self._without.issuperset(self.wanted.holders) and self.wanted.holders:
            raise BlobNowhere("none of the stores that should hold the blob has it", self.wanted.digest)
        raise HoldersUnreachable(self._last, self.wanted.digest)

    async def _from(self, store: StoreId) -> AsyncGenerator[bytes, None]:
        size_bytes = self.wanted.size_bytes
        if store in self._without or self.offset == size_bytes:
            return
        try:
            async with self.source.blob(store, self.wanted.digest, self.offset, size_bytes) as stream:
                require_size(stream, size_bytes)
                async for chunk in stream.chunks:
                    if self.offset + len(chunk) > size_bytes:
                        raise PeerWrong("a holder sends more than the blob has")
                    self.offset += len(chunk)
                    self.givers.add(store)
                    yield chunk
        except BlobNotHeld:
            self._without.add(store)
        except PeerError as error:
            self._last = str(error)


def require_size(stream: Stream, size_bytes: int) -> None:
    """Raises PeerWrong if what comes is part of something of another size."""
    if stream.size_bytes != size_bytes:
        raise PeerWrong(f"a holder has {stream.size_bytes} bytes, not {size_bytes}")
