"""The log port: what an engine of the replicated log promises to everything above it.

Engines: `consensus.solo` (one node, the write-ahead log alone) and `consensus.raft` (three to five nodes). All pass
`tests/consensus/log_suite.py`.
Indexes are ordered but not dense: an engine may skip some (etcd revisions do), and callers must not count on i + 1.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

MAX_PAYLOAD_BYTES = 4 * 1024 * 1024
MAX_BATCH_ENTRIES = 1000
MAX_BATCH_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Entry:
    """One committed command: its position and its encoded envelope. A blank one is a position at which nothing was
    appended (an engine's own mark): whoever applies entries has then come that far."""

    index: int
    payload: bytes
    blank: bool = False


@dataclass(frozen=True, slots=True)
class LogStatus:
    """Where the engine stands. `steward` is the node that leads (None while unknown); `commit` the highest committed
    index; `first` the lowest index that has not been trimmed, commit + 1 at most."""

    term: int
    steward: str | None
    is_steward: bool
    first: int
    commit: int


class Log(Protocol):
    """An ordered, durable list of byte strings."""

    async def append(self, payload: bytes) -> int:
        """Returns the index once the entry is committed and durable. LogFull: it is not in the log and never will be.
        LogUnavailable: it may or may not be there; ask again with the same request id. InvalidCommand: over 4 MiB."""

    def entries(self, after: int) -> AsyncIterator[tuple[Entry, ...]]:
        """Committed entries with index > after, in order, in non-empty batches of at most MAX_BATCH_ENTRIES, ended by
        the entry that reaches MAX_BATCH_BYTES; waits for more; ends when the log is closed. Raises LogTrimmed when
        `after` is below what is kept, LogUnavailable when the engine has failed for good, LogCorrupt."""

    async def barrier(self) -> int:
        """An index at least that of every append acknowledged anywhere before the call. Raises LogUnavailable."""

    async def trim(self, upto: int, *, keep_bytes: int = 0) -> None:
        """Entries with index <= upto may be forgotten, except that about the newest `keep_bytes` of the log stay, for
        nodes that lag. The caller has the entries in an fsynced checkpoint. Raises LogUnavailable."""

    @property
    def status(self) -> LogStatus:
        """Where the engine stands now; never blocks."""

    async def close(self) -> None:
        """Stops; appends under way end with LogUnavailable, iterators end."""


class Bridged(Protocol):
    """What a log offers beside that may lack entries which nobody keeps any more: a snapshot of the state bridges the
    gap. Base is (index, term) of the last entry that a snapshot holds."""

    async def behind(self) -> str:
        """Returns once this node needs a snapshot to go on: the name of a node that should have one. Raises
        LogUnavailable."""

    async def term_at(self, index: int) -> int | None:
        """The term of a kept entry. Raises LogUnavailable."""

    async def expect(self, base: tuple[int, int]) -> None:
        """Says durably that a snapshot is about to be put in force: a log found to end before it is no loss then.
        Raises LogUnavailable."""

    async def restart(self, base: tuple[int, int]) -> None:
        """The snapshot is in force: entries up to its base are forgotten, unless the log has them all. Raises LogFull,
        LogUnavailable."""
