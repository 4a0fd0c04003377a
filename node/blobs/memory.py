"""Blobs and uploads in memory, with the promises of the real ones but for durability: for simulations and tests."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from consensus import clock, entropy
from consensus.commands import BlobFact
from consensus.names import Digest, StoreId
from consensus.parts import PartsHash
from replication.stores import BlobNotFound, DigestMismatch, StoreFull, UploadBusy, UploadNotFound


class MemoryReader:
    """A BlobReader on bytes."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    @property
    def size_bytes(self) -> int:
        """See BlobReader."""
        return len(self._content)

    async def read(self, offset: int, length: int) -> bytes:
        """See BlobReader."""
        return self._content[offset : offset + max(length, 0)]

    def close(self) -> None:
        """See BlobReader."""


class MemoryStore:
    """A BlobStore in memory. `capacity_bytes` bounds blobs and uploads together, as a disk does."""

    def __init__(self, store_id: StoreId, *, capacity_bytes: int | None = None) -> None:
        self._store_id = store_id
        self._capacity_bytes = capacity_bytes
        self._blobs: dict[Digest, bytes] = {}
        self._used_bytes = 0

    @property
    def store_id(self) -> StoreId:
        """See BlobStore."""
        return self._store_id

    async def stat(self, digest: Digest) -> int:
        """See BlobStore."""
        return len(self._content(digest))

    async def open(self, digest: Digest) -> MemoryReader:
        """See BlobStore."""
        return MemoryReader(self._content(digest))

    async def delete(self, digest: Digest) -> None:
        """See BlobStore."""
        self.give_back(len(self._blobs.pop(digest, b"")))

    async def digests(self) -> AsyncIterator[Digest]:
        """See BlobStore."""
        for digest in list(self._blobs):
            yield digest

    def take(self, size_bytes: int) -> None:
        """Takes room. Raises StoreFull."""
        if self._capacity_bytes is not None and self._used_bytes + size_bytes > self._capacity_bytes:
            raise StoreFull(f"{self._capacity_bytes} bytes are all there is")
        self._used_bytes += size_bytes

    def give_back(self, size_bytes: int) -> None:
        """The opposite of `take`."""
        self._used_bytes -= size_bytes

    def holds(self, digest: Digest) -> bool:
        """Whether the blob is here."""
        return digest in self._blobs

    def adopt(self, digest: Digest, content: bytes) -> None:
        """Makes verified bytes, whose room is taken, a blob."""
        if digest in self._blobs:
            self.give_back(len(content))
        else:
            self._blobs[digest] = content

    def _content(self, digest: Digest) -> bytes:
        try:
            return self._blobs[digest]
        except KeyError:
            raise BlobNotFound(str(digest)) from None


@dataclass(slots=True)
class _Session:
    upload_id: str
    content: bytearray = field(default_factory=bytearray)
    committed: BlobFact | None = None
    held: bool = True
    touched: float = field(default_factory=clock.monotonic)

    def release(self) -> None:
        self.held = False
        self.touched = clock.monotonic()


class MemoryUpload:
    """An Upload in memory."""

    def __init__(self, uploads: MemoryUploads, session: _Session) -> None:
        self._uploads = uploads
        self._session = session
        self._holding = True

    @property
    def upload_id(self) -> str:
        """See Upload."""
        return self._session.upload_id

    @property
    def offset(self) -> int:
        """See Upload."""
        return self._session.committed.size_bytes if self._session.committed else len(self._session.content)

    async def write(self, chunk: bytes) -> None:
        """See Upload. Raises UploadNotFound for an upload that is committed already."""
        self._require_holding()
        if self._session.committed and chunk:
            raise UploadNotFound(self.upload_id)
        self._uploads.store.take(len(chunk))
        self._session.content += chunk

    async def suspend(self) -> None:
        """See Upload."""
        if self._holding:
            self._let_go()

    async def commit(self, digest: Digest) -> BlobFact:
        """See Upload."""
        self._require_holding()
        self._let_go()
        content = bytes(self._session.content)
        committed = self._session.committed
        if committed and not self._uploads.store.holds(committed.digest):
            self._uploads.forget(self._session)
            raise UploadNotFound(self.upload_id)
        fact = committed or _fact(digest.algorithm, content)
        if fact.digest != digest:
            self._uploads.forget(self._session)
            raise DigestMismatch(digest, fact.digest)
        if not committed:
            self._uploads.store.adopt(digest, content)
            self._session.content.clear()
            self._session.committed = fact
        return fact

    async def abort(self) -> None:
        """See Upload."""
        if self._holding or not self._session.held:
            self._holding = False
            self._uploads.forget(self._session)

    def _require_holding(self) -> None:
        if not self._holding:
            raise RuntimeError("this upload is no longer held")

    def _let_go(self) -> None:
        self._holding = False
        self._session.release()


def _fact(algorithm: str, content: bytes) -> BlobFact:
    running = PartsHash()
    running.update(content)
    digest = Digest(algorithm, hashlib.new(algorithm, content).hexdigest())
    return BlobFact(digest, len(content), running.digests(len(content)))


class MemoryUploads:
    """An UploadStore in memory."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self._sessions: dict[str, _Session] = {}

    async def begin(self, algorithm: str = "sha256") -> MemoryUpload:
        """See UploadStore. The hint is of no use here."""
        session = _Session(entropy.new_uuid())
        self._sessions[session.upload_id] = session
        return MemoryUpload(self, session)

    async def resume(self, upload_id: str) -> MemoryUpload:
        """See UploadStore."""
        session = self._sessions.get(upload_id)
        if session is None:
            raise UploadNotFound(upload_id[:64])
        if session.held:
            raise UploadBusy(upload_id)
        if session.committed and not self.store.holds(session.committed.digest):
            self.forget(session)
            raise UploadNotFound(upload_id)
        session.held = True
        return MemoryUpload(self, session)

    async def reap(self, idle_seconds: float) -> int:
        """See UploadStore."""
        before = clock.monotonic() - idle_seconds
        idle = [session for session in self._sessions.values() if not session.held and session.touched <= before]
        for session in idle:
            self.forget(session)
        return len(idle)

    async def count(self) -> int:
        """See UploadStore."""
        return len(self._sessions)

    def forget(self, session: _Session) -> None:
        """Removes an upload and gives back its room."""
        if self._sessions.pop(session.upload_id, None):
            self.store.give_back(len(session.content))
            session.content.clear()
            session.held = False
