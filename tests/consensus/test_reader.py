"""Readers go over to a new generation by themselves: never half in each, never back."""

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from consensus import generation, snapshot
from consensus.errors import StateRefused
from consensus.reader import Reader, open_reader
from consensus.state import State
from consensus.views import Views
from tests.consensus import states_made
from tests.consensus.states_made import CLUSTER


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def state(folder: Path) -> Iterator[State]:
    with closing(State.open(folder, CLUSTER)) as opened:
        yield opened


def install(state: State, folder: Path, index: int) -> None:
    path, manifest = states_made.snapshot_at(folder, index)
    state.install(snapshot.verify(path, manifest, CLUSTER))


@contextmanager
def reading_process(folder: Path) -> Iterator[None]:
    """Another process that has the state open, as a gateway has."""
    script = (
        "import sys, pathlib; from consensus.views import Views; views = Views(pathlib.Path(sys.argv[1]))\n"
        "print(views.applied(), flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline()
        yield
        process.stdin.close()
    assert process.returncode == 0


def test_no_reader_before_there_is_a_state(folder: Path) -> None:
    with pytest.raises(StateRefused, match="the keeper makes it"):
        Reader(folder)


def test_a_view_reads_a_new_generation_at_once(tmp_path: Path, folder: Path, state: State) -> None:
    with closing(Views(folder)) as views:
        assert views.applied() == 0
        install(state, tmp_path, 300)
        assert views.applied() == 300
        assert views.hash() == (300, state.hash())
        states_made.advance(state, 310)
        assert views.applied() == 310


def test_one_connection_is_of_one_generation_to_its_end(tmp_path: Path, folder: Path, state: State) -> None:
    states_made.advance(state, 50)
    with closing(Reader(folder)) as reader:
        old = reader.connection()
        install(state, tmp_path, 300)
        # Its files are gone; what is under way ends with what it began with.
        assert generation.read_meta(old).applied == 50
        assert not (folder / "db-1.sqlite").exists()
        assert generation.read_meta(reader.connection()).applied == 300
        assert reader.connection() is reader.connection()
    reader.close()


def test_a_long_read_keeps_its_generation(tmp_path: Path, folder: Path, state: State) -> None:
    states_made.advance(state, 50)
    with closing(open_reader(folder)) as connection:
        connection.execute("BEGIN")
        assert generation.read_meta(connection).applied == 50
        install(state, tmp_path, 60)
        install(state, tmp_path, 70)
        assert generation.read_meta(connection).applied == 50


def test_reads_go_on_when_the_folder_is_taken_away(folder: Path, state: State) -> None:
    states_made.advance(state, 50)
    with closing(Views(folder)) as views:
        shutil.move(folder, folder.with_name("away"))
        assert views.applied() == 50


def test_a_current_that_names_nothing_is_refused_and_not_waited_for(folder: Path, state: State) -> None:
    with closing(Views(folder)) as views:
        (folder / "new").write_text("db-9.sqlite\n")
        (folder / "new").rename(folder / "CURRENT")
        with pytest.raises(StateRefused, match="which is not there"):
            views.applied()


def test_no_reader_ever_goes_back_or_fails_while_generations_come_and_go(
    tmp_path: Path, folder: Path, state: State
) -> None:
    """New readers open, and old ones read on, as fast as they can, while entries and snapshots arrive."""
    states_made.advance(state, 20)
    published = [20]  # what every read that begins from now on has to see
    ended = threading.Event()
    failures: list[str] = []

    def read(renewed: bool) -> None:
        views = Views(folder)
        seen = 0
        try:
            while not ended.is_set():
                if renewed:
                    views.close()
                    views = Views(folder)
                due = max(seen, published[0])
                seen = views.applied()
                if seen < due:
                    failures.append(f"{seen} after {due}")
        except Exception as error:
            failures.append(repr(error))
        finally:
            views.close()

    readers = [threading.Thread(target=read, args=(renewed,)) for renewed in (False, True, True)]
    for reader in readers:
        reader.start()
    made = [states_made.snapshot_at(tmp_path / f"{upto}", upto) for upto in range(100, 1600, 100)]
    for path, manifest in made:
        state.install(snapshot.verify(path, manifest, CLUSTER))
        published[0] = state.applied
        for _ in range(5):
            states_made.advance(state, state.applied + 10)
            published[0] = state.applied
    ended.set()
    for reader in readers:
        reader.join()
    assert not failures
    assert state.hash() == states_made.hash_at(state.applied)


def test_a_reader_overtaken_while_it_opens_the_old_generation_begins_again(
    tmp_path: Path, folder: Path, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has opened the old database when that is replaced, and of its files the log goes first."""
    states_made.advance(state, 50)
    connect = sqlite3.connect
    overtaken: list[bool] = []

    def slow_connect(*arguments: Any, **named: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*arguments, **named)
        if not overtaken:
            overtaken.append(True)
            os.link(folder / "db-1.sqlite", tmp_path / "kept")
            install(state, tmp_path, 300)
            (tmp_path / "kept").rename(folder / "db-1.sqlite")
        return connection

    with reading_process(folder):  # keeps the writer from a checkpoint when it leaves the old generation
        monkeypatch.setattr(sqlite3, "connect", slow_connect)
        with closing(open_reader(folder)) as connection:
            assert generation.read_meta(connection).applied == 300
    assert overtaken
