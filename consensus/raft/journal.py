"""The entries of a member, as pysyncobj wants them, on the write-ahead log.

An entry of the write-ahead log is the term (u64, little-endian) and the command; a command is its kind (one byte) and,
for REGULAR ones, the payload. Entries are on disk only after `flush`: the core calls it before anything that says so to
another member or counts for a majority. The newest are also in memory; what is older is read back from the disk.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from pathlib import Path
from typing import Any, Self, overload

from consensus.errors import StateRefused
from consensus.log import MAX_PAYLOAD_BYTES, Entry
from consensus.raft.hardstate import HardState
from consensus.wal import DEFAULT_SEGMENT_BYTES, Wal

REGULAR, NO_OP = b"\x00", b"\x01"
KINDS = (REGULAR, NO_OP)
MAX_COMMAND_BYTES = 1 + MAX_PAYLOAD_BYTES

_TERM = struct.Struct("<Q")
_MOST_TERM = 2**63  # far from what cannot be counted on from
_KEPT_BYTES = 32 * 1024 * 1024
_OVERHEAD_BYTES = 256
_SLICE_BYTES = 1024 * 1024  # about as much as one slice reads back from the disk

RaftEntry = tuple[bytes, int, int]  # command, index, term: the order is pysyncobj's


def decode(index: int, content: bytes) -> RaftEntry:
    """An entry of the write-ahead log as the core knows it."""
    return content[_TERM.size :], index, int(_TERM.unpack_from(content)[0])


class Journal:
    """What `pysyncobj.journal.Journal` promises, and `flush`, `term`, `cut`. Belongs to the thread of the core."""

    def __init__(self, wal: Wal, hard: HardState) -> None:
        self.wal = wal
        self._hard = hard
        self._recent: list[RaftEntry] = []  # without gaps, up to the last entry
        self._recent_bytes = 0
        self._unsynced = 0  # how many of them, at the end
        self._starts: list[tuple[int, int]] = []  # (index, term) of the first entry of each term
        self._load_recent()

    @classmethod
    def open(cls, folder: Path, applied: int, *, segment_bytes: int = DEFAULT_SEGMENT_BYTES) -> Self:
        """The journal in `folder`, of a member whose state has applied entry `applied`.

        Raises StateRefused if the log ends before that and no snapshot explains it; LogCorrupt, LogFull, and
        LogUnavailable.
        """
        wal = Wal.open(folder, segment_bytes=segment_bytes)
        try:
            hard = HardState.open(folder)
            base, term = hard.stored.base
            if base <= applied and not _reaches(wal, base, term):
                _restart(wal, base, term)  # a crash came between putting a snapshot in force and this
            _check_reach(folder, wal.commit, applied)
            return cls(wal, hard)
        except BaseException:
            wal.close()
            raise

    @property
    def first(self) -> int:
        """The index of the oldest entry kept."""
        return self.wal.first

    @property
    def last(self) -> int:
        """The index of the newest entry, synced or not."""
        return self._recent[-1][1] if self._recent else self.wal.commit

    def __len__(self) -> int:
        return self.last - self.first + 1

    @overload
    def __getitem__(self, item: int) -> RaftEntry: ...
    @overload
    def __getitem__(self, item: slice) -> list[RaftEntry]: ...
    def __getitem__(self, item: int | slice) -> Any:
        """By position from the oldest entry kept. A slice may be shorter than asked for, as it is read in portions."""
        if isinstance(item, int):
            return self._entry(self.last + 1 + item if item < 0 else self.first + item)
        start = self.first + (item.start or 0)
        stop = self.last + 1 if item.stop is None else self.first + item.stop
        return self.range(start, stop)

    def recent(self, start: int, stop: int) -> tuple[Entry, ...]:
        """Entries with these indexes as the write-ahead log has them, `stop` excluded, so far as they are in memory."""
        oldest = self._recent[0][1] if self._recent else self.last + 1
        found = self._recent[max(start, oldest) - oldest : max(0, stop - oldest)]
        return tuple(Entry(index, _TERM.pack(term) + command) for command, index, term in found)

    def term(self, index: int) -> int | None:
        """The term of an entry, None if it is not kept."""
        if not self.first <= index <= self.last:
            return None
        position = bisect_right(self._starts, index, key=lambda start: start[0])
        return self._starts[position - 1][1]

    def add(self, command: bytes, index: int, term: int) -> None:
        """Behind the newest; on disk after `flush`. Raises ValueError for what could not be written or read back."""
        if index != self.last + 1:
            raise ValueError(f"entry {index} cannot follow entry {self.last}")
        if len(command) > MAX_COMMAND_BYTES or not 0 <= term <= _MOST_TERM:
            raise ValueError(f"an entry of {len(command)} bytes and term {term}")
        self._remember((command, index, term))
        self._unsynced += 1

    def flush(self) -> None:
        """All entries are on disk when this returns: one write, one sync. Raises LogFull (those not yet on disk are
        forgotten), LogUnavailable."""
        if not self._unsynced:
            return
        fresh = self._recent[-self._unsynced :]
        try:
            self.wal.append([_TERM.pack(term) + command for command, _, term in fresh])
        except BaseException:
            self._forget(self.wal.commit)
            raise
        self._unsynced = 0
        self._shrink()

    def cut(self, after: int) -> None:
        """Takes back the entries behind `after`, durably. Raises LogUnavailable."""
        self._forget(after)
        self.wal.cut(after)
        if not self._recent:
            self._load_recent()

    def restart(self, base: int, term: int) -> None:
        """Forgets every entry; goes on behind entry `base`, of that term, which a snapshot holds. The snapshot is in
        force when this is called: see HardState.begin_from. Raises LogFull, LogUnavailable."""
        self._recent, self._recent_bytes, self._unsynced, self._starts = [], 0, 0, []
        _restart(self.wal, base, term)
        self._load_recent()

    def setCurrentTerm(self, term: int, voted_for: str | None) -> None:  # noqa: N802  pysyncobj's name
        """Durable when this returns. Raises LogUnavailable."""
        if (term, voted_for) != (self._hard.stored.term, self._hard.stored.voted_for):
            self._hard.vote(term, voted_for)

    def getCurrentTerm(self) -> int:  # noqa: N802
        """The highest term this member has been in."""
        return self._hard.stored.term

    def getVotedForNodeId(self) -> str | None:  # noqa: N802
        """Whom it voted for in that term."""
        return self._hard.stored.voted_for

    def setRaftCommitIndex(self, _: int) -> None:  # noqa: N802
        """Comes before anything is applied or acknowledged as committed: by then this member's own copy counts."""
        self.flush()

    def getRaftCommitIndex(self) -> int:  # noqa: N802
        """Not kept: a member that starts learns it from its state and from the others."""
        return 0

    def onOneSecondTimer(self) -> None:  # noqa: N802
        """Nothing is done by the clock."""

    def _destroy(self) -> None:
        pass

    def begin_from(self, base: tuple[int, int]) -> None:
        """Says durably, before a snapshot is in force, that this member goes on behind it. Raises LogUnavailable."""
        self._hard.begin_from(base)

    def _entry(self, index: int) -> RaftEntry:
        oldest = self._recent[0][1] if self._recent else self.last + 1
        if index >= oldest:
            return self._recent[index - oldest]
        return self._read(index, index + 1)[0]

    def range(self, start: int, stop: int) -> list[RaftEntry]:
        """The entries with these indexes that are kept, `stop` excluded; fewer of them if they have to be read from the
        disk, one at least."""
        stop = min(stop, self.last + 1)
        if start >= stop:
            return []
        oldest = self._recent[0][1] if self._recent else self.last + 1
        if start >= oldest:
            return self._recent[start - oldest : stop - oldest]
        return self._read(start, stop)

    def _read(self, start: int, stop: int) -> list[RaftEntry]:
        found: list[RaftEntry] = []
        size = 0
        while start < stop and size < _SLICE_BYTES and (batch := self.wal.read(start - 1)):
            found += [decode(entry.index, entry.payload) for entry in batch if entry.index < stop]
            size += sum(len(entry.payload) for entry in batch)
            start = batch[-1].index + 1
        return found

    def _remember(self, entry: RaftEntry) -> None:
        _, index, term = entry
        if not self._starts or self._starts[-1][1] != term:
            self._starts.append((index, term))
        self._recent.append(entry)
        self._recent_bytes += len(entry[0]) + _OVERHEAD_BYTES

    def _forget(self, after: int) -> None:
        while self._recent and self._recent[-1][1] > after:
            self._recent_bytes -= len(self._recent.pop()[0]) + _OVERHEAD_BYTES
            self._unsynced = max(0, self._unsynced - 1)
        while self._starts and self._starts[-1][0] > after:
            self._starts.pop()

    def _shrink(self) -> None:
        """Down to half at once, so that the list is not moved for every entry."""
        if self._recent_bytes <= _KEPT_BYTES:
            return
        dropped = 0
        while self._recent_bytes > _KEPT_BYTES // 2 and dropped < len(self._recent) - 1:
            self._recent_bytes -= len(self._recent[dropped][0]) + _OVERHEAD_BYTES
            dropped += 1
        del self._recent[:dropped]

    def _load_recent(self) -> None:
        """The last entry at least, where there is one; and where each term starts."""
        self._recent, self._recent_bytes, self._unsynced = [], 0, 0
        first, last = self.wal.first, self.wal.commit
        if first <= last:
            (newest,) = self._read(last, last + 1)
            oldest = self._read(first, first + 1)[0][2]
            self._starts = [(first, oldest), *self._changes(first, oldest, last, newest[2])]
            self._remember(newest)

    def _changes(self, low: int, low_term: int, high: int, high_term: int) -> list[tuple[int, int]]:
        """Where terms start above `low` up to `high`. Terms only rise, so that equal ends need no look between them."""
        if low_term == high_term:
            return []
        if low + 1 == high:
            return [(high, high_term)]
        middle = (low + high) // 2
        term = self._read(middle, middle + 1)[0][2]
        return [*self._changes(low, low_term, middle, term), *self._changes(middle, term, high, high_term)]


def _restart(wal: Wal, base: int, term: int) -> None:
    wal.reset(base)
    wal.append([_TERM.pack(term) + NO_OP])


def _reaches(wal: Wal, base: int, term: int) -> bool:
    """Whether the log has that entry, or has been trimmed since behind it. It may be longer and have another one there,
    of a leader that died."""
    if not wal.first <= base <= wal.commit:
        return base < wal.first
    return decode(base, wal.read(base - 1)[0].payload)[2] == term


def _check_reach(folder: Path, last: int, applied: int) -> None:
    if last < applied:
        raise StateRefused(
            f"the state has applied entry {applied}, but the log in {folder} ends at entry {last}: it was lost or "
            f"restored from an older copy, and this node may have acknowledged entries that it no longer has. Let the "
            f"node rejoin as a new member and copy its data from a peer."
        )
