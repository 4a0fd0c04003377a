"""Parts of `chaos.durable`: what a member of a cluster must not forget, and entries that are taken back."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import ClassVar

from chaos.part import Promise, Tell
from consensus.raft.hardstate import HardState
from consensus.raft.journal import NO_OP, REGULAR, Journal
from consensus.wal import Wal

_SEGMENT_BYTES = 600


class VotePart:
    """Terms and votes: for each term one vote, whatever happens."""

    name: ClassVar[str] = "vote"
    covers: ClassVar[tuple[str, ...]] = ("consensus/raft/",)
    dense: ClassVar[int] = 999
    repeats: ClassVar[int] = 6

    def prepare(self, folder: Path) -> None:
        """Nothing: a first start."""

    def act(self, folder: Path, promise: Tell) -> None:
        """Votes, each of which leaves when it is durable."""
        hard = _hard_state(folder)
        for term in range(1, 5):
            hard.vote(term, "abc"[term % 3])
            promise((term, "abc"[term % 3]))

    def go_on(self, folder: Path, promise: Tell) -> None:
        """What a start finds is said again: that vote counts from now on, even if the old process never gave it."""
        hard = _hard_state(folder)
        promise((hard.stored.term, hard.stored.voted_for))

    def check(self, folder: Path, promises: Sequence[Promise]) -> None:
        """The newest vote is there; an older one of the same term is never another one."""
        stored = _hard_state(folder).stored
        newest = max((promise[0] for promise in promises), default=0)
        assert stored.term >= newest, f"term {newest} is forgotten: the member is in term {stored.term}"
        votes = {promise[1] for promise in promises if promise[0] == stored.term}
        assert votes <= {stored.voted_for}, f"the vote for {votes} in term {stored.term} is one for {stored.voted_for}"


class CutPart:
    """A log whose newest entries are taken back, within a segment and over several, with others in their place."""

    name: ClassVar[str] = "cut"
    covers: ClassVar[tuple[str, ...]] = ("consensus/wal.py", "consensus/cuts.py")
    dense: ClassVar[int] = 999
    repeats: ClassVar[int] = 6
    _SEGMENT_BYTES = 8000
    _PAYLOAD_BYTES = 1500  # some of them to a segment, which is longer than a sector
    _CUTS = ((10, 6), (11, 4), (8, 8), (10, 5), (10, 2))  # written up to here, cut back to there

    def prepare(self, folder: Path) -> None:
        """Nothing: a first start."""

    def act(self, folder: Path, promise: Tell) -> None:
        """What is taken back is promised to stay away, what is kept to stay."""
        with closing(Wal.open(folder / "wal", segment_bytes=self._SEGMENT_BYTES)) as wal:
            for number, (upto, after) in enumerate(self._CUTS):
                while wal.commit < upto:
                    self._append(wal, number, promise)
                promise(("in doubt", after))
                wal.cut(after)
                promise(("cut", after))

    def go_on(self, folder: Path, promise: Tell) -> None:
        """What a start finds counts again, and nothing else is ever there."""
        with closing(Wal.open(folder / "wal", segment_bytes=self._SEGMENT_BYTES)) as wal:
            promise(("in doubt", 0))
            promise(("cut", 0))
            for index, payload in _payloads(wal).items():
                promise(("entry", index, payload))
            promise(("cut", wal.commit))
            self._append(wal, 9, promise)

    def check(self, folder: Path, promises: Sequence[Promise]) -> None:
        """As a list would be, where entries were put and taken back; any length between while they are."""
        held: dict[int, str] = {}
        gone: set[str] = set()
        least = 0
        for kind, index, *payload in promises:
            if kind == "entry":
                held[index], least = payload[0], index
                gone.discard(payload[0])
            elif kind == "in doubt":
                least = index
            else:
                gone |= {content for place, content in held.items() if place > index}
                held = {place: content for place, content in held.items() if place <= index}
        with closing(Wal.open(folder / "wal", segment_bytes=self._SEGMENT_BYTES)) as wal:
            found = _payloads(wal)
        assert len(found) >= least, f"entry {least} is lost: the log ends at {len(found)}"
        wrong = [index for index in held if index in found and found[index] != held[index]]
        assert not wrong, f"entries {wrong} are not what was acknowledged"
        risen = [index for index, payload in found.items() if payload in gone]
        assert not risen, f"entries {risen} are there that had been taken back"

    def _append(self, wal: Wal, number: int, promise: Tell) -> None:
        index = wal.commit + 1
        payload = f"{number} {index} ".encode().ljust(self._PAYLOAD_BYTES, b".")
        wal.append([payload])
        promise(("entry", index, payload.hex()))


class BasePart:
    """A member's log begins again behind a snapshot, in the order of a replica: said, put in force, begun."""

    name: ClassVar[str] = "begin from a snapshot"
    covers: ClassVar[tuple[str, ...]] = ("consensus/wal.py", "consensus/raft/")
    dense: ClassVar[int] = 999
    repeats: ClassVar[int] = 2
    _OLD, _BASE, _TERM = 8, 6, 3  # the old log is longer than the snapshot, and of another leader

    def prepare(self, folder: Path) -> None:
        """A log of some segments."""
        with closing(self._open(folder, 0).wal) as wal:
            for _ in range(self._OLD):
                wal.append([(1).to_bytes(8, "little") + REGULAR + bytes(200)])

    def act(self, folder: Path, promise: Tell) -> None:
        """The snapshot is in force when that is promised."""
        journal = self._open(folder, 0)
        journal.begin_from((self._BASE, self._TERM))
        promise(("in force", self._BASE))
        journal.restart(self._BASE, self._TERM)
        promise(("begun", self._BASE))
        self._go_on(journal, promise)

    def go_on(self, folder: Path, promise: Tell) -> None:
        """A process started again. The snapshot is in force as soon as it was announced: nothing lies between here."""
        base, _ = _hard_state(folder / "wal").stored.base
        if base:
            promise(("in force", base))
        self._go_on(self._open(folder, base), promise)

    def check(self, folder: Path, promises: Sequence[Promise]) -> None:
        """The log goes on where the snapshot ends and has what was acknowledged since."""
        in_force = any(promise[0] == "in force" for promise in promises)
        with closing((journal := self._open(folder, self._BASE if in_force else 0)).wal):
            if in_force:
                found = journal.term(self._BASE)
                assert found == self._TERM, f"entry {self._BASE} is of term {found}, in the snapshot of {self._TERM}"
            for _, index, term in (promise for promise in promises if promise[0] == "entry"):
                assert journal.term(index) == term, f"entry {index} of term {term} is lost"

    def _go_on(self, journal: Journal, promise: Tell) -> None:
        with closing(journal.wal):
            if journal.term(self._BASE) == self._TERM:
                for _ in range(4):
                    journal.add(NO_OP, journal.last + 1, self._TERM)
                    journal.flush()
                    promise(("entry", journal.last, self._TERM))

    def _open(self, folder: Path, applied: int) -> Journal:
        return Journal.open(folder / "wal", applied, segment_bytes=_SEGMENT_BYTES)


def _hard_state(folder: Path) -> HardState:
    """As a journal opens it: behind the log, which syncs the folder that both are in."""
    Wal.open(folder, segment_bytes=_SEGMENT_BYTES).close()
    return HardState.open(folder)


def _payloads(wal: Wal) -> dict[int, str]:
    return {index: wal.read(index - 1)[0].payload.hex() for index in range(wal.first, wal.commit + 1)}
