"""The state machine: the log's entries become rows of SQLite, many entries a transaction.

The state is a function of the log: no clock, no randomness, no JSON, and no order that SQLite is free to choose. Any
split of the same entries into batches ends in the same rows, and `hash` says so. What a command contains never raises;
what the disk does (sqlite3.Error, OSError) always does, and the process that owns the state stops.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from consensus import answers, generation
from consensus.apply import apply_command
from consensus.backfill import Backfill
from consensus.codec import decode
from consensus.commands import EnrolProposer, Outcome, Reason, Status
from consensus.copying import STEP_SECONDS, Copying
from consensus.errors import InvalidCommand, SnapshotRefused
from consensus.fingerprint import fingerprint
from consensus.log import Entry
from consensus.snapshot import VerifiedSnapshot
from consensus.step import Step

MAX_RISE_MS = 60_000  # how far one command may move log time: a wrong clock cannot expire everything at once


class State:
    """The writing side of the state; one thread at a time."""

    def __init__(self, folder: Path, cluster_id: str, path: Path) -> None:
        self._folder = folder
        self._cluster_id = cluster_id
        self._copying: Copying | None = None
        self._use(path)

    @classmethod
    def open(cls, folder: Path, cluster_id: str) -> State:
        """The state in `folder`, made empty where there is none. Raises StateRefused for another cluster's state, a
        schema of another version or an unusable CURRENT; sqlite3.Error and OSError as the disk has it."""
        path = generation.current(folder)
        if path is None:
            path = generation.create(folder, cluster_id)
        else:
            generation.settle(folder)
        return cls(folder, cluster_id, path)

    @property
    def applied(self) -> int:
        """The index of the last entry applied and committed; 0 before the first."""
        return self._applied

    @property
    def size_bytes(self) -> int:
        """About how much room a copy takes."""
        (pages,), (page_bytes,) = (
            self._connection.execute(pragma).fetchone() for pragma in ("PRAGMA page_count", "PRAGMA page_size")
        )
        return int(pages * page_bytes)

    def apply(self, entries: Sequence[Entry]) -> list[Outcome]:
        """Applies entries, in one transaction, and returns their outcomes in order. Indexes must rise and lie above
        `applied` (ValueError). Raises sqlite3.Error when the disk refuses; then nothing of the batch was applied."""
        if not entries:
            return []
        self._backfill.step()
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            outcomes = self._apply_all(entries)
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        self._applied = entries[-1].index
        return outcomes

    def checkpoint(self) -> int:
        """Makes all that is applied durable; returns the index up to which the log may be trimmed. Raises
        sqlite3.Error."""
        # A commit under FULL syncs SQLite's log with everything before it, whatever readers hold; the checkpoint that
        # follows moves what it can into the database and empties that log if no reader is in its way.
        self._connection.execute("PRAGMA synchronous = FULL")
        try:
            self._connection.execute("UPDATE meta SET applied = applied")
        finally:
            self._connection.execute("PRAGMA synchronous = NORMAL")
        self._connection.execute("PRAGMA busy_timeout = 0")
        try:
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        finally:
            self._connection.execute("PRAGMA busy_timeout = 5000")
        return self._applied

    def copy_to(self, target: Path, *, step_seconds: float = STEP_SECONDS) -> Copying:
        """Begins a copy into a new file; its steps are taken in the state's thread, between batches. One at a time: one
        under way is abandoned, as it is by `install` and `close`. Raises sqlite3.Error."""
        self._abandon_copying()
        self._copying = Copying(self._connection, target, step_seconds)
        return self._copying

    def install(self, snapshot: VerifiedSnapshot) -> None:
        """Puts the snapshot, whose file is used up, in the place of all that was applied; durable on return. Readers
        go over to it by themselves. Syncs the file, so it takes as long as the disk needs for that.

        Raises SnapshotRefused, and nothing has changed, unless it is ahead of `applied`. After any other error
        (OSError, sqlite3.Error, StateRefused) the state in force is the old or the new one, whole, and the process has
        to start anew.
        """
        if snapshot.manifest.applied <= self._applied:
            raise SnapshotRefused(
                f"the snapshot ends at entry {snapshot.manifest.applied}, the state is at {self._applied} already"
            )
        self._abandon_copying()
        path = generation.install(self._folder, snapshot.path)
        self._backfill.close()
        self._connection.close()
        self._use(path)
        generation.remove_others(self._folder)

    def hash(self) -> str:
        """SHA-256 (hex) over every replicated row. Equal indexes, equal hashes. Takes time in proportion to the
        state."""
        return fingerprint(self._connection)

    def close(self) -> None:
        """Idempotent."""
        self._abandon_copying()
        self._backfill.close()
        self._connection.close()

    def _use(self, path: Path) -> None:
        self._connection = generation.open_writer(path, self._cluster_id)
        self._backfill = Backfill(self._connection, partial(generation.open_writer, path, self._cluster_id))
        self._applied = generation.read_meta(self._connection).applied

    def _abandon_copying(self) -> None:
        if self._copying is not None:
            self._copying.abandon()
            self._copying = None

    def _apply_all(self, entries: Sequence[Entry]) -> list[Outcome]:
        meta = generation.read_meta(self._connection)
        step = Step(self._connection, meta.log_time_ms, meta.catalog_changed)
        outcomes = []
        index = meta.applied
        for entry in entries:
            if entry.index <= index:
                raise ValueError(f"entry {entry.index} does not follow {index}")
            index = step.index = entry.index
            outcomes.append(_apply_entry(step, entry))
        self._connection.execute(
            "UPDATE meta SET applied = ?, log_time_ms = ?, catalog_changed = ?",
            (index, step.now_ms, step.catalog_changed),
        )
        return outcomes


def _apply_entry(step: Step, entry: Entry) -> Outcome:
    if entry.blank:
        return Outcome(Status.DONE, entry.index)
    try:
        envelope = decode(entry.payload)
    except InvalidCommand:
        return Outcome(Status.REFUSED, entry.index, reason=Reason.MALFORMED)
    proposed = envelope.time_ms
    if step.now_ms:
        proposed = max(step.now_ms, min(proposed, step.now_ms + MAX_RISE_MS))
    step.now_ms = proposed
    if isinstance(envelope.command, EnrolProposer):
        return answers.enrol(step.connection, entry.index, step.now_ms, envelope.command.name)
    answer = answers.admit(step.connection, entry.index, step.now_ms, envelope)
    if answer is None:
        answer = apply_command(step, envelope.command)
        answers.keep(step.connection, envelope, answer)
    return answer
