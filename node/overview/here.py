"""What this member says about replication, to the others and to people: of its own store, state and replicator.

Nothing here asks another node, and nothing but `demand` has any effect.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from consensus import entropy
from consensus.names import Digest, RepositoryName, StoreId
from consensus.views import BlobFacts, Views
from node.overview.shapes import Demanded, Holdings, MemberStatus
from replication.fetcher import MAX_AHEAD
from replication.reports import MemberReport, ReplicatorReport
from replication.sources import Wanted
from replication.stores import BlobNotFound, BlobStore

LOOKS_AT_ONCE = 8
SILENT = "the process that brings blobs there does not answer"

T = TypeVar("T")


class Replicator(Protocol):
    """The process that brings blobs here."""

    async def report(self) -> ReplicatorReport | None:
        """None if it does not answer."""

    async def ahead(self, wanted: Sequence[Wanted]) -> bool:
        """These are to be brought when there is nothing more urgent. Raises nothing."""


@dataclass(frozen=True, slots=True)
class Known:
    """A blob, as the log knows it."""

    facts: BlobFacts
    holders: tuple[StoreId, ...]


class Here:
    """This member. Without a replicator it stands alone."""

    def __init__(
        self, member: str, region: str, *, state: Path, blobs: BlobStore, replicator: Replicator | None
    ) -> None:
        self.member = member
        self.region = region
        self.store_id = blobs.store_id
        self.met: dict[str, MemberReport] = {}  # other members, as they last said; "" for a store that is not known
        self._state = state
        self._blobs = blobs
        self._replicator = replicator

    async def status(self) -> MemberStatus:
        """Of the replicator."""
        if self._replicator is None:
            return MemberStatus(
                member=self.member, region=self.region, state="alone", reason="this node is no member of a cluster"
            )
        report = await self._report()
        if report is None:
            return MemberStatus(member=self.member, region=self.region, state="silent", reason=SILENT)
        return MemberStatus(member=self.member, region=self.region, state="ok", replication=report)

    async def holdings(self, digests: Sequence[Digest], *, report: bool = True) -> Holdings:
        """What the store has of these, exactly, and what the replicator says. Raises StoreError."""
        held = await self._held(digests)
        found = await self._report() if report else None
        return Holdings(
            member=self.member,
            region=self.region,
            store_id=self.store_id,
            held=tuple(map(str, held)),
            arriving=found.transfers if found else (),
            waiting=found.waiting if found else (),
            failures=found.failures if found else (),
            replicator=found is not None,
        )

    async def demand(self, digests: Sequence[Digest]) -> Demanded:
        """Has what is known to the log and not here brought here, behind what clients wait for. Of more than the
        replicator lets wait these are some, each time others: it is asked again until nothing is lacking, and what
        cannot be brought must not be in the way of the rest. Raises StoreError, StateRefused, sqlite3.Error."""
        held = set(await self._held(digests))
        lacking = [digest for digest in digests if digest not in held]
        known = await self.known(lacking)
        wanted = [self._wanted(digest, found) for digest, found in known.items()]
        begin = int(entropy.fraction() * len(wanted))
        wanted = [*wanted[begin:], *wanted[:begin]][:MAX_AHEAD]
        told = self._replicator is not None and await self._replicator.ahead(wanted)
        return Demanded(
            member=self.member,
            region=self.region,
            asked=len(wanted) if told else 0,
            held=len(held),
            unknown=len(lacking) - len(known),
        )

    async def known(self, digests: Sequence[Digest]) -> dict[Digest, Known]:
        """Those that the log knows, as far as it has been applied here. Raises StateRefused, sqlite3.Error."""

        def look(views: Views) -> dict[Digest, Known]:
            facts = {digest: found for digest in digests if (found := views.facts(digest))}
            return {digest: Known(found, tuple(views.holders(digest))) for digest, found in facts.items()}

        return await self.look(look)

    async def naming(self, digest: Digest, limit: int) -> tuple[list[str], list[tuple[str, Digest]]]:
        """Up to `limit` repositories that have the blob, and manifests that name it, each with its repository."""
        return await self.look(
            lambda views: (views.repositories_with(digest, limit), views.manifests_naming(digest, limit))
        )

    async def image(self, repository: RepositoryName, digest: Digest, limit: int) -> list[Digest]:
        """Up to `limit` blobs of a manifest and of those below it."""
        found = await self.look(lambda views: views.image_blobs(repository, digest, limit))
        return [blob for blob, _ in found]

    async def look(self, look: Callable[[Views], T]) -> T:
        """At the state at hand, in a thread: it may take a while. Raises StateRefused, sqlite3.Error."""

        def opened() -> T:
            with closing(Views(self._state)) as views:
                return look(views)

        return await asyncio.to_thread(opened)

    async def _report(self) -> ReplicatorReport | None:
        report = await self._replicator.report() if self._replicator else None
        self.met.update({each.member: each for each in report.members} if report else {})
        return report

    async def _held(self, digests: Sequence[Digest]) -> list[Digest]:
        turns = asyncio.Semaphore(LOOKS_AT_ONCE)

        async def is_held(digest: Digest) -> bool:
            async with turns:
                try:
                    await self._blobs.stat(digest)
                except BlobNotFound:
                    return False
                return True

        found = await asyncio.gather(*map(is_held, digests))
        return [digest for digest, held in zip(digests, found, strict=True) if held]

    def _wanted(self, digest: Digest, known: Known) -> Wanted:
        holders = tuple(store for store in known.holders if store != self.store_id)
        return Wanted(digest, known.facts.size_bytes, holders, known.facts.parts, known.facts.pushed_ms)
