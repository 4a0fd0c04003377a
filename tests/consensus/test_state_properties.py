"""Any interleaving of commands keeps the invariants, and the state is a function of the log."""

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from consensus import generation
from consensus.codec import encode, split_manifest
from consensus.commands import (
    ABSENT,
    BlobFact,
    Command,
    DeleteBlob,
    DeleteManifest,
    DeleteTag,
    EnrolProposer,
    Envelope,
    ManifestFacts,
    MountBlob,
    Outcome,
    PutManifest,
    Reason,
    RecordBlobs,
    StageContent,
    Status,
)
from consensus.log import Entry
from consensus.manifest import OCI_INDEX, OCI_MANIFEST
from consensus.names import Digest, RepositoryName, StoreId, Tag
from consensus.state import State
from tests.consensus import invariants

# A world so small that commands meet: two repositories, a few blobs, manifests that name each other, two tags.


def digest_of(content: bytes) -> Digest:
    return Digest("sha256", hashlib.sha256(content).hexdigest())


REPOSITORIES = st.sampled_from([RepositoryName("r"), RepositoryName("s")])
BLOBS = [BlobFact(digest_of(b"blob-%d" % number), number) for number in range(4)]
CONTENTS = [b"plain", b"layered", b"index", b"signature", b"signature of index", b"large" * 40_000]
DIGESTS = [digest_of(content) for content in CONTENTS]
ARTIFACT = "application/vnd.example.artifact"
FACTS = {
    b"plain": ManifestFacts(OCI_MANIFEST, None, None, (), (), ()),
    b"layered": ManifestFacts(OCI_MANIFEST, None, None, (BLOBS[0].digest, BLOBS[1].digest), (), ()),
    b"index": ManifestFacts(OCI_INDEX, None, None, (), (DIGESTS[0], DIGESTS[1]), ()),
    b"signature": ManifestFacts(OCI_MANIFEST, ARTIFACT, DIGESTS[1], (BLOBS[2].digest,), (), (("k", "v"),)),
    b"signature of index": ManifestFacts(OCI_MANIFEST, None, DIGESTS[2], (), (), ()),
    b"large" * 40_000: ManifestFacts(OCI_INDEX, None, DIGESTS[0], (BLOBS[3].digest,), (DIGESTS[0],), ()),
}
OPAQUE = ManifestFacts("application/octet-stream", None, None, (), (), ())
TAGS = st.sampled_from([Tag("latest"), Tag("v1")])
STORES = st.sampled_from([StoreId("a" * 32), StoreId("b" * 32)])
MOST = 40


@st.composite
def puts(draw: st.DrawFn) -> tuple[Command, ...]:
    content = draw(st.sampled_from(CONTENTS))
    tags = draw(st.lists(TAGS, max_size=2, unique=True))
    whole = PutManifest(
        repository=draw(REPOSITORIES),
        digest=digest_of(content),
        size_bytes=len(content),
        content=content,
        facts=draw(st.sampled_from([FACTS[content], FACTS[content], FACTS[content], OPAQUE])),
        tags=tuple(tags),
        expected=draw(st.sampled_from([None, None, ABSENT, *DIGESTS])),
        sparse=draw(st.booleans()),
    )
    # Parts may be lost on the way, and the content may be a lie.
    commands = [command for command in split_manifest(whole) if draw(st.integers(0, 9))]
    return tuple(commands)


DIGEST = st.sampled_from(DIGESTS)
BLOB = st.sampled_from([blob.digest for blob in BLOBS])
RECORDS = st.builds(
    RecordBlobs, REPOSITORIES, STORES, st.lists(st.sampled_from(BLOBS), min_size=1, max_size=4).map(tuple)
)
LIES: st.SearchStrategy[Command] = st.one_of(
    st.builds(RecordBlobs, REPOSITORIES, STORES, BLOB.map(lambda digest: (BlobFact(digest, 99),))),
    st.builds(
        PutManifest,
        REPOSITORIES,
        DIGEST,
        st.just(3),
        st.just(b"lie"),
        st.just(OPAQUE),
        st.just(()),
        st.none(),
        st.booleans(),
    ),
    st.builds(StageContent, REPOSITORIES, DIGEST, st.just(0), st.sampled_from([1, 3]), st.just(b"lie")),
)
OPERATIONS: st.SearchStrategy[tuple[Command, ...]] = st.one_of(
    puts(),
    puts(),
    puts(),
    RECORDS.map(lambda command: (command,)),
    st.builds(MountBlob, REPOSITORIES, BLOB, st.none() | REPOSITORIES).map(lambda command: (command,)),
    st.builds(DeleteTag, REPOSITORIES, TAGS, st.none() | DIGEST).map(lambda command: (command,)),
    st.builds(DeleteManifest, REPOSITORIES, DIGEST).map(lambda command: (command,)),
    st.builds(DeleteBlob, REPOSITORIES, BLOB).map(lambda command: (command,)),
    st.just((EnrolProposer("late"),)),
    LIES.map(lambda command: (command,)),
)


