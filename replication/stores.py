"""The ports of byte storage: blobs that are what their digest says, and uploads on their way to become one.

Implementations live in `node.blobs`; `tests/node/blobs/suite.py` holds all of them to the same promises.

    StoreError
    ├── BlobNotFound      the store does not hold the digest
    ├── UploadNotFound    no such upload: never begun, finished, aborted or reaped
    ├── UploadBusy        another request is writing to this upload now
    ├── DigestMismatch    the bytes received are not what the client said; the upload is gone
    ├── StoreFull         no space, or below the free-space watermark: nothing half-made is left, reading goes on
    ├── StoreFailed       the disk refused (EIO and its kin): nothing half-made is visible
    └── StoreRefused      at the start: the folder is another store's, or cannot be one
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from consensus.commands import BlobFact
from consensus.names import Digest, StoreId
from replication.pieces import Pieces


class StoreError(Exception):
    """The root of what stores raise."""


class BlobNotFound(StoreError):
    """The store does not hold the blob."""


class UploadNotFound(StoreError):
    """No such upload here."""


class UploadBusy(StoreError):
    """Another request is writing to this upload at this moment."""


class DigestMismatch(StoreError):
    """What was received hashes to `actual`, not to `expected`."""

    def __init__(self, expected: Digest, actual: Digest) -> None:
        super().__init__(f"content is {actual}, not {expected}")
        self.expected = expected
        self.actual = actual


class StoreFull(StoreError):
    """No room for more bytes; nothing half-made was left behind."""


class StoreFailed(StoreError):
    """The disk or service below refused; the cause is chained."""


class StoreRefused(StoreError):
    """What was opened is another store's (a swapped disk), or cannot be a store; an operator has to decide."""


class BlobReader(Protocol):
    """One open blob. It stays readable until closed, even if the blob is deleted meanwhile."""

    @property
    def size_bytes(self) -> int:
        """The blob's length."""

    async def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset` (fewer only at the end; at least one before it). Raises StoreFailed.
        Does not wait for the disk on the event loop: what the page cache lacks is read in a thread."""

    def close(self) -> None:
        """Idempotent."""


class BlobStore(Protocol):
    """Immutable, verified bytes by digest."""

    @property
    def store_id(self) -> StoreId:
        """Drawn when the store was made; names this store as a holder in the log."""

    async def stat(self, digest: Digest) -> int:
        """The size in bytes; raises BlobNotFound, StoreFailed."""

    async def open(self, digest: Digest) -> BlobReader:
        """Raises BlobNotFound, StoreFailed."""

    async def delete(self, digest: Digest) -> None:
        """Forgets the blob, durably; no error if it is not there. Raises StoreFailed."""

    def digests(self) -> AsyncIterator[Digest]:
        """Every blob held, in no order; foreign files are passed over."""


class Upload(Protocol):
    """One upload, held exclusively from `begin` or `resume` until `suspend`, `commit` or `abort`.

    Memory stays flat whatever is written; hashing and disk work run in threads.
    """

    @property
    def upload_id(self) -> str:
        """A UUID."""

    @property
    def offset(self) -> int:
        """Bytes received so far."""

    async def write(self, chunk: bytes) -> None:
        """Appends. Raises StoreFull or StoreFailed, after which only `abort` or `suspend` is of use."""

    async def suspend(self) -> None:
        """Lets go, so that any gateway of the node can `resume` at `offset` later; also what an interrupted request
        does. No-op when nothing is held. Raises StoreFull or StoreFailed if bytes that `write` took turn out not to
        have been kept and `write` has not said so; holding has ended all the same, and `offset` is what is left."""

    async def commit(self, digest: Digest) -> BlobFact:
        """Verifies, makes the blob durable and visible, returns what the log is to say of it. DigestMismatch removes
        the upload. After success the upload remembers this until `abort`, so that a repeated commit (after `resume`)
        costs next to nothing. Raises StoreFull or StoreFailed: the upload is kept, unless the disk has lost bytes of
        it, and UploadNotFound if the blob was deleted between two commits. Holding ends in any case."""

    async def abort(self) -> None:
        """Removes the upload and its bytes; idempotent, and allowed when nothing is held any more. A committed upload
        is forgotten so, once the log knows the blob. Raises StoreFailed."""


class UploadStore(Protocol):
    """Where uploads live between requests."""

    async def begin(self, algorithm: str = "sha256") -> Upload:
        """A new, empty upload; `algorithm` is a hint that saves a second pass. Raises StoreFull, StoreFailed."""

    async def resume(self, upload_id: str) -> Upload:
        """Takes hold of an upload. Raises UploadNotFound, UploadBusy, StoreFailed. The bytes up to
        `offset` are those that were acknowledged; an upload that a power loss took some of is not found."""

    async def reap(self, idle_seconds: float) -> int:
        """Removes uploads nobody touched for that long; returns how many."""

    async def count(self) -> int:
        """How many uploads are open, for the bound on them."""


class Arrival(Protocol):
    """A blob on its way in from other stores: pieces that fill in any order, each from its beginning. What is proven
    can be read already. Held exclusively until `suspend` or `discard`. Used from one event loop."""

    @property
    def arrival_id(self) -> str:
        """A UUID; the bytes that were ever proven under it never change."""

    @property
    def pieces(self) -> Pieces:
        """What is there."""

    async def write(self, piece: int, chunk: bytes) -> bool:
        """Adds to what is there of a piece; one call at a time for each. False if a part of it was wrong: then nothing
        is there any more from the beginning of that part on. Raises StoreFull, StoreFailed."""

    async def disbelieve(self) -> None:
        """The digests of the parts do not count any more, only that of the whole, and what is not proven by now is not
        there any more. Called alone. Raises StoreFull, StoreFailed."""

    async def check(self, upto: int) -> int:
        """Hashes on, up to a byte before which nothing is missing and, if it can be, all is proven; says how far.
        Raises StoreFailed."""

    async def commit(self, digest: Digest) -> int:
        """Of a whole one: verifies it, makes the blob durable and visible, returns its size. Raises DigestMismatch,
        StoreFull, StoreFailed."""

    async def suspend(self) -> None:
        """Leaves it to whoever takes it up."""

    async def discard(self) -> None:
        """Removes what is left of it. Raises StoreFailed."""


class ArrivalStore(Protocol):
    """Where blobs on their way in live."""

    async def take_up(self, digest: Digest, size_bytes: int, parts: bytes = b"") -> Arrival:
        """What was left of the blob by whoever was to bring it before, or a new one. Raises StoreFull if there is no
        room for all of it beside what those that are held still lack, StoreFailed."""

    async def reap(self, idle_seconds: float) -> int:
        """Removes those that nobody holds or has touched for that long; returns how many."""
