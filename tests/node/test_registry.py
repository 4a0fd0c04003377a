"""Use cases below HTTP: above all what happens when others get in between."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import pytest

from consensus.commands import Command, Outcome, PutManifest, StageContent
from consensus.errors import LogFull
from consensus.manifest import parse_manifest
from consensus.names import Digest, RepositoryName, Tag
from consensus.proposer import Channel, Proposer
from consensus.views import Views
from node.conditions import ANYTHING, UNCONDITIONAL, Condition
from node.errors import ManifestUnknown, TagConflict, Undecided
from tests.node.registries import APP, PLAIN, V1, push, registry_on, replicated


class Interfering:
    """A channel on which somebody else's commands go just before ours, as `meddle` says."""

    def __init__(self, channel: Channel, meddle: Callable[[Command], Command | None]) -> None:
        self._channel = channel
        self._meddle = meddle
        self._other: Proposer | None = None
        self.count = 0

    async def enrol(self, name: str) -> int:
        return await self._channel.enrol(name)

    async def propose(self, proposer: int, sequence: int, acknowledged: int, command: Command) -> Outcome:
        self._other = self._other or Proposer(self._channel, "somebody else")
        meddling = self._meddle(command)
        if meddling:
            self.count += 1
            await self._other.propose(meddling)
        return await self._channel.propose(proposer, sequence, acknowledged, command)


class Full:
    """A channel to a log whose disk is full."""

    async def enrol(self, name: str) -> int:
        raise LogFull("no space left on device")

    async def propose(self, proposer: int, sequence: int, acknowledged: int, command: Command) -> Outcome:
        raise LogFull("no space left on device")


async def test_a_tag_that_moves_meanwhile_is_looked_at_again(tmp_path: Path) -> None:
    """`If-Match: *` means whatever is there when the command is applied, not when it was sent."""
    async with replicated(tmp_path) as (replica, views):
        plain = registry_on(replica, views)
        await plain.push_manifest(APP, push(b"one"))
        others = [await plain.push_manifest(APP, push(f"other {n}".encode(), tag=Tag("o"))) for n in range(2)]
        moves = [push_of(views, other.digest) for other in others]

        def meddle(command: Command) -> Command | None:
            return moves.pop() if isinstance(command, PutManifest) and moves else None

        channel = Interfering(replica, meddle)
        pushed = await registry_on(channel, views).push_manifest(APP, push(b"mine", Condition(match=ANYTHING)))
        assert channel.count == 2
        assert (await plain.resolve(APP, V1)).digest == pushed.digest


def push_of(views: Views, digest: Digest) -> PutManifest:
    """The command that points the tag at a manifest that is there already."""
    found = views.manifest(APP, digest)
    assert found
    facts = parse_manifest(found[1], PLAIN)
    return PutManifest(APP, digest, len(found[1]), found[1], facts, (V1,), None, False)


async def test_a_tag_that_never_holds_still_is_given_up(tmp_path: Path) -> None:
    async with replicated(tmp_path) as (replica, views):
        plain = registry_on(replica, views)
        digests = [(await plain.push_manifest(APP, push(text))).digest for text in (b"one", b"two")]
        one_and_two = cycle([push_of(views, digest) for digest in digests])

        def meddle(command: Command) -> Command | None:
            return next(one_and_two) if isinstance(command, PutManifest) else None

        channel = Interfering(replica, meddle)
        with pytest.raises(Undecided):
            await registry_on(channel, views).push_manifest(APP, push(b"mine", Condition(match=ANYTHING)))
        assert (await plain.resolve(APP, V1)).digest in digests


async def test_a_fixed_expectation_is_tried_once(tmp_path: Path) -> None:
    async with replicated(tmp_path) as (replica, views):
        plain = registry_on(replica, views)
        one = (await plain.push_manifest(APP, push(b"one"))).digest
        two = (await plain.push_manifest(APP, push(b"two"))).digest
        with pytest.raises(TagConflict) as caught:
            await plain.push_manifest(APP, push(b"mine", Condition(match=frozenset({one}))))
        assert caught.value.current == two
        with pytest.raises(TagConflict):
            await plain.delete_tag(APP, V1, Condition(match=frozenset({one})))
        await plain.delete_tag(APP, V1, Condition(match=frozenset({two})))
        with pytest.raises(ManifestUnknown):
            await plain.resolve(APP, V1)