@st.composite
def logs(draw: st.DrawFn) -> list[Entry]:
    """Two proposers, then anything: in order, repeated, skipping indexes, with clocks that jump, and some garbage."""
    commands = [command for group in draw(st.lists(OPERATIONS, max_size=MOST)) for command in group]
    payloads = [encode(Envelope(0, 0, 0, 5_000, EnrolProposer(name))) for name in ("one", "two")]
    sequences = {1: 0, 2: 0}
    for command in commands:
        time_ms = draw(st.sampled_from([0, 5_000, 30_000, 10**12]))
        if isinstance(command, EnrolProposer):
            payloads.append(encode(Envelope(0, 0, 0, time_ms, command)))
            continue
        proposer = draw(st.sampled_from([1, 1, 1, 2]))
        sequences[proposer] += 1
        acknowledged = max(0, sequences[proposer] - draw(st.integers(1, 6)))
        payloads.append(encode(Envelope(proposer, sequences[proposer], acknowledged, time_ms, command)))
        if draw(st.integers(0, 5)) == 0:
            payloads.append(draw(st.sampled_from(payloads)))
        if draw(st.integers(0, 9)) == 0:
            payloads.append(draw(st.binary(max_size=9)))
    return [Entry(index, payload) for index, payload in enumerate(payloads, 1)]


@contextmanager
def a_state() -> Iterator[tuple[State, Path]]:
    with tempfile.TemporaryDirectory() as folder:
        state = State.open(Path(folder) / "state", "cluster")
        try:
            yield state, Path(folder) / "state"
        finally:
            state.close()


def apply_each(entries: Sequence[Entry]) -> tuple[list[Outcome], str]:
    """Entry by entry, with every rule checked in between."""
    with a_state() as (state, folder):
        path = generation.current(folder)
        assert path is not None
        connection = generation.open_reader(path)
        outcomes = []
        before = invariants.changes(connection)
        for entry in entries:
            outcomes += state.apply([entry])
            invariants.check(connection)
            after = invariants.changes(connection)
            invariants.check_progress(before, after)
            check_outcome(outcomes[-1], entry, changed_rows(before, after))
            before = after
        connection.close()
        return outcomes, state.hash()


def changed_rows(before: invariants.Changes, after: invariants.Changes) -> bool:
    return before != after


def check_outcome(outcome: Outcome, entry: Entry, changed: bool) -> None:
    assert outcome.changed <= outcome.index <= entry.index
    if changed:
        assert (outcome.status, outcome.index, outcome.changed) == (Status.DONE, entry.index, entry.index)
    assert not (outcome.created and outcome.status is not Status.DONE)


@settings(max_examples=60, deadline=None)
@given(logs(), st.data())
def test_the_state_is_a_function_of_the_log(entries: list[Entry], data: st.DataObject) -> None:
    outcomes, expected = apply_each(entries)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(entries)), max_size=4)) | {0, len(entries)})
    with a_state() as (state, folder):
        again: list[Outcome] = []
        for start, end in pairwise(cuts):
            again += state.apply(entries[start:end])
            if data.draw(st.booleans()):
                state.close()
                state = State.open(folder, "cluster")
                assert state.applied == end
        assert again == outcomes
        assert state.hash() == expected
        state.close()


@settings(max_examples=60, deadline=None)
@given(logs(), st.data())
def test_a_repeated_proposal_changes_nothing_and_is_answered_as_before(
    entries: list[Entry], data: st.DataObject
) -> None:
    with a_state() as (state, folder):
        outcomes = dict(zip([entry.index for entry in entries], state.apply(entries), strict=True))
        path = generation.current(folder)
        assert path is not None
        connection = generation.open_reader(path)
        before = visible(path)
        repeated = data.draw(st.sampled_from(entries))
        (answer,) = state.apply([Entry(len(entries) + 1, repeated.payload)])
        first = outcomes[repeated.index]
        if answer.index == len(entries) + 1:
            enrolment = answer.status is Status.DONE and answer.created
            assert enrolment or answer.reason in (Reason.MALFORMED, Reason.ALREADY_ANSWERED, Reason.PROPOSER_UNKNOWN)
        elif first.reason is not Reason.ALREADY_ANSWERED:
            assert answer == first
        assert visible(path) == before
        invariants.check(connection)
        connection.close()


def visible(path: Path) -> list[tuple[object, ...]]:
    """Every row that is not bookkeeping about proposers and time."""
    connection = generation.open_reader(path)
    tables = ("repositories", "blobs", "holders", "links", "contents", "manifests", "manifest_blobs", "tags")
    more = ("manifest_children", "referrers", "subjects", "staged", "stores")
    rows = [row for table in (*tables, *more) for row in connection.execute(f"SELECT * FROM {table}")]
    connection.close()
    return rows
