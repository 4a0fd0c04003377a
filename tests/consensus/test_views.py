"""What readers see: whole snapshots, only of their repository, in a stable order, beside a writer that goes on."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from consensus import generation
from consensus.codec import encode
from consensus.commands import (
    BlobFact,
    Command,
    DeleteManifest,
    DeleteTag,
    EnrolProposer,
    Envelope,
    ManifestFacts,
    PutManifest,
    RecordBlobs,
    Status,
)
from consensus.errors import StateRefused
from consensus.log import Entry
from consensus.manifest import OCI_INDEX, OCI_MANIFEST
from consensus.names import Digest, RepositoryName, StoreId, Tag
from consensus.parts import MIN_PARTED_BYTES, parts_of
from consensus.state import State
from consensus.views import MAX_NAMING, BlobFacts, BlobView, ManifestView, Referrer, Views

APP = RepositoryName("team/app")
OTHER = RepositoryName("team/other")
SUBJECT = Digest("sha256", "5" * 64)


def digest_of(content: bytes) -> Digest:
    return Digest("sha256", hashlib.sha256(content).hexdigest())


class Node:
    """A state to write and the views to read it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = State.open(folder, "cluster")
        self.state.apply([Entry(1, encode(Envelope(0, 0, 0, 1, EnrolProposer("test"))))])
        self.views = Views(folder)

    def apply(self, *commands: Command) -> int:
        """Applies them one by one; returns the last index. They all come to DONE."""
        for command in commands:
            index = self.state.applied + 1
            (outcome,) = self.state.apply([Entry(index, encode(Envelope(1, index, index - 1, 1, command)))])
            assert outcome.status is Status.DONE, outcome
        return self.state.applied

    def close(self) -> None:
        self.views.close()
        self.state.close()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    opened = Node(tmp_path / "state")
    yield opened
    opened.close()


def record(repository: RepositoryName, *contents: bytes) -> RecordBlobs:
    return RecordBlobs(repository, StoreId("0" * 32), tuple(BlobFact(digest_of(c), len(c)) for c in contents))


def put(
    repository: RepositoryName,
    content: bytes,
    *tags: str,
    media_type: str = OCI_MANIFEST,
    subject: Digest | None = None,
    artifact_type: str | None = None,
    annotations: tuple[tuple[str, str], ...] = (),
    blobs: tuple[Digest, ...] = (),
    children: tuple[Digest, ...] = (),
) -> PutManifest:
    facts = ManifestFacts(media_type, artifact_type, subject, blobs, children, annotations)
    names = tuple(map(Tag, tags))
    return PutManifest(repository, digest_of(content), len(content), content, facts, names, None, sparse=True)


def test_there_are_no_views_before_there_is_a_state(tmp_path: Path) -> None:
    with pytest.raises(StateRefused, match="the keeper makes it"):
        Views(tmp_path / "state")


def test_a_store_is_known_from_its_first_blob_on(node: Node) -> None:
    node.apply(put(APP, b"one", "latest"))
    assert not node.views.has_store(StoreId("0" * 32))
    node.apply(record(APP, b"blob"))
    assert node.views.has_store(StoreId("0" * 32))
    assert not node.views.has_store(StoreId("1" * 32))


def test_tags_and_digests_resolve_in_their_repository_only(node: Node) -> None:
    index = node.apply(put(APP, b"one", "latest"), put(OTHER, b"one", media_type=OCI_INDEX))
    view = ManifestView(digest_of(b"one"), OCI_MANIFEST, 3, index - 1)
    assert node.views.resolve(APP, Tag("latest")) == view
    assert node.views.resolve(APP, digest_of(b"one")) == view
    assert node.views.manifest(APP, digest_of(b"one")) == (view, b"one")
    assert node.views.content(digest_of(b"one")) == b"one"
    assert node.views.resolve(OTHER, Tag("latest")) is None
    other = node.views.resolve(OTHER, digest_of(b"one"))
    assert other is not None
    assert other.media_type == OCI_INDEX
    absent = digest_of(b"absent")
    assert node.views.resolve(APP, absent) is None
    assert node.views.manifest(APP, absent) is None
    assert node.views.content(absent) is None
    assert node.views.resolve(RepositoryName("nowhere"), digest_of(b"one")) is None


