"""The use cases of a registry. No HTTP here: `node.gateway` translates.

Reads are answered from this node's state, on the event loop, once that is known to be as new as they have to see it
(`node.freshness`); writes go through the log and are answered once they are durable and visible. Who may do what has
been settled before (`node.access`).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from consensus.codec import split_manifest
from consensus.commands import (
    Command,
    DeleteBlob,
    DeleteManifest,
    DeleteTag,
    ManifestFacts,
    MountBlob,
    PutManifest,
    Reason,
    Status,
)
from consensus.manifest import is_index, parse_manifest, undecided_children
from consensus.names import Digest, Reference, RepositoryName, Tag
from consensus.proposer import Proposer
from consensus.views import BlobView, ManifestView, Referrer, Views
from node.conditions import ANYTHING, UNCONDITIONAL, Condition
from node.config import Config
from node.contents import ContentCache
from node.errors import (
    BlobElsewhere,
    BlobUnknown,
    ConditionFailed,
    ContentWrong,
    Disabled,
    ManifestIncomplete,
    ManifestUnknown,
    RepositoryUnknown,
    StateUnconfirmed,
    TagConflict,
    Undecided,
)
from node.freshness import AlwaysFresh, Freshness
from node.outcomes import carry_out, refusal
from node.tokens import UploadTokens
from node.uploads import UploadLimits, Uploads
from replication.sources import Wanted
from replication.stores import BlobNotFound, BlobReader, BlobStore, UploadStore

log = logging.getLogger(__name__)

_INLINE_BYTES = 64 * 1024  # a manifest up to here is parsed on the event loop: quicker than a thread's hop
_ATTEMPTS = 5  # at a tag that others move, and at parts that others drive out
_STAGING = 2  # manifests in parts at once: the state keeps the parts of sixteen, whichever gateway they come from
_TURN_SECONDS = 15.0
_COMPANIONS = 64  # blobs of an image that are fetched when one of them is asked for


@dataclass(frozen=True, slots=True)
class ManifestPush:
    """A manifest as it arrived. `digest` is what the client says it is, None if it only gave a tag. `condition` is
    about the tags; one that is not fixed takes a single tag."""

    content: bytes
    media_type: str
    digest: Digest | None
    tags: tuple[Tag, ...]
    condition: Condition = UNCONDITIONAL


@dataclass(frozen=True, slots=True)
class PushedManifest:
    """A manifest that is visible now."""

    digest: Digest
    subject: Digest | None


class BlobsElsewhere(Protocol):
    """The blobs that other nodes hold."""

    async def open(self, wanted: Wanted, start: int, stop: int) -> BlobReader:
        """See Registry.open_blob. Raises TransferError, StoreError."""

    def ahead(self, wanted: Sequence[Wanted]) -> None:
        """These are likely to be asked for soon; some of them may be here."""


class Registry:
    """One node's registry. Methods raise RegistryError as they say, StateUnconfirmed where they read, LogFull and
    LogUnavailable where they write, StoreError where they touch bytes, and sqlite3.Error when the disk under the state
    refuses.

    All is read from a state that has everything acknowledged anywhere before the call. Where nobody can confirm that,
    blobs are found in the state at hand all the same: what a digest stands for never changes, and pulls go on."""

    def __init__(
        self,
        *,
        views: Views,
        proposer: Proposer,
        blobs: BlobStore,
        uploads: UploadStore,
        tokens: UploadTokens,
        config: Config,
        freshness: Freshness | None = None,
        elsewhere: BlobsElsewhere | None = None,
    ) -> None:
        self._views = views
        self._fresh = (freshness or AlwaysFresh()).fresh
        self._proposer = proposer
        self._blobs = blobs
        self._elsewhere = elsewhere
        self._config = config.registry
        self._staging = asyncio.Semaphore(_STAGING)
        self._contents = ContentCache(config.limits.manifest_cache_bytes, views.content)
        limits = UploadLimits(config.limits.uploads, config.limits.blob_bytes)
        self.uploads = Uploads(uploads, blobs, proposer, views=views, tokens=tokens, limits=limits)

    # Manifests

    async def resolve(self, repository: RepositoryName, reference: Reference) -> ManifestView:
        """What a tag or digest stands for. Raises ManifestUnknown."""
        await self._fresh()
        view = self._views.resolve(repository, reference)
        if view is None:
            raise ManifestUnknown(repository, reference)
        return view

    def content(self, repository: RepositoryName, digest: Digest) -> bytes:
        """The bytes of a manifest that was just resolved there. Raises ManifestUnknown if it went away since."""
        content = self._contents.get(digest)
        if content is None:
            raise ManifestUnknown(repository, digest)
        return content

    async def push_manifest(self, repository: RepositoryName, push: ManifestPush) -> PushedManifest:
        """Makes the manifest visible under its digest and tags. Raises InvalidManifest, ContentWrong,
        ManifestIncomplete, TagConflict, Undecided."""
        if len(push.content) <= _INLINE_BYTES:
            digest, facts, undecided = _examine(push)
        else:
            digest, facts, undecided = await asyncio.to_thread(_examine, push)
        if undecided:
            await self._fresh()
            facts = self._decide(repository, facts, undecided)
        sparse = self._config.sparse_indexes
        needed = (facts.blobs, () if sparse else facts.manifests)
        if self._views.missing(repository, *needed):
            await self._fresh()
            if missing := self._views.missing(repository, *needed):
                raise ManifestIncomplete(missing)
        command = PutManifest(
            repository=repository,
            digest=digest,
            size_bytes=len(push.content),
            content=push.content,
            facts=facts,
            tags=push.tags,
            expected=None,
            sparse=sparse,
        )
        await self._put(command, push.condition)
        return PushedManifest(digest, facts.subject)

    async def delete_tag(self, repository: RepositoryName, tag: Tag, condition: Condition) -> None:
        """The tag goes, its manifest stays. Raises Disabled, ManifestUnknown, TagConflict."""
        if not self._config.delete_tags:
            raise Disabled("this registry does not delete tags")
        current = (await self.resolve(repository, tag)).digest
        if not condition.holds(current):
            raise TagConflict(current)
        matters = condition.none_match is not None or condition.match not in (None, ANYTHING)
        await carry_out(self._proposer, DeleteTag(repository, tag, current if matters else None))

    async def delete_manifest(
        self, repository: RepositoryName, digest: Digest, condition: Condition = UNCONDITIONAL
    ) -> None:
        """The manifest goes, and every tag that names it. Raises Disabled, ManifestUnknown, ConditionFailed."""
        if not self._config.delete_manifests:
            raise Disabled("this registry does not delete manifests")
        await self.resolve(repository, digest)
        if not condition.holds(digest):
            raise ConditionFailed(digest)
        await carry_out(self._proposer, DeleteManifest(repository, digest))

    # Blobs

    async def blob(self, repository: RepositoryName, digest: Digest, *, is_read: bool = False) -> BlobView:
        """A blob of the repository; if `is_read`, its bytes are wanted next. Raises BlobUnknown."""
        if is_read:
            await self._foresee(repository, digest)
        unconfirmed = None
        try:
            await self._fresh()
        except StateUnconfirmed as error:
            unconfirmed = error
        view = self._views.blob(repository, digest)
        if view is None:
            raise unconfirmed or BlobUnknown(repository, digest)
        return view

    async def open_blob(
        self, repository: RepositoryName, digest: Digest, size_bytes: int, start: int, stop: int
    ) -> BlobReader:
        """The bytes from `start` to before `stop`, in order, of a blob that was just found in a repository; the caller
        closes it. What is not here comes from where it is: it is returned once the first bytes can be read, and its
        `read` waits for the others, and raises TransferError if they do not come or are not right. The other blobs of
        its image come too, then. Raises BlobElsewhere where there are no others to ask, TransferError."""
        with suppress(BlobNotFound):
            reader = await self._blobs.open(digest)
            if reader.size_bytes == size_bytes:
                return reader
            reader.close()
            log.error("blob_damaged", extra={"digest": str(digest), "bytes": reader.size_bytes, "expected": size_bytes})
        if self._elsewhere is None:
            raise BlobElsewhere(digest)
        companions = self._views.companions(repository, digest, _COMPANIONS)
        self._elsewhere.ahead([self._wanted(*companion) for companion in companions])
        return await self._elsewhere.open(self._wanted(digest, size_bytes), start, stop)

    async def open_held(self, digest: Digest) -> BlobReader:
        """The bytes of a blob that this node itself holds, for the other nodes. Raises BlobNotFound."""
        return await self._blobs.open(digest)

    async def mount_blob(self, repository: RepositoryName, digest: Digest, source: RepositoryName | None) -> bool:
        """Lets a blob of `source` (None: of any repository) belong to this one too. False if there is none."""
        if self._views.blob(repository, digest):
            await self._fresh()  # it may have been deleted elsewhere, and then has to come back
            if self._views.blob(repository, digest):
                return True
        if source and not self._views.blob(source, digest):  # else the command decides
            await self._fresh()
            if not self._views.blob(source, digest):
                return False
        try:
            await carry_out(self._proposer, MountBlob(repository, digest, source))
        except BlobUnknown:
            return False
        return True

    async def delete_blob(
        self, repository: RepositoryName, digest: Digest, condition: Condition = UNCONDITIONAL
    ) -> None:
        """The blob leaves the repository. Raises Disabled, BlobUnknown, ConditionFailed, BlobInUse."""
        if not self._config.delete_blobs:
            raise Disabled("this registry does not delete blobs")
        await self._fresh()
        if self._views.blob(repository, digest) is None:
            raise BlobUnknown(repository, digest)
        if not condition.holds(digest):
            raise ConditionFailed(digest)
        await carry_out(self._proposer, DeleteBlob(repository, digest))

    # Lists

    async def tags(self, repository: RepositoryName, after: str | None, limit: int) -> list[str]:
        """Up to `limit` tags that follow `after`, in ASCII order. Raises RepositoryUnknown."""
        await self._fresh()
        tags = self._views.tags(repository, after, limit)
        if tags is None:
            raise RepositoryUnknown(repository)
        return tags

    async def repositories(self, after: str | None, limit: int) -> list[str]:
        """Up to `limit` repositories that follow `after`, in ASCII order."""
        await self._fresh()
        return self._views.repositories(after, limit)

    async def referrers(
        self, repository: RepositoryName, subject: Digest, artifact_type: str | None
    ) -> Callable[[Digest | None, int], list[Referrer]]:
        """Manifests that refer to `subject`, which need not exist, and neither need the repository: to be read at once,
        each call giving up to so many that follow a digest."""
        await self._fresh()
        return partial(self._views.referrers, repository, subject, artifact_type)

    async def _foresee(self, repository: RepositoryName, digest: Digest) -> None:
        """Has bytes that are not here set out while it is confirmed that they may be read: both take a round trip."""
        if self._elsewhere and (view := self._views.blob(repository, digest)):
            try:
                await self._blobs.stat(digest)
            except BlobNotFound:
                self._elsewhere.ahead([self._wanted(digest, view.size_bytes)])

    def _wanted(self, digest: Digest, size_bytes: int) -> Wanted:
        holders = tuple(store for store in self._views.holders(digest) if store != self._blobs.store_id)
        facts = self._views.facts(digest)
        return Wanted(digest, size_bytes, holders, *((facts.parts, facts.pushed_ms) if facts else ()))

    def _decide(self, repository: RepositoryName, facts: ManifestFacts, undecided: frozenset[Digest]) -> ManifestFacts:
        """Children that are blobs here, and no manifests, are taken for blobs."""
        absent = set(self._views.missing(repository, (), facts.manifests)) & undecided
        blobs = absent - set(self._views.missing(repository, tuple(absent), ()))
        return replace(
            facts,
            blobs=tuple(dict.fromkeys((*facts.blobs, *(child for child in facts.manifests if child in blobs)))),
            manifests=tuple(child for child in facts.manifests if child not in blobs),
        )

    async def _put(self, command: PutManifest, condition: Condition) -> None:
        if condition.is_fixed or not command.tags:
            await self._propose(replace(command, expected=condition.expected(None)))
            return
        for _ in range(_ATTEMPTS):
            await self._fresh()
            view = self._views.resolve(command.repository, command.tags[0])
            current = view.digest if view else None
            if current != command.digest and not condition.holds(current):
                raise TagConflict(current)
            with suppress(TagConflict):  # moved since we looked: look again
                await self._propose(replace(command, expected=condition.expected(current)))
                return
        raise Undecided("the tag keeps moving")

    async def _propose(self, command: PutManifest) -> None:
        *parts, last = split_manifest(command)
        if not parts:
            await carry_out(self._proposer, last)
            return
        async with self._turn():
            for _ in range(_ATTEMPTS):
                await self._stage(parts)
                outcome = await self._proposer.propose(last)
                if outcome.status is Status.DONE:
                    return
                if outcome.reason is not Reason.STAGE_INCOMPLETE:
                    raise refusal(last, outcome)
        raise Undecided("the parts of the manifest keep expiring")

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Many at once would drive each other's parts out of the state, and have to send them again and again."""
        try:
            async with asyncio.timeout(_TURN_SECONDS):
                await self._staging.acquire()
        except TimeoutError as error:
            raise Undecided("too many large manifests are being pushed at once") from error
        try:
            yield
        finally:
            self._staging.release()

    async def _stage(self, parts: Sequence[Command]) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for part in parts:
                    group.create_task(carry_out(self._proposer, part))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from failures


def _examine(push: ManifestPush) -> tuple[Digest, ManifestFacts, frozenset[Digest]]:
    """Its digest, what it says, and which of its children may be either blobs or manifests."""
    algorithm = push.digest.algorithm if push.digest else "sha256"
    actual = Digest(algorithm, hashlib.new(algorithm, push.content).hexdigest())
    if push.digest and actual != push.digest:
        raise ContentWrong(push.digest, actual)
    facts = parse_manifest(push.content, push.media_type)
    return actual, facts, undecided_children(push.content) if is_index(facts.media_type) else frozenset()
