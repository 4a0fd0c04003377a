"""SQLite's log moved into the database by a thread of its own, so that no commit waits for the disk.

A commit of the state syncs nothing, but what it wrote has to go from SQLite's log into the database: thousands of
pages all over a large file and two syncs, tenths of a second in which nothing would be applied. A second connection
does that here, which holds up neither writer nor readers. The writer then moves what has been added meanwhile, which is
little, and the log begins anew.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress

_ROWS = 8192  # changed between two times: some thousand pages

_TIMES = 3  # one after the other: each leaves the writer less

_MOVE = "PRAGMA wal_checkpoint(PASSIVE)"


class Backfill:
    """For one writer's connection; belongs to its thread. `connect` opens another one to the same database."""

    def __init__(self, writer: sqlite3.Connection, connect: Callable[[], sqlite3.Connection]) -> None:
        self._writer = writer
        self._connect = connect
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="backfill")
        self._moved = writer.total_changes
        self._moving: Future[None] | None = None

    def step(self) -> None:
        """Between two transactions: begins or ends what is due."""
        if self._moving is None:
            if self._writer.total_changes - self._moved >= _ROWS:
                self._moved = self._writer.total_changes
                self._moving = self._thread.submit(self._move)
        elif self._moving.done():
            self._moving = None
            _move(self._writer)

    def close(self) -> None:
        """Before the connection is closed: waits for what is under way. Idempotent."""
        self._thread.shutdown()

    def _move(self) -> None:
        with suppress(sqlite3.Error), closing(self._connect()) as connection:
            for _ in range(_TIMES):
                _move(connection)


def _move(connection: sqlite3.Connection) -> None:
    # What cannot be moved stays in the log, which the writer's commits and checkpoints go on from.
    with suppress(sqlite3.Error):
        connection.execute(_MOVE).fetchone()