def test_what_resolves_is_as_new_as_the_tag_and_the_manifest(node: Node) -> None:
    node.apply(put(APP, b"one", "t"))
    moved = node.apply(put(APP, b"two", "t"))
    assert changed(node, "t") == moved
    back = node.apply(put(APP, b"one", "t"))
    assert changed(node, "t") == back
    retyped = node.apply(put(APP, b"one", media_type=OCI_INDEX))
    assert changed(node, "t") == retyped


def changed(node: Node, tag: str) -> int:
    view = node.views.resolve(APP, Tag(tag))
    assert view is not None
    return view.changed


def test_a_blob_is_held_by_the_stores_that_said_so(node: Node) -> None:
    fact, other = BlobFact(digest_of(b"held"), 4), BlobFact(digest_of(b"other"), 5)
    first, second = StoreId("f" * 32), StoreId("0" * 32)
    node.apply(RecordBlobs(APP, first, (fact, other)), RecordBlobs(OTHER, second, (fact,)))
    assert node.views.holders(fact.digest) == [first, second]
    assert node.views.holders(other.digest) == [first]
    assert node.views.holders(digest_of(b"unknown")) == []
    asked = [digest_of(b"unknown"), fact.digest, other.digest]
    assert node.views.held(first, asked) == {fact.digest, other.digest}
    assert node.views.held(second, asked) == {fact.digest}
    assert node.views.held(StoreId("9" * 32), asked) == set()


def test_the_first_parts_of_a_blob_that_are_told_stay(node: Node) -> None:
    digest, size = digest_of(b"large"), MIN_PARTED_BYTES
    told = [b"", b"1" * 16 * parts_of(size), b"2" * 16 * parts_of(size), b""]
    found = []
    for parts in told:
        node.apply(RecordBlobs(APP, StoreId("0" * 32), (BlobFact(digest, size, parts),)))
        facts = node.views.facts(digest)
        found.append(facts and facts.parts)
    assert found == [b"", told[1], told[1], told[1]]
    assert node.views.facts(digest_of(b"unknown")) is None


def test_the_companions_of_a_blob_are_those_of_the_newest_manifest_that_names_it(node: Node) -> None:
    blobs = [b"config", b"base", b"layer", b"later"]
    for blob in blobs:
        node.apply(record(APP, blob), record(OTHER, blob))
    config, base, layer, later = map(digest_of, blobs)
    node.apply(put(APP, b"old", blobs=(config, base, layer)), put(OTHER, b"elsewhere", blobs=(base, later)))
    assert node.views.companions(APP, base, 10) == [(config, 6), (layer, 5)]
    node.apply(put(APP, b"new", blobs=(base, later)))
    assert node.views.companions(APP, base, 10) == [(later, 5)]
    assert node.views.companions(APP, config, 10) == [(base, 4), (layer, 5)]
    assert node.views.companions(APP, config, 1) == [(base, 4)]
    assert node.views.companions(APP, digest_of(b"unknown"), 10) == []
    assert node.views.companions(RepositoryName("no/such"), base, 10) == []
    for number in range(MAX_NAMING):
        node.apply(put(APP, b"another %d" % number, blobs=(base, config)))
    assert node.views.companions(APP, base, 10) == []  # everybody has it: it says nothing


def test_a_blob_was_pushed_when_the_log_first_had_it(node: Node) -> None:
    digest = digest_of(b"layer")
    assert node.views.facts(digest) is None
    for time_ms in (5000, 9000):
        index = node.state.applied + 1
        node.state.apply([Entry(index, encode(Envelope(1, index, index - 1, time_ms, record(APP, b"layer"))))])
        assert node.views.facts(digest) == BlobFacts(5, 5000, b"")


