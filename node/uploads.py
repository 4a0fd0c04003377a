"""Pushing blobs: upload sessions of a repository, from their first byte to the log's knowing the blob.

A request holds an upload only while it runs; between requests any gateway of the node may take it up. Bytes come as an
async iterator; when that raises (the client went away), what arrived so far stays for the client to go on from.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from consensus.commands import RecordBlobs
from consensus.names import Digest, RepositoryName
from consensus.proposer import Proposer
from consensus.views import Views
from node.errors import (
    ContentTooLarge,
    TooManyUploads,
    UploadLengthWrong,
    UploadOutOfOrder,
    UploadProgress,
    UploadUnknown,
)
from node.outcomes import carry_out
from node.tokens import UploadTokens
from replication.stores import BlobStore, StoreError, Upload, UploadNotFound, UploadStore

Chunks = AsyncIterator[bytes]


@dataclass(frozen=True, slots=True)
class Span:
    """Where a chunk belongs: its first byte's position, and how many bytes there are."""

    start: int
    length: int


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """How many uploads may be open, and how large a blob may be."""

    uploads: int
    blob_bytes: int


class Uploads:
    """The upload sessions of one node. Methods raise what the stores and the log raise besides what they name."""

    def __init__(
        self,
        sessions: UploadStore,
        blobs: BlobStore,
        proposer: Proposer,
        *,
        views: Views,
        tokens: UploadTokens,
        limits: UploadLimits,
    ) -> None:
        self._sessions = sessions
        self._blobs = blobs
        self._proposer = proposer
        self._views = views
        self._tokens = tokens
        self._limits = limits

    async def begin(self, repository: RepositoryName, algorithm: str) -> UploadProgress:
        """A new, empty upload. Raises TooManyUploads."""
        upload = await self._begin(algorithm)
        await upload.suspend()
        return self._progress(repository, upload)

    async def append(self, repository: RepositoryName, token: str, chunks: Chunks, span: Span | None) -> UploadProgress:
        """Adds bytes at the end. Raises UploadUnknown, UploadOutOfOrder, UploadLengthWrong, ContentTooLarge."""
        async with self._held(repository, token) as upload:
            await self._receive(repository, upload, chunks, span)
            await upload.suspend()
        return self._progress(repository, upload)

    async def finish(
        self, repository: RepositoryName, token: str, chunks: Chunks, *, span: Span | None, digest: Digest
    ) -> None:
        """Adds the last bytes, if any; the blob is then in the repository. Raises as `append`, and DigestMismatch. When
        the log cannot be reached the verified bytes stay, and repeating this sends none of them again."""
        try:
            async with self._held(repository, token) as upload:
                try:
                    await self._receive(repository, upload, chunks, span)
                except UploadNotFound:  # committed by an earlier attempt: the same bytes, sent again
                    await _pass_over(chunks)
                await self._commit(repository, upload, digest)
        except (UploadUnknown, UploadNotFound) as error:
            if not (self._tokens.read(token, repository) and self._views.blob(repository, digest)):
                raise UploadUnknown from error
            await _pass_over(chunks)  # finished before, and the answer was lost

    async def push(self, repository: RepositoryName, chunks: Chunks, digest: Digest) -> None:
        """All of a blob at once. Nothing is left of it if this raises."""
        upload = await self._begin(digest.algorithm)
        try:
            await self._receive(repository, upload, chunks, None)
            await self._commit(repository, upload, digest)
        except BaseException:
            await upload.abort()
            raise

    async def progress(self, repository: RepositoryName, token: str) -> UploadProgress:
        """How far the upload has come. Raises UploadUnknown."""
        async with self._held(repository, token) as upload:
            return self._progress(repository, upload)

    async def cancel(self, repository: RepositoryName, token: str) -> None:
        """Removes the upload and its bytes. Raises UploadUnknown."""
        async with self._held(repository, token) as upload:
            await upload.abort()

    async def _begin(self, algorithm: str) -> Upload:
        if await self._sessions.count() >= self._limits.uploads:
            raise TooManyUploads(self._limits.uploads)
        return await self._sessions.begin(algorithm)

    @asynccontextmanager
    async def _held(self, repository: RepositoryName, token: str) -> AsyncIterator[Upload]:
        try:
            upload = await self._sessions.resume(self._tokens.read(token, repository))
        except UploadNotFound as error:
            raise UploadUnknown from error
        try:
            yield upload
        finally:
            await upload.suspend()

    async def _receive(self, repository: RepositoryName, upload: Upload, chunks: Chunks, span: Span | None) -> None:
        room = self._limits.blob_bytes - upload.offset
        if span:
            if span.start != upload.offset:
                raise UploadOutOfOrder(self._progress(repository, upload))
            if span.length > room:
                raise ContentTooLarge("a blob", self._limits.blob_bytes)
        received = 0
        async for chunk in chunks:
            received += len(chunk)
            if span and received > span.length:
                raise UploadLengthWrong(f"more than the announced {span.length} bytes came")
            if received > room:
                raise ContentTooLarge("a blob", self._limits.blob_bytes)
            if chunk:
                await upload.write(chunk)
        if span and received != span.length:
            raise UploadLengthWrong(f"{received} bytes came, {span.length} were announced")

    async def _commit(self, repository: RepositoryName, upload: Upload, digest: Digest) -> None:
        fact = await upload.commit(digest)
        await carry_out(self._proposer, RecordBlobs(repository, self._blobs.store_id, (fact,)))
        with suppress(StoreError):  # the blob is in the log: what is left of the upload is the reaper's
            await upload.abort()

    def _progress(self, repository: RepositoryName, upload: Upload) -> UploadProgress:
        token = self._tokens.issue(upload.upload_id, repository)
        return UploadProgress(repository, token, upload.upload_id, upload.offset)


async def _pass_over(chunks: Chunks) -> None:
    async for _ in chunks:
        pass