LARGE = b"x" * 300_000


async def test_a_manifest_over_a_commands_size_travels_in_parts(tmp_path: Path) -> None:
    async with replicated(tmp_path) as (replica, views):
        registry = registry_on(replica, views)
        pushes = [push(bytes([number]) + LARGE, tag=Tag(f"v{number}")) for number in range(5)]
        pushed = await asyncio.gather(*(registry.push_manifest(APP, it) for it in pushes))
        for each, it in zip(pushes, pushed, strict=True):
            assert registry.content(APP, it.digest) == each.content


async def test_large_manifests_take_turns(tmp_path: Path) -> None:
    """The state keeps the parts of few: sixteen at once would drive each other's out, and none would come through."""
    async with replicated(tmp_path) as (replica, views):
        under_way: set[Digest] = set()
        seen = []

        def watch(command: Command) -> None:
            if isinstance(command, StageContent):
                under_way.add(command.digest)
            elif isinstance(command, PutManifest):
                under_way.remove(command.digest)
            seen.append(len(under_way))

        registry = registry_on(Interfering(replica, watch), views)
        pushes = [push(bytes([number]) + LARGE, tag=Tag(f"v{number}")) for number in range(8)]
        await asyncio.gather(*(registry.push_manifest(APP, it) for it in pushes))
        assert max(seen) == 2


@pytest.mark.parametrize(("times", "succeeds"), [(1, True), (4, True), (99, False)])
async def test_parts_that_others_drive_out_are_sent_again(tmp_path: Path, times: int, succeeds: bool) -> None:
    async with replicated(tmp_path) as (replica, views):
        left = [times]

        def meddle(command: Command) -> Command | None:
            if not isinstance(command, PutManifest) or not left[0]:
                return None
            left[0] -= 1
            return StageContent(APP, command.digest, 0, 2, b"the first part of something else")

        registry = registry_on(Interfering(replica, meddle), views)
        if succeeds:
            digest = (await registry.push_manifest(APP, push(LARGE))).digest
            assert registry.content(APP, digest) == LARGE
        else:
            with pytest.raises(Undecided):
                await registry.push_manifest(APP, push(LARGE))
            with pytest.raises(ManifestUnknown):
                await registry.resolve(APP, V1)


@pytest.mark.parametrize("content", [b"small", LARGE])
async def test_a_full_log_refuses_and_reading_goes_on(tmp_path: Path, content: bytes) -> None:
    async with replicated(tmp_path) as (replica, views):
        await registry_on(replica, views).push_manifest(APP, push(b"kept"))
        full = registry_on(Full(), views)
        with pytest.raises(LogFull):
            await full.push_manifest(APP, push(content, tag=Tag("v2")))
        with pytest.raises(LogFull):
            await full.delete_tag(APP, V1, UNCONDITIONAL)
        assert full.content(APP, (await full.resolve(APP, V1)).digest) == b"kept"


async def test_a_manifest_that_went_away_after_it_was_resolved(tmp_path: Path) -> None:
    async with replicated(tmp_path) as (replica, views):
        registry = registry_on(replica, views)
        with pytest.raises(ManifestUnknown):
            registry.content(APP, Digest("sha256", "0" * 64))


async def test_what_is_cached_is_still_asked_for(tmp_path: Path) -> None:
    """The cache holds bytes, never whether a repository has them."""
    async with replicated(tmp_path) as (replica, views):
        registry = registry_on(replica, views)
        digest = (await registry.push_manifest(APP, push(b"one"))).digest
        assert registry.content(APP, digest) == b"one"
        await registry.delete_manifest(APP, digest)
        for reference in (V1, digest):
            with pytest.raises(ManifestUnknown):
                await registry.resolve(APP, reference)


async def test_the_media_type_belongs_to_the_repository(tmp_path: Path) -> None:
    """The same bytes may be pushed as something else elsewhere; both readers get what was pushed to them."""
    async with replicated(tmp_path) as (replica, views):
        registry = registry_on(replica, views)
        other = RepositoryName("other")
        digest = (await registry.push_manifest(APP, push(b"{}"))).digest
        await registry.push_manifest(other, replace(push(b"{}"), media_type="application/vnd.example.other"))
        assert (await registry.resolve(APP, digest)).media_type == PLAIN
        assert (await registry.resolve(other, digest)).media_type == "application/vnd.example.other"
