"""A member's journal, watched: what the next process may find of it, after any crash.

Nothing is found that was taken back or refused, nor, once a process has begun, what that process did not find.
"""

from __future__ import annotations

from consensus.errors import LogFull
from consensus.raft.journal import Journal

Place = tuple[int, int]  # index and term of an entry


class WatchedJournal(Journal):
    """`possible` are the entries that may be on disk. It outlives the process, and so is handed over."""

    possible: set[Place]

    @property
    def found(self) -> set[Place]:
        """The entries that it has, as `possible` names them."""
        return {(index, self.term(index) or 0) for index in range(self.first, self.last + 1)}

    def add(self, command: bytes, index: int, term: int) -> None:
        """See Journal; it may be found from now on."""
        super().add(command, index, term)
        self.possible.add((index, term))

    def flush(self) -> None:
        """See Journal; what a full disk refused is not found later."""
        try:
            super().flush()
        except LogFull:
            self._lack(self.last)
            raise

    def cut(self, after: int) -> None:
        """See Journal; what it took back, when it returns, is not found later."""
        super().cut(after)
        self._lack(after)

    def _lack(self, after: int) -> None:
        for place in [place for place in self.possible if place[0] > after]:
            self.possible.remove(place)
