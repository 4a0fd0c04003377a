"""A log of mixed commands, as long as one likes, and the states it leads to."""

import hashlib
import shutil
import tempfile
from contextlib import closing
from pathlib import Path

from consensus.archive import Archive
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
)
from consensus.log import Entry
from consensus.names import Digest, RepositoryName, StoreId, Tag
from consensus.snapshot import Manifest
from consensus.state import State

CLUSTER = "c" * 32
_STORE = StoreId("0" * 32)


def entry(index: int) -> Entry:
    """The entry at this index, the same in every test."""
    if index == 1:
        return Entry(1, encode(Envelope(0, 0, 0, 1000, EnrolProposer("test"))))
    return Entry(index, encode(Envelope(1, index, index - 1, 1000 + index, command(index))))


def entries(after: int, upto: int) -> list[Entry]:
    return [entry(index) for index in range(after + 1, upto + 1)]


def command(index: int) -> Command:
    """Mostly manifests of a few KB with blobs; tags move, and some of it is deleted again."""
    repository = RepositoryName(f"team/app-{index % 7}")
    if index % 10 == 0:
        return DeleteTag(repository, Tag(f"t{index % 50}"), None)
    if index % 10 == 5:
        return DeleteManifest(RepositoryName(f"team/app-{(index - 2) % 7}"), _digest(_content(index - 2)))
    if index % 10 in {1, 6}:
        blobs = tuple(BlobFact(_digest(b"blob %d" % number), number) for number in range(index, index + 10))
        return RecordBlobs(repository, _STORE, blobs)
    content = _content(index)
    facts = ManifestFacts("application/x", None, None, (), (), ())
    tags = (Tag(f"t{index % 50}"),)
    return PutManifest(repository, _digest(content), len(content), content, facts, tags, None, sparse=False)


def advance(state: State, upto: int) -> None:
    """Applies what follows, in batches."""
    while state.applied < upto:
        state.apply(entries(state.applied, min(upto, state.applied + 500)))


def hash_at(index: int) -> str:
    """The hash of a state that has applied exactly the entries up to `index`."""
    with tempfile.TemporaryDirectory() as folder, closing(State.open(Path(folder) / "state", CLUSTER)) as state:
        advance(state, index)
        return state.hash()


def take(archive: Archive, state: State, *, term: int = 1) -> Manifest:
    """A snapshot of the state as it is."""
    taking = archive.begin(state)
    while taking.step():
        pass
    return taking.finish(term)


def snapshot_at(folder: Path, index: int, *, cluster: str = CLUSTER) -> tuple[Path, Manifest]:
    """The file and manifest of a snapshot that ends at `index`, made in `folder`."""
    with closing(State.open(folder / "source", cluster)) as state:
        advance(state, index)
        archive = Archive.open(folder / "source" / "snapshots")
        manifest = take(archive, state, term=7)
    path = folder / f"{manifest.name}.sqlite"
    shutil.move(folder / "source" / "snapshots" / path.name, path)
    shutil.rmtree(folder / "source")
    return path, manifest


def _content(index: int) -> bytes:
    return b"%d " % index * (100 + index % 900)


def _digest(content: bytes) -> Digest:
    return Digest("sha256", hashlib.sha256(content).hexdigest())
