"""What is filled without a cluster is what a stopped member would have."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from bench.million import Load, copy, fill
from consensus import generation
from consensus.raft.journal import Journal
from consensus.state import State

CLUSTER, OTHER = "b" * 32, "c" * 32
LOAD = Load(1500, 65536)


def test_log_and_state_fit_and_the_log_is_trimmed(tmp_path: Path) -> None:
    fill(tmp_path, CLUSTER, LOAD)
    with closing(State.open(tmp_path / "state", CLUSTER)) as state:
        journal = Journal.open(tmp_path / "wal", state.applied)
        assert (journal.first > 1, journal.last) == (True, state.applied)
        journal.wal.close()
    database = generation.current(tmp_path / "state")
    assert database is not None
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("SELECT count(*) FROM manifests").fetchone() == (LOAD.manifests,)


def test_what_was_kept_is_taken_over_by_another_cluster(tmp_path: Path) -> None:
    fill(tmp_path / "made", CLUSTER, LOAD)
    copy(tmp_path / "made", tmp_path / "kept")
    copy(tmp_path / "kept", tmp_path / "member", OTHER)
    with closing(State.open(tmp_path / "member" / "state", OTHER)) as state:
        assert state.applied == 2 * LOAD.manifests + 1
