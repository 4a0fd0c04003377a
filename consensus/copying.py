"""A copy of a database, made by the connection that writes it, a few milliseconds at a time.

Between two steps the connection goes on writing. SQLite puts what it writes into the part already copied as well, so
the copy need not begin anew and ends as the database is at its last step: one prefix of the log, whole. No read
transaction is held meanwhile, so SQLite's log does not grow for the copy's sake.

Python runs such a copy only as one call that asks back between groups of pages. That call has a thread of its own here,
which works while `step` waits for it and waits while it does not: the connection is never used by two at once.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

from consensus import clock, disk
from consensus.errors import SnapshotError, SnapshotFull, SnapshotUnavailable

STEP_SECONDS = 0.01

_PAGES = 32  # between two looks at the clock
_CACHE_KIB = 2048  # the last step writes what the target's cache still holds


class Copying:
    """One copy under way. `step` and `abandon` belong to the thread that uses the connection."""

    def __init__(self, source: sqlite3.Connection, target: Path, step_seconds: float) -> None:
        self._source = source
        self._target = target
        self._step_seconds = step_seconds
        self._until = 0.0
        self._written_out = 0
        self._page_bytes: int = source.execute("PRAGMA page_size").fetchone()[0]
        self._ended = False
        self._abandoned = False
        self._failure: Exception | None = None
        self._ready = threading.Semaphore(0)  # the copying thread waits for its turn
        self._turn = threading.Semaphore(0)
        self._over = threading.Semaphore(0)  # ... and is through with it
        self._thread = threading.Thread(target=self._run, name="copying", daemon=True)
        self._thread.start()

    def step(self) -> bool:
        """Copies for about `step_seconds`; whether there is more to do. When there is not, the target is the database
        as it is now, whole but not synced. Raises SnapshotFull and SnapshotUnavailable, also at any further call; the
        source is unharmed."""
        if not self._ended:
            if not self._ready.acquire(timeout=self._step_seconds):
                return True  # still handing earlier pages to the disk: the writer does not wait for that
            self._until = clock.monotonic() + self._step_seconds
            self._turn.release()
            self._over.acquire()
        if self._failure is not None:
            raise _explain(self._failure) from self._failure
        return not self._ended

    def abandon(self) -> None:
        """Ends it, half-way or not; the target is then the caller's to remove. Idempotent."""
        self._abandoned = True
        if not self._ended:
            self._ready.acquire()
            self._turn.release()
        self._thread.join()

    def _run(self) -> None:
        self._ready.release()
        self._turn.acquire()
        try:
            self._copy()
        except Exception as error:
            self._failure = error
        self._ended = True
        self._over.release()

    def _copy(self) -> None:
        # Nothing is promised about the target before it is whole and synced, so it needs no journal.
        self._check_wanted()
        with closing(sqlite3.connect(self._target, isolation_level=None)) as target:
            target.execute("PRAGMA journal_mode = OFF")
            target.execute("PRAGMA synchronous = OFF")
            target.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            self._source.backup(target, pages=_PAGES, progress=self._pause)

    def _pause(self, status: int, remaining: int, total: int) -> None:
        # After the last page this turn has to end the copy: what is written from now on is no longer put into it.
        if status == sqlite3.SQLITE_DONE or clock.monotonic() < self._until:
            return
        self._over.release()
        self._write_out((total - remaining) * self._page_bytes)
        self._ready.release()
        self._turn.acquire()
        self._check_wanted()

    def _check_wanted(self) -> None:
        if self._abandoned:
            raise SnapshotUnavailable("the copy was abandoned")

    def _write_out(self, copied: int) -> None:
        if copied - self._written_out < disk.PORTION_BYTES:
            return
        descriptor = os.open(self._target, os.O_RDONLY | os.O_CLOEXEC)
        try:
            disk.write_out(descriptor)
        finally:
            os.close(descriptor)
        self._written_out = copied


def _explain(error: Exception) -> SnapshotError:
    if isinstance(error, SnapshotError):
        return error
    if isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL:
        return SnapshotFull("no room on the disk for a copy of the state")
    return SnapshotUnavailable(f"the state could not be copied: {error}")
