"""Parts of `chaos.durable`: a snapshot put in the place of the state, and the snapshots that are kept for others."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import ClassVar

from chaos.part import Promise, Tell
from consensus import disk, generation, snapshot
from consensus.archive import DATABASE, MANIFEST, Archive
from consensus.codec import encode
from consensus.commands import EnrolProposer, Envelope
from consensus.log import Entry
from consensus.partial import Partial
from consensus.snapshot import Manifest
from consensus.state import State

_CLUSTER = "0" * 32
_BEFORE, _SNAPSHOT, _AFTER = 5, 20, 22  # indexes: of the state at first, of the snapshot, and where it goes on to


class InstallPart:
    """A received snapshot becomes the state. At any cut the state is the old or the new one, whole."""

    name: ClassVar[str] = "install"
    covers: ClassVar[tuple[str, ...]] = ("consensus/generation.py", "consensus/state.py", "SQLite")
    dense: ClassVar[int] = 38
    repeats: ClassVar[int] = 3

    def prepare(self, folder: Path) -> None:
        """A state that lags."""
        with closing(State.open(folder / "state", _CLUSTER)) as state:
            _advance(state, _BEFORE)
            state.checkpoint()

    def act(self, folder: Path, promise: Tell) -> None:
        """Received, which syncs nothing, and installed; then entries go on."""
        state = State.open(folder / "state", _CLUSTER)
        partial = Partial.open(folder / "incoming")
        _receive(partial)
        state.install(partial.verify(_CLUSTER))
        promise(("durable", state.applied))
        partial.discard()
        _advance(state, _AFTER)
        promise(("durable", state.checkpoint()))

    def go_on(self, folder: Path, promise: Tell) -> None:
        """What a start finds in force, it builds on: that must not change any more."""
        State.open(folder / "state", _CLUSTER)
        found = generation.current(folder / "state")
        assert found is not None
        promise(("generation", _number(found)))

    def check(self, folder: Path, promises: Sequence[Promise]) -> None:
        """The state opens, is as new as promised, and is that of its index."""
        with closing(State.open(folder / "state", _CLUSTER)) as state:
            found = generation.current(folder / "state")
            assert found is not None
            now = {"durable": state.applied, "generation": _number(found)}
            for kind, number in promises:
                assert now[kind] >= number, f"the state is at {kind} {now[kind]}, {number} was promised"
            assert _BEFORE <= state.applied <= _AFTER, f"the state is at {state.applied}"
            assert state.hash() == _hash_at(state.applied), f"the state is not that of entry {state.applied}"
            others = {path.name for path in (folder / "state").glob("db-*.sqlite")} - {found.name}
            assert not others, f"{others} were left behind"


class SwapPart:
    """One generation put in the place of another, without anything else that syncs: CURRENT must never name a database
    whose own name the disk has not kept, which is seen only if it keeps the one rename and not the other."""

    name: ClassVar[str] = "swap"
    covers: ClassVar[tuple[str, ...]] = ("consensus/generation.py",)
    dense: ClassVar[int] = 12
    repeats: ClassVar[int] = 24

    def prepare(self, folder: Path) -> None:
        """A generation in force, and a file that shall be the next."""
        generation.create(folder / "state", _CLUSTER)
        with (folder / "incoming").open("wb") as file:
            file.write(b"the next")
            file.flush()
            disk.sync_file(file.fileno())
        disk.sync_folder(folder)

    def act(self, folder: Path, promise: Tell) -> None:
        """Put in force, and the one before it removed."""
        promise((generation.install(folder / "state", folder / "incoming").name,))
        generation.remove_others(folder / "state")

    def go_on(self, folder: Path, promise: Tell) -> None:
        """A start, which goes on with what it finds."""
        generation.settle(folder / "state")
        found = generation.current(folder / "state")
        assert found is not None
        promise((found.name,))

    def check(self, folder: Path, promises: Sequence[Promise]) -> None:
        """What was promised last is in force; otherwise it may be either."""
        found = generation.current(folder / "state")
        assert found is not None
        assert not promises or found.name == promises[-1][0], f"{found.name} is in force, not {promises[-1][0]}"
        assert found.stem == "db-1" or found.read_bytes() == b"the next", "the generation in force is not whole"


class ArchivePart:
    """Snapshots that were taken."""

    name: ClassVar[str] = "archive"
    covers: ClassVar[tuple[str, ...]] = ("consensus/archive.py", "consensus/copying.py")
    dense: ClassVar[int] = 30
    repeats: ClassVar[int] = 4

    def prepare(self, folder: Path) -> None:
        """A state, which has done with making files."""
        with closing(State.open(folder / "state", _CLUSTER)) as state:
            _advance(state, _BEFORE)
            state.checkpoint()

    def act(self, folder: Path, promise: Tell) -> None:
        """Two, one after the other."""
        state = State.open(folder / "state", _CLUSTER)
        archive = Archive.open(folder / "snapshots")
        for upto in (_SNAPSHOT, _AFTER):
            _advance(state, upto)
            promise(("kept", _take(archive, state).applied))

    def go_on(self, folder: Path, promise: Tell) -> None:
        """What is found is offered to others."""
        newest = Archive.open(folder / "snapshots").newest
        if newest is not None:
            promise(("kept", newest.applied))

    def check(self, folder: Path, promises: Sequence[Promise]) -> None:
        """What was kept is kept, or a newer one, and whatever is kept is whole; nothing else is left."""
        newest = Archive.open(folder / "snapshots").newest
        kept = max((promise[1] for promise in promises), default=0)
        assert not kept or (newest and newest.applied >= kept), f"the snapshot of entry {kept} is lost"
        expected = set()
        if newest is not None:
            expected = {f"{newest.name}{suffix}" for suffix in (DATABASE, MANIFEST)}
            snapshot.verify(folder / "snapshots" / f"{newest.name}{DATABASE}", newest, _CLUSTER)
        assert {path.name for path in (folder / "snapshots").iterdir()} == expected


def _number(database: Path) -> int:
    return int(database.stem.partition("-")[2])


def _entry(index: int) -> Entry:
    return Entry(index, encode(Envelope(0, 0, 0, 1_700_000_000_000 + index, EnrolProposer("chaos"))))


def _advance(state: State, upto: int) -> None:
    state.apply([_entry(index) for index in range(state.applied + 1, upto + 1)])


def _take(archive: Archive, state: State) -> Manifest:
    taking = archive.begin(state)
    while taking.step():
        pass
    return taking.finish(1)


def _receive(partial: Partial) -> None:
    # From a node with a disk of its own.
    with tempfile.TemporaryDirectory() as folder, closing(State.open(Path(folder) / "state", _CLUSTER)) as sender:
        _advance(sender, _SNAPSHOT)
        archive = Archive.open(Path(folder) / "snapshots")
        _take(archive, sender)
        reading, _ = archive.read()
        with closing(reading):
            partial.begin(reading.manifest)
            while not partial.complete:
                partial.add(reading.chunk(partial.offset))


def _hash_at(index: int) -> str:
    # On another disk: this one counts its changes.
    with tempfile.TemporaryDirectory() as folder, closing(State.open(Path(folder) / "state", _CLUSTER)) as state:
        _advance(state, index)
        return state.hash()