def test_who_has_a_blob_and_who_names_it(node: Node) -> None:
    layer = digest_of(b"layer")
    node.apply(record(OTHER, b"layer"), record(APP, b"layer"), put(APP, b"one", blobs=(layer,)))
    node.apply(put(APP, b"two", blobs=(layer,)), put(OTHER, b"one", blobs=(layer,)))
    assert node.views.repositories_with(layer, 10) == ["team/other", "team/app"]
    assert node.views.repositories_with(layer, 1) == ["team/other"]
    naming = {("team/app", digest_of(b"one")), ("team/app", digest_of(b"two")), ("team/other", digest_of(b"one"))}
    assert set(node.views.manifests_naming(layer, 10)) == naming
    assert len(node.views.manifests_naming(layer, 2)) == 2
    assert (node.views.repositories_with(SUBJECT, 10), node.views.manifests_naming(SUBJECT, 10)) == ([], [])


def test_the_blobs_of_an_image_are_those_of_all_below_it(node: Node) -> None:
    blobs = [b"config", b"base", b"layer", b"other"]
    config, base, layer, other = map(digest_of, blobs)
    node.apply(record(APP, *blobs), record(OTHER, *blobs))
    node.apply(put(APP, b"amd", blobs=(config, base)), put(APP, b"arm", blobs=(base, layer)))
    node.apply(put(OTHER, b"elsewhere", blobs=(other,)))
    children = tuple(map(digest_of, (b"amd", b"arm", b"elsewhere", b"nowhere", b"outer")))
    node.apply(put(APP, b"index", media_type=OCI_INDEX, children=children))
    node.apply(put(APP, b"outer", "t", media_type=OCI_INDEX, children=(digest_of(b"index"), digest_of(b"outer"))))
    found = node.views.image_blobs(APP, digest_of(b"outer"), 10)  # which is below itself
    assert sorted(found) == sorted([(config, 6), (base, 4), (layer, 5)])
    assert len(node.views.image_blobs(APP, digest_of(b"outer"), 2)) <= 2
    assert node.views.image_blobs(APP, digest_of(b"arm"), 10) == [(base, 4), (layer, 5)]
    assert node.views.image_blobs(OTHER, digest_of(b"outer"), 10) == []
    assert node.views.image_blobs(RepositoryName("no/such"), digest_of(b"outer"), 10) == []


def test_blobs_belong_to_repositories(node: Node) -> None:
    index = node.apply(record(APP, b"layer"))
    assert node.views.blob(APP, digest_of(b"layer")) == BlobView(5, index)
    assert node.views.blob(OTHER, digest_of(b"layer")) is None
    assert node.views.blob(APP, digest_of(b"other")) is None


def test_what_is_missing_is_listed_in_the_order_asked(node: Node) -> None:
    node.apply(record(APP, b"layer"), put(APP, b"child"))
    blobs = [digest_of(content) for content in (b"x", b"layer", b"child", b"y")]
    children = [digest_of(content) for content in (b"layer", b"child", b"z")]
    absent = [digest_of(content) for content in (b"x", b"child", b"y", b"layer", b"z")]
    assert node.views.missing(APP, blobs, children) == absent
    assert node.views.missing(OTHER, blobs, children) == [*blobs, *children]
    assert node.views.missing(APP, [], []) == []
    many = [digest_of(b"%d" % number) for number in range(1000)]
    assert node.views.missing(APP, [*many, digest_of(b"layer")], many) == [*many, *many]


def test_tags_come_in_pages_in_ascii_order(node: Node) -> None:
    names = ["0", "A", "Z", "_", "a", "a-1", "a.1", "a0", "b"]
    assert node.views.tags(APP, None, 10) is None
    node.apply(record(APP, b"layer"))
    assert node.views.tags(APP, None, 10) == []
    node.apply(*(put(APP, b"m", name) for name in reversed(names)))
    assert node.views.tags(APP, None, 100) == sorted(names)
    pages, after = [], None
    while page := node.views.tags(APP, after, 2):
        pages += page
        after = page[-1]
    assert pages == sorted(names)
    assert node.views.tags(APP, "a-", 2) == ["a-1", "a.1"]
    assert node.views.tags(APP, "zzz", 2) == []
    assert node.views.tags(APP, None, 0) == []


@pytest.mark.parametrize("after", ["", "\x00", "ü" * 300, "\ud800", "~" * 10_000, "' OR 1=1 --"])
def test_any_text_will_do_as_a_place_to_go_on_from(node: Node, after: str) -> None:
    node.apply(put(APP, b"m", "t"))
    assert node.views.tags(APP, after, 5) in ([], ["t"])
    assert node.views.repositories(after, 5) in ([], ["team/app"])
    assert node.views.referrers(APP, SUBJECT, after, None, 5) == []


