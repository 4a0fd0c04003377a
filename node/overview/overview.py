"""The questions that people ask about replication, answered from what the members say and the log."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection

from consensus.names import Digest, Reference, RepositoryName
from consensus.views import ManifestView
from node.overview.here import Here, Known
from node.overview.members import Members, Unheard
from node.overview.reasons import Blob, blob_at, image_at, lost_stores
from node.overview.shapes import (
    MAX_IMAGE_BLOBS,
    MAX_NAMED,
    BlobStatus,
    BringAtMember,
    BringStatus,
    Demanded,
    ImageStatus,
    ManifestName,
    MemberStatus,
    MemberStatuses,
)

Resolve = Callable[[RepositoryName, Reference], Awaitable[ManifestView]]


class OverviewError(Exception):
    """The root of what cannot be answered:

    OverviewError
    ├── BlobUnknown       no push of it is in the log, as far as this node knows it
    ├── MemberUnknown     no member of the cluster has the name
    └── ImageTooLarge     it names more blobs than are looked at
    """


class BlobUnknown(OverviewError):
    """The log knows no such blob."""

    def __init__(self, digest: Digest) -> None:
        super().__init__(f"{digest} is not known: it was never pushed, or this node has not heard of it yet")


class MemberUnknown(OverviewError):
    """`members` are none of this cluster."""

    def __init__(self, members: Collection[str]) -> None:
        super().__init__(f"no member of this cluster: {', '.join(each[:63] for each in members)}")


class ImageTooLarge(OverviewError):
    """More than MAX_IMAGE_BLOBS."""

    def __init__(self) -> None:
        super().__init__(f"the image and those below it name more than {MAX_IMAGE_BLOBS} blobs")


class Overview:
    """Methods raise what `resolve` does where they take a reference; StoreError, StateRefused and sqlite3.Error where
    this node's own disk refuses. What another member cannot say is part of the answer."""

    def __init__(self, here: Here, members: Members, resolve: Resolve) -> None:
        self.here = here
        self._members = members
        self._resolve = resolve

    async def own(self) -> MemberStatus:
        """This member."""
        return await self.here.status()

    async def statuses(self) -> MemberStatuses:
        """All members."""
        found = await self._members.statuses()
        return MemberStatuses(members=tuple(map(_status, found)))

    async def blob(self, digest: Digest) -> BlobStatus:
        """Where a blob is, and why not elsewhere. Raises BlobUnknown."""
        known = (await self.here.known([digest])).get(digest)
        if known is None:
            raise BlobUnknown(digest)
        repositories, manifests = await self.here.naming(digest, MAX_NAMED)
        everywhere = await self._members.holdings([digest])
        blob = _blob(digest, known)
        return BlobStatus(
            digest=str(digest),
            size_bytes=blob.size_bytes,
            pushed_ms=known.facts.pushed_ms,
            repositories=tuple(repositories),
            manifests=tuple(ManifestName(repository=name, digest=str(each)) for name, each in manifests),
            members=tuple(blob_at(heard, blob, everywhere) for heard in everywhere),
            lost_stores=lost_stores(blob, everywhere),
        )

    async def image(self, repository: RepositoryName, reference: Reference) -> ImageStatus:
        """How much of an image is where. Raises ImageTooLarge."""
        digest, digests = await self._image(repository, reference)
        known = await self.here.known(digests)
        blobs = [_blob(each, found) for each, found in known.items()]
        everywhere = await self._members.holdings(list(known))
        return ImageStatus(
            repository=str(repository),
            digest=str(digest),
            blobs=len(blobs),
            size_bytes=sum(blob.size_bytes for blob in blobs),
            members=tuple(image_at(heard, blobs, everywhere) for heard in everywhere),
        )

    async def bring(
        self, repository: RepositoryName, reference: Reference, members: Collection[str] | None
    ) -> BringStatus:
        """Has members bring what they lack of an image. Raises MemberUnknown, ImageTooLarge."""
        if members and (unknown := self._members.unknown(members)):
            raise MemberUnknown(unknown)
        _, digests = await self._image(repository, reference)
        return BringStatus(members=tuple(map(_brought, await self._members.demand(digests, members))))

    async def _image(self, repository: RepositoryName, reference: Reference) -> tuple[Digest, list[Digest]]:
        """What it is, and its blobs. What a digest stands for never changes: where the state at hand has it nobody else
        has to be asked."""
        view = None
        if isinstance(reference, Digest):
            view = await self.here.look(lambda views: views.resolve(repository, reference))
        view = view or await self._resolve(repository, reference)
        digests = await self.here.image(repository, view.digest, MAX_IMAGE_BLOBS + 1)
        if len(digests) > MAX_IMAGE_BLOBS:
            raise ImageTooLarge
        return view.digest, digests


def _blob(digest: Digest, known: Known) -> Blob:
    return Blob(str(digest), known.facts.size_bytes, known.holders)


def _status(found: MemberStatus | Unheard) -> MemberStatus:
    if isinstance(found, MemberStatus):
        return found
    return MemberStatus(member=found.member, region=found.region, state="unreachable", reason=found.reason)


def _brought(found: Demanded | Unheard) -> BringAtMember:
    if isinstance(found, Unheard):
        return BringAtMember(
            member=found.member,
            region=found.region,
            state="unreachable",
            asked=0,
            held=0,
            unknown=0,
            reason=found.reason,
        )
    return BringAtMember(
        member=found.member,
        region=found.region,
        state="ok",
        asked=found.asked,
        held=found.held,
        unknown=found.unknown,
        reason="",
    )
