"""The bytes of a blob from whoever has them: one holder after another, each going on where the one before broke off.

TransferError
├── HoldersUnreachable   no holder can be reached now, or each of them broke off
├── BlobNowhere          every holder says that it does not have the blob
├── TransferFalse        the bytes that came are not the blob
├── TransferEnded        this process ends
└── TransfersBusy        as many blobs are on their way as this process takes
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
    """The root of why a blob does not get here."""


class HoldersUnreachable(TransferError):
    """Nobody who has the blob can be reached; later perhaps."""


class BlobNowhere(TransferError):
    """Everybody who should have the blob says that it is not there."""


class TransferFalse(TransferError):
    """What came is not what the digest says."""


class TransferEnded(TransferError):
    """The process that was receiving the blob ends."""


class TransfersBusy(TransferError):
    """The bound on transfers is reached; later perhaps."""


class Stream(Protocol):
    """A blob on its way."""

    @property
    def size_bytes(self) -> int:
        """Of the whole blob."""

    @property
    def chunks(self) -> AsyncIterator[bytes]:
        """From the offset that was asked for. Raises PeerError when it breaks off, or stalls."""


class Source(Protocol):
    """Where blobs come from."""

    def blob(self, store: StoreId, digest: Digest, offset: int) -> AbstractAsyncContextManager[Stream]:
        """The blob as `store` has it, from `offset` on. Raises PeerError, within a bounded time."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A blob that the state knows, and the stores that hold it, the best one first."""

    digest: Digest
    size_bytes: int
    holders: tuple[StoreId, ...]


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
            for store in self.wanted.holders:
                async with aclosing(self._from(store)) as chunks:
                    async for chunk in chunks:
                        yield chunk
                if self.offset == self.wanted.size_bytes:
                    return
            if self.offset == before:
                break
        if self._without.issuperset(self.wanted.holders) and self.wanted.holders:
            raise BlobNowhere("none of the stores that should hold the blob has it")
        raise HoldersUnreachable(self._last)

    async def _from(self, store: StoreId) -> AsyncGenerator[bytes, None]:
        if store in self._without:
            return
        size_bytes = self.wanted.size_bytes
        try:
            async with self.source.blob(store, self.wanted.digest, self.offset) as stream:
                if stream.size_bytes != size_bytes:
                    raise PeerWrong(f"a holder has {stream.size_bytes} bytes, not {size_bytes}")
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