def test_repositories_arise_stay_and_are_listed(node: Node) -> None:
    assert node.views.repositories(None, 10) == []
    assert not node.views.has_repository(APP)
    node.apply(put(RepositoryName("b"), b"m", "t"), record(RepositoryName("a/b"), b"x"), put(RepositoryName("a"), b"m"))
    node.apply(DeleteTag(RepositoryName("b"), Tag("t"), None), DeleteManifest(RepositoryName("b"), digest_of(b"m")))
    assert node.views.repositories(None, 10) == ["a", "a/b", "b"]
    assert node.views.repositories("a", 1) == ["a/b"]
    assert node.views.tags(RepositoryName("b"), None, 10) == []
    assert node.views.has_repository(RepositoryName("b"))


def test_referrers_are_listed_filtered_and_paged(node: Node) -> None:
    notes = (("k", "ü"), ("org.example", ""))
    node.apply(
        put(APP, b"sig", subject=SUBJECT, artifact_type="application/sig", annotations=notes),
        put(APP, b"sbom", subject=SUBJECT, artifact_type="application/sbom", media_type=OCI_INDEX),
        put(APP, b"plain", subject=SUBJECT),
        put(APP, b"elsewhere", subject=digest_of(b"elsewhere")),
        put(OTHER, b"other", subject=SUBJECT),
    )
    signature = Referrer(digest_of(b"sig"), OCI_MANIFEST, 3, "application/sig", dict(notes))
    bill = Referrer(digest_of(b"sbom"), OCI_INDEX, 4, "application/sbom", {})
    plain = Referrer(digest_of(b"plain"), OCI_MANIFEST, 5, None, {})
    everything = sorted([signature, bill, plain], key=lambda referrer: referrer.digest.packed)
    assert node.views.referrers(APP, SUBJECT, None, None, 10) == everything
    assert node.views.referrers(APP, SUBJECT, "application/sig", None, 10) == [signature]
    assert node.views.referrers(APP, SUBJECT, "application/none", None, 10) == []
    assert node.views.referrers(APP, SUBJECT, None, everything[0].digest, 1) == everything[1:2]
    assert node.views.referrers(APP, digest_of(b"absent"), None, None, 10) == []
    assert node.views.referrers(RepositoryName("nowhere"), SUBJECT, None, None, 10) == []


def test_a_commit_is_seen_by_the_next_read_and_pins_nothing(node: Node) -> None:
    for number in range(1, 20):
        index = node.apply(put(APP, b"%d" % number, "t", f"v{number}"))
        assert node.views.applied() == index
        view = node.views.resolve(APP, Tag("t"))
        assert view is not None
        assert (view.digest, view.changed) == (digest_of(b"%d" % number), index)
        assert len(node.views.tags(APP, None, 100) or []) == number + 1
        assert node.views.blob(APP, SUBJECT) is None
        # A snapshot left open by any of the reads would keep SQLite from emptying its log.
        node.state.checkpoint()
        assert (node.folder / "db-1.sqlite-wal").stat().st_size == 0


def test_views_outlive_the_writer(node: Node) -> None:
    node.apply(put(APP, b"m", "t"))
    node.state.close()
    assert node.views.tags(APP, None, 10) == ["t"]
    late = Views(node.folder)
    assert late.tags(APP, None, 10) == ["t"]
    late.close()
    node.state = State.open(node.folder, "cluster")
    index = node.apply(put(APP, b"m", "u"))
    assert (node.views.applied(), node.views.tags(APP, None, 10)) == (index, ["t", "u"])


def test_views_cannot_write(node: Node) -> None:
    path = generation.current(node.folder)
    assert path is not None
    connection = generation.open_reader(path)
    with pytest.raises(Exception, match="readonly"):
        connection.execute("DELETE FROM tags")
    connection.close()


def test_the_hash_is_the_states_and_can_be_taken_in_a_thread(node: Node) -> None:
    node.apply(put(APP, b"m", "t"))
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(node.views.hash).result() == (node.state.applied, node.state.hash())
    assert node.views.cluster_id == "cluster"
