"""The journal is a list of entries that a crash cuts back to its synced part, whatever is done to it in which order."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.errors import LogFull, LogUnavailable, StateRefused
from consensus.log import MAX_PAYLOAD_BYTES
from consensus.raft import journal as journal_module
from consensus.raft.journal import NO_OP, REGULAR, Journal, RaftEntry
from consensus.wal import Wal
from tests.consensus.wal_files import files, no_room, replace_open_file

SEGMENT_BYTES = 400


@contextmanager
def opened(folder: Path, applied: int = 0) -> Iterator[Journal]:
    journal = Journal.open(folder, applied, segment_bytes=SEGMENT_BYTES)
    with closing(journal.wal):
        yield journal


def fill(journal: Journal, *terms: int) -> list[RaftEntry]:
    """One entry of each term, unsynced."""
    added = []
    for term in terms:
        added.append((REGULAR + b"%d" % (journal.last + 1), journal.last + 1, term))
        journal.add(*added[-1])
    return added


def test_an_empty_journal(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        assert (len(journal), journal.first, journal.last) == (0, 1, 0)
        assert journal.term(0) is None
        assert journal.range(1, 9) == []
        assert (journal.getCurrentTerm(), journal.getVotedForNodeId(), journal.getRaftCommitIndex()) == (0, None, 0)


def test_entries_are_there_at_once_and_on_disk_behind_flush(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        added = fill(journal, 1, 1, 3)
        assert journal[:] == added
        assert journal[-1] == journal[2] == added[2]
        assert journal[1:2] == added[1:2]
        assert [journal.term(index) for index in range(5)] == [None, 1, 1, 3, None]
        assert journal.wal.commit == 0
        journal.setRaftCommitIndex(2)
        assert journal.wal.commit == 3
    with opened(tmp_path) as journal:
        assert journal[0:2] + [journal[-1]] == added
        assert [journal.term(index) for index in range(5)] == [None, 1, 1, 3, None]


def test_an_entry_must_follow_the_last(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        fill(journal, 1)
        for index in (1, 3):
            with pytest.raises(ValueError, match="cannot follow"):
                journal.add(NO_OP, index, 1)


@pytest.mark.parametrize("term", [-1, 2**64])
def test_a_term_that_does_not_fit_is_refused_before_it_is_taken(tmp_path: Path, term: int) -> None:
    with opened(tmp_path) as journal:
        with pytest.raises(ValueError, match="term"):
            journal.add(NO_OP, 1, term)
        fill(journal, 1)
        journal.flush()


def test_an_entry_that_could_not_be_read_back_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        journal.add(REGULAR + bytes(MAX_PAYLOAD_BYTES), 1, 1)
        with pytest.raises(ValueError, match="bytes"):
            journal.add(REGULAR + bytes(MAX_PAYLOAD_BYTES + 1), 2, 1)
        journal.flush()
    with opened(tmp_path) as journal:
        assert len(journal[0][0]) == MAX_PAYLOAD_BYTES + 1


def test_a_full_disk_takes_what_was_not_synced_and_no_more(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        kept = fill(journal, 1, 1)
        journal.flush()
        fill(journal, 1, 2)
        with no_room(), pytest.raises(LogFull):
            journal.flush()
        assert journal[:] == kept
        assert [journal.term(index) for index in (2, 3, 4)] == [1, None, None]
        kept += fill(journal, 4)
        journal.flush()
    with opened(tmp_path) as journal:
        assert [journal[position] for position in range(3)] == kept


def test_a_failing_disk_ends_it(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        fill(journal, 1)
        replace_open_file(files(tmp_path)[0], "/dev/null")
        with pytest.raises(LogUnavailable, match="failed for good"):
            journal.flush()
        with pytest.raises(LogUnavailable):
            journal.cut(-1)


def test_a_cut_reaches_over_what_is_on_disk_and_what_is_not(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        kept = fill(journal, 1, 2)
        fill(journal, 2, 3)
        journal.flush()
        fill(journal, 3, 4)
        journal.cut(5)
        assert journal.last == 5
        journal.cut(2)
        assert journal[:] == kept
        assert [journal.term(index) for index in (1, 2, 3)] == [1, 2, None]
        kept += fill(journal, 7)
        journal.flush()
        assert journal.term(3) == 7
    with opened(tmp_path) as journal:
        assert [journal.term(index) for index in (1, 2, 3, 4)] == [1, 2, 7, None]
        journal.cut(0)
        assert len(journal) == 0
        fill(journal, 9)
        assert journal.term(1) == 9


def test_old_entries_are_read_from_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "_KEPT_BYTES", 4000)
    with opened(tmp_path) as journal:
        added = []
        for term in (1, 1, 2, 5):
            added += fill(journal, *[term] * 10)
            journal.flush()
        assert journal.recent(1, 99)[0].index > 20
        assert journal.range(1, 41) == added
        assert [journal[position] for position in range(40)] == added
        newest = journal.recent(39, 41)
        assert [entry.index for entry in newest] == [39, 40]
        assert newest[0].payload[8:] == added[38][0]


def test_it_begins_again_behind_a_snapshot(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        fill(journal, 1, 1, 2)
        journal.flush()
        fill(journal, 2)
        journal.begin_from((30, 4))
        journal.restart(30, 4)
        assert journal[:] == [(NO_OP, 30, 4)]
        assert [journal.term(index) for index in (3, 29, 30, 31)] == [None, None, 4, None]
        fill(journal, 5)
        journal.flush()
    with opened(tmp_path, applied=30) as journal:
        assert [journal.term(index) for index in (30, 31)] == [4, 5]


@pytest.mark.parametrize("applied", [0, 2, 29])
def test_a_snapshot_that_was_not_put_in_force_changes_nothing(tmp_path: Path, applied: int) -> None:
    with opened(tmp_path) as journal:
        fill(journal, *[1] * 29)
        journal.flush()
        journal.begin_from((30, 4))
    with opened(tmp_path, applied=applied) as journal:
        assert (journal.first, journal.last, journal.term(29)) == (1, 29, 1)


@pytest.mark.parametrize("length", [3, 29, 30, 31, 50])
def test_a_crash_behind_a_snapshot_put_in_force_is_made_up_for(tmp_path: Path, length: int) -> None:
    """The log is of a dead leader: the snapshot, at entry 30 of term 4, holds other entries than it."""
    with opened(tmp_path) as journal:
        fill(journal, *[1] * length)
        journal.flush()
        journal.begin_from((30, 4))
    for _ in range(2):
        with opened(tmp_path, applied=30) as journal:
            assert (journal.first, journal.last, journal.term(30)) == (30, 30, 4)
    with opened(tmp_path, applied=30) as journal:
        fill(journal, 6, 6)
        journal.flush()
    with opened(tmp_path, applied=31) as journal:
        assert (journal.first, journal.last) == (30, 32)


def test_a_log_that_agrees_with_the_snapshot_is_kept(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        for _ in range(50):
            fill(journal, 4)
            journal.flush()
        journal.begin_from((30, 4))
    with opened(tmp_path, applied=30) as journal:
        assert (journal.first, journal.last) == (1, 50)
        journal.wal.trim(45)
        first = journal.first
        assert first > 31
    with opened(tmp_path, applied=48) as journal:
        assert (journal.first, journal.last) == (first, 50)


def test_a_log_that_lost_what_was_applied_is_refused_and_let_go(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        fill(journal, 1)
        journal.flush()
    for _ in range(2):
        with pytest.raises(StateRefused, match="rejoin"), opened(tmp_path, applied=2):
            pass


def test_a_vote_is_durable_and_written_only_when_it_changes(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        journal.setCurrentTerm(3, "b")
        written = (tmp_path / "hardstate").stat().st_ino
        journal.setCurrentTerm(3, "b")
        assert (tmp_path / "hardstate").stat().st_ino == written
    with opened(tmp_path) as journal:
        assert (journal.getCurrentTerm(), journal.getVotedForNodeId()) == (3, "b")


STEPS = st.one_of(
    st.tuples(st.just("add"), st.lists(st.integers(0, 2), min_size=1, max_size=6)),
    st.tuples(st.just("flush"), st.just(0)),
    st.tuples(st.just("cut"), st.integers(0, 12)),
    st.tuples(st.just("trim"), st.integers(0, 12)),
    st.tuples(st.just("open"), st.just(0)),
    st.tuples(st.just("full"), st.just(0)),
    st.tuples(st.just("restart"), st.integers(1, 9)),
)


class Model:
    """A list, and how much of it is synced."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: list[RaftEntry] = []
        self.synced = 0
        self.last = 0
        self.journal = self.open()

    def open(self) -> Journal:
        return Journal.open(self.folder, 0, segment_bytes=SEGMENT_BYTES)

    def add(self, rises: list[int]) -> None:
        term = self.entries[-1][2] if self.entries else 1
        for rise in rises:
            term += rise
            self.last += 1
            self.entries.append((REGULAR + bytes(rise * 50), self.last, term))
            self.journal.add(*self.entries[-1])

    def flush(self, _: int) -> None:
        self.journal.flush()
        self.synced = self.last

    def full(self, _: int) -> None:
        if self.synced < self.last:
            with no_room(), pytest.raises(LogFull):
                self.journal.flush()
        self.forget(self.synced)

    def cut(self, back: int) -> None:
        after = max(self.last - back, self.journal.first - 1)
        self.journal.cut(after)
        self.forget(after)

    def forget(self, after: int) -> None:
        self.entries = [entry for entry in self.entries if entry[1] <= after]
        self.last = min(self.last, after)
        self.synced = min(self.synced, after)

    def trim(self, keep: int) -> None:
        """As the engine does: the last entry on disk stays."""
        self.journal.wal.trim(min(self.last - keep, self.journal.wal.commit - 1))
        self.entries = [entry for entry in self.entries if entry[1] >= self.journal.first]

    def reopen(self, _: int) -> None:
        self.journal.wal.close()
        self.forget(self.synced)
        self.journal = self.open()

    def restart(self, ahead: int) -> None:
        term = self.entries[-1][2] + 1 if self.entries else 1
        self.last = self.synced = self.last + ahead
        self.journal.restart(self.last, term)
        self.entries = [(NO_OP, self.last, term)]

    def compare(self) -> None:
        journal = self.journal
        assert (journal.last, len(journal), journal.wal.commit) == (self.last, len(self.entries), self.synced)
        assert [self.range(index, index + 1) for _, index, _ in self.entries] == [[entry] for entry in self.entries]
        assert [journal.term(index) for _, index, _ in self.entries] == [term for _, _, term in self.entries]
        assert journal.term(self.last + 1) is None
        assert journal.term(journal.first - 1) is None
        if self.entries:
            assert journal[-1] == self.entries[-1]

    def range(self, start: int, stop: int) -> Any:
        return self.journal.range(start, stop)


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(STEPS, max_size=25))
def test_any_sequence_of_steps_equals_a_list(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, Any]]
) -> None:
    model = Model(tmp_path_factory.mktemp("model") / "log")
    try:
        for verb, value in steps:
            {"open": model.reopen}.get(verb, getattr(model, verb))(value)
            model.compare()
    finally:
        model.journal.wal.close()


def test_a_journal_that_cannot_begin_lets_go_of_the_folder(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        journal.setCurrentTerm(1, "a")
    (tmp_path / "hardstate").write_bytes(b"")
    with pytest.raises(Exception, match="damaged"), opened(tmp_path):
        pass
    Wal.open(tmp_path, lock_seconds=0).close()
