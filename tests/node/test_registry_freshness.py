"""A member whose state lags behind what was acknowledged elsewhere: what it reads, and what it makes sure of first."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from consensus.commands import BlobFact, DeleteBlob, RecordBlobs
from consensus.names import Digest, RepositoryName, StoreId
from consensus.proposer import Proposer
from consensus.replica import Replica
from node.conditions import ANYTHING, Condition
from node.errors import BlobUnknown, ManifestUnknown, StateUnconfirmed, TagConflict
from node.registry import Registry
from tests.node.registries import APP, V1, push, registry_on, replicated


class Behind:
    """What a member lacks of what was acknowledged elsewhere: it is applied when the member syncs."""

    def __init__(self, elsewhere: Callable[[], Awaitable[object]]) -> None:
        self._elsewhere = elsewhere
        self.asked = 0

    async def fresh(self) -> None:
        self.asked += 1
        if self.asked == 1:
            await self._elsewhere()


LAYER = b"layer"


async def record(replica: Replica, repository: RepositoryName = APP) -> Digest:
    digest = Digest("sha256", hashlib.sha256(LAYER).hexdigest())
    fact = BlobFact(digest, len(LAYER))
    await Proposer(replica, "elsewhere").propose(RecordBlobs(repository, StoreId("b" * 32), (fact,)))
    return digest


Read = Callable[[Registry, Digest], Awaitable[object]]
READS: dict[str, Read] = {
    "tag": lambda registry, digest: registry.resolve(APP, V1),
    "digest": lambda registry, digest: registry.resolve(APP, digest),
    "tags": lambda registry, digest: registry.tags(APP, None, 10),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
async def test_what_was_pushed_elsewhere_is_read(tmp_path: Path, read: Read) -> None:
    async with replicated(tmp_path) as (replica, views):
        elsewhere = registry_on(replica, views)
        behind = Behind(lambda: elsewhere.push_manifest(APP, push(b"one")))
        digest = Digest("sha256", hashlib.sha256(b"one").hexdigest())
        assert await read(registry_on(replica, views, behind), digest)
        assert behind.asked == 1


@pytest.mark.parametrize("read", READS.values(), ids=READS)
async def test_what_was_deleted_elsewhere_is_not(tmp_path: Path, read: Read) -> None:
    async with replicated(tmp_path) as (replica, views):
        elsewhere = registry_on(replica, views)
        digest = (await elsewhere.push_manifest(APP, push(b"one"))).digest
        behind = Behind(lambda: elsewhere.delete_manifest(APP, digest))
        try:
            assert await read(registry_on(replica, views, behind), digest) == []
        except ManifestUnknown:
            assert read is not READS["tags"]


async def test_lists_are_as_new(tmp_path: Path) -> None:
    async with replicated(tmp_path) as (replica, views):
        behind = Behind(lambda: record(replica))
        assert await registry_on(replica, views, behind).repositories(None, 10) == ["team/app"]
        subject = Digest("sha256", "5" * 64)
        content = json.dumps(
            {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [], "subject": described(subject)}
        ).encode()
        elsewhere = registry_on(replica, views)
        behind = Behind(lambda: elsewhere.push_manifest(APP, replace(push(content), media_type=OCI_INDEX, tags=())))
        listing = await registry_on(replica, views, behind).referrers(APP, subject, None)
        assert len(listing(None, 10)) == 1


OCI_INDEX = "application/vnd.oci.image.index.v1+json"


def described(digest: Digest) -> dict[str, object]:
    return {"mediaType": OCI_INDEX, "digest": str(digest), "size": 1}


async def test_a_blob_is_looked_for_in_a_confirmed_state(tmp_path: Path) -> None:
    async with replicated(tmp_path) as (replica, views):
        behind = Behind(lambda: record(replica))
        registry = registry_on(replica, views, behind)
        digest = Digest("sha256", hashlib.sha256(LAYER).hexdigest())
        assert (await registry.blob(APP, digest)).size_bytes == len(LAYER)
        assert (await registry.blob(APP, digest)).size_bytes == len(LAYER)
        assert behind.asked == 2
        with pytest.raises(BlobUnknown):
            await registry.blob(APP, Digest("sha256", "0" * 64))
        assert behind.asked == 3


async def test_a_blob_that_was_deleted_elsewhere_is_gone(tmp_path: Path) -> None:
    async with replicated(tmp_path) as (replica, views):
        digest = await record(replica)
        behind = Behind(lambda: Proposer(replica, "elsewhere").propose(DeleteBlob(APP, digest)))
        with pytest.raises(BlobUnknown):
            await registry_on(replica, views, behind).blob(APP, digest)


class Unconfirmed:
    """A member without a steward."""

    async def fresh(self) -> None:
        raise StateUnconfirmed("no steward")


async def test_where_nobody_can_confirm_blobs_are_found_and_nothing_is_missing_for_sure(tmp_path: Path) -> None:
    async with replicated(tmp_path) as (replica, views):
        digest = await record(replica)
        registry = registry_on(replica, views, Unconfirmed())
        assert (await registry.blob(APP, digest)).size_bytes == len(LAYER)
        with pytest.raises(StateUnconfirmed):
            await registry.blob(APP, Digest("sha256", "0" * 64))


@pytest.mark.parametrize("source", [APP, None])
async def test_a_blob_of_elsewhere_can_be_mounted(tmp_path: Path, source: RepositoryName | None) -> None:
    async with replicated(tmp_path) as (replica, views):
        if source is None:
            await record(replica)
        behind = Behind(lambda: record(replica))
        digest = Digest("sha256", hashlib.sha256(LAYER).hexdigest())
        assert await registry_on(replica, views, behind).mount_blob(RepositoryName("other"), digest, source)
        assert behind.asked == (0 if source is None else 1)


async def test_a_mount_brings_back_what_was_deleted_elsewhere(tmp_path: Path) -> None:
    """The answer must not rest on what this member still has."""
    async with replicated(tmp_path) as (replica, views):
        digest = await record(replica)
        await record(replica, RepositoryName("other"))
        behind = Behind(lambda: Proposer(replica, "elsewhere").propose(DeleteBlob(APP, digest)))
        assert await registry_on(replica, views, behind).mount_blob(APP, digest, RepositoryName("other"))
        assert views.blob(APP, digest)
        assert behind.asked == 1


async def test_a_manifest_of_blobs_of_elsewhere_is_taken(tmp_path: Path) -> None:
    async with replicated(tmp_path) as (replica, views):
        behind = Behind(lambda: record(replica))
        registry = registry_on(replica, views, behind)
        layer = {"mediaType": "x/y", "digest": f"sha256:{hashlib.sha256(LAYER).hexdigest()}", "size": len(LAYER)}
        content = json.dumps({"schemaVersion": 2, "mediaType": OCI_IMAGE, "config": layer, "layers": [layer]}).encode()
        await registry.push_manifest(APP, replace(push(content), media_type=OCI_IMAGE))
        await registry.push_manifest(APP, replace(push(content), media_type=OCI_IMAGE))
        assert behind.asked == 1


OCI_IMAGE = "application/vnd.oci.image.manifest.v1+json"


async def test_a_condition_is_about_the_newest_tag(tmp_path: Path) -> None:
    async with replicated(tmp_path) as (replica, views):
        elsewhere = registry_on(replica, views)
        behind = Behind(lambda: elsewhere.push_manifest(APP, push(b"one")))
        await registry_on(replica, views, behind).push_manifest(APP, push(b"two", Condition(match=ANYTHING)))
        two = (await elsewhere.resolve(APP, V1)).digest
        behind = Behind(lambda: elsewhere.push_manifest(APP, push(b"three")))
        with pytest.raises(TagConflict):
            await registry_on(replica, views, behind).delete_tag(APP, V1, Condition(match=frozenset({two})))


async def test_deletes_look_for_the_newest(tmp_path: Path) -> None:
    async with replicated(tmp_path) as (replica, views):
        elsewhere = registry_on(replica, views)
        behind = Behind(lambda: elsewhere.push_manifest(APP, push(b"one")))
        await registry_on(replica, views, behind).delete_manifest(
            APP, Digest("sha256", hashlib.sha256(b"one").hexdigest())
        )
        behind = Behind(lambda: record(replica))
        digest = Digest("sha256", hashlib.sha256(LAYER).hexdigest())
        await registry_on(replica, views, behind).delete_blob(APP, digest)
        with pytest.raises(BlobUnknown):
            await registry_on(replica, views, behind).delete_blob(APP, digest)
