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

from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import Protocol

from consensus.names import Digest, StoreId
from replication.directory import PeerWrong
from replication.proof import Proof


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
    parts: bytes = b""  # their digests, see BlobFact
    pushed_ms: int = 0  # by log time; 0: unknown

    @property
    def proof(self) -> Proof | None:
        """What can be known to be right of it before all of it is there."""
        return Proof.of(self.digest, self.size_bytes, self.parts)

    def held_too(self, stores: Iterable[StoreId]) -> Wanted:
        """With more holders, each once, behind those that it has."""
        return replace(self, holders=tuple(dict.fromkeys((*self.holders, *stores))))


def require_size(stream: Stream, size_bytes: int) -> None:
    """Raises PeerWrong if what comes is part of something of another size."""
    if stream.size_bytes != size_bytes:
        raise PeerWrong(f"a holder has {stream.size_bytes} bytes, not {size_bytes}")
