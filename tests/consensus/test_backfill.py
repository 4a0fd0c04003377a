"""SQLite's log goes into the database beside the writer, and begins anew."""

import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from consensus import backfill, generation
from consensus.backfill import Backfill
from consensus.state import State
from tests.consensus import states_made
from tests.consensus.states_made import CLUSTER

ROUND = backfill._ROWS
SECONDS = 30.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "database"


@pytest.fixture
def writer(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute("CREATE TABLE t (number INTEGER PRIMARY KEY, text TEXT)")
        yield connection


def write(writer: sqlite3.Connection, rows: int = ROUND) -> None:
    with writer:
        writer.execute("BEGIN")
        writer.executemany("INSERT INTO t (text) VALUES (?)", [("x" * 100,)] * rows)


def rows_without_log(path: Path) -> int:
    shutil.copy(path, path.with_name("copy"))
    with closing(sqlite3.connect(path.with_name("copy"))) as connection:
        try:
            return int(connection.execute("SELECT count(*) FROM t").fetchone()[0])
        except sqlite3.Error:  # nothing has been moved, or a part of it
            return 0


def step_until_moved(moving: Backfill, path: Path, rows: int) -> None:
    deadline = time.monotonic() + SECONDS
    while rows_without_log(path) < rows:
        assert time.monotonic() < deadline
        moving.step()
        time.sleep(0.01)
    for _ in range(20):  # ends, and does not begin again
        moving.step()
        time.sleep(0.01)


def test_the_log_is_moved_and_begins_anew(path: Path, writer: sqlite3.Connection) -> None:
    moving = Backfill(writer, lambda: sqlite3.connect(path))
    sizes = []
    for number in range(1, 5):
        write(writer)
        step_until_moved(moving, path, number * ROUND)
        sizes.append(path.with_name("database-wal").stat().st_size)
    assert max(sizes) < 2 * min(sizes)
    moving.close()
    moving.close()


def test_nothing_is_moved_for_a_few_rows(path: Path, writer: sqlite3.Connection) -> None:
    calls = []
    moving = Backfill(writer, lambda: calls.append(path) or sqlite3.connect(path))  # type: ignore[func-returns-value]
    write(writer, ROUND - 1)
    moving.step()
    moving.close()
    assert not calls
    assert rows_without_log(path) == 0


def test_the_writer_does_not_care_whether_it_succeeds(path: Path, writer: sqlite3.Connection) -> None:
    def refuse() -> sqlite3.Connection:
        raise sqlite3.OperationalError("unable to open database file")

    moving = Backfill(writer, refuse)
    for _ in range(3):
        write(writer)
        moving.step()
        time.sleep(0.05)
    moving.close()
    assert writer.execute("SELECT count(*) FROM t").fetchone() == (3 * ROUND,)


def test_a_state_moves_its_log_while_it_applies(tmp_path: Path) -> None:
    with closing(State.open(tmp_path / "state", CLUSTER)) as state:
        database = generation.current(tmp_path / "state")
        assert database is not None
        deadline = time.monotonic() + SECONDS
        moved = 0
        while not moved:
            assert time.monotonic() < deadline
            states_made.advance(state, state.applied + 500)
            shutil.copy(database, tmp_path / "copy")
            with closing(generation.open_whole(tmp_path / "copy")) as connection:
                moved = generation.read_meta(connection).applied
        assert 0 < moved <= state.applied
