"""The snapshots a node keeps: one at a time is taken, the newest stays, what a crash left goes."""

import os
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from consensus import snapshot
from consensus.archive import Archive
from consensus.copying import Copying
from consensus.errors import SnapshotDamaged, SnapshotFull, SnapshotUnavailable
from consensus.snapshot import CHUNK_BYTES, Manifest
from consensus.state import State
from tests.consensus import states_made
from tests.consensus.states_made import CLUSTER, take


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    with closing(State.open(tmp_path / "state", CLUSTER)) as opened:
        states_made.advance(opened, 2000)
        yield opened


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "snapshots"


@pytest.fixture
def archive(folder: Path, state: State) -> Archive:
    return Archive.open(folder)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def files(manifest: Manifest) -> list[str]:
    return [f"{manifest.name}.manifest", f"{manifest.name}.sqlite"]


def read_all(archive: Archive, name: str = "", offset: int = 0) -> bytes:
    reading, start = archive.read(name, offset)
    with closing(reading):
        found = b""
        while chunk := reading.chunk(start + len(found)):
            found += chunk
        return found


def copy_beside_writing(copying: Copying, state: State) -> None:
    while copying.step():
        states_made.advance(state, state.applied + 1)


def test_an_empty_archive_has_nothing(archive: Archive) -> None:
    assert archive.newest is None
    with pytest.raises(SnapshotUnavailable, match="no snapshot is kept"):
        archive.read()


def test_a_taken_snapshot_is_whole_and_says_where_it_ends(folder: Path, state: State, archive: Archive) -> None:
    taking = archive.begin(state, step_seconds=0.0)
    with pytest.raises(ValueError, match="not copied yet"):
        _ = taking.applied
    while taking.step():
        states_made.advance(state, state.applied + 7)
    ended = state.applied
    states_made.advance(state, ended + 7)
    assert not taking.step()
    assert taking.applied == ended
    manifest = taking.finish(3)
    assert (manifest.applied, manifest.term, archive.newest) == (ended, 3, manifest)
    assert names(folder) == files(manifest)
    verified = snapshot.verify(folder / f"{manifest.name}.sqlite", manifest, CLUSTER)
    assert read_all(archive) == verified.path.read_bytes()


def test_the_newest_takes_the_place_of_those_before_it(folder: Path, state: State, archive: Archive) -> None:
    first = take(archive, state)
    reading, _ = archive.read()
    states_made.advance(state, 2100)
    second = take(archive, state)
    assert names(folder) == files(second)
    with closing(reading):  # ... but who is reading the older one reads on
        assert reading.manifest == first
        for offset in range(0, first.size_bytes, CHUNK_BYTES):
            assert reading.chunk(offset)
        assert reading.chunk(first.size_bytes) == b""
    reading.close()


def test_only_one_is_taken_at_a_time(state: State, archive: Archive) -> None:
    taking = archive.begin(state)
    with pytest.raises(SnapshotUnavailable, match="being taken already"):
        archive.begin(state)
    with pytest.raises(ValueError, match="nothing to finish"):
        taking.finish(1)
    taking.abandon()
    taking.abandon()
    take(archive, state)


def test_an_abandoned_one_leaves_nothing(folder: Path, state: State, archive: Archive) -> None:
    kept = take(archive, state)
    taking = archive.begin(state, step_seconds=0.0)
    assert taking.step()
    taking.abandon()
    with pytest.raises(SnapshotUnavailable, match="abandoned"):
        taking.step()
    assert names(folder) == files(kept)


def test_a_state_that_is_closed_gives_up_the_snapshot(state: State, archive: Archive) -> None:
    taking = archive.begin(state, step_seconds=0.0)
    assert taking.step()
    state.close()
    with pytest.raises(SnapshotUnavailable, match="abandoned"):
        taking.step()
    taking.abandon()


def test_finishing_in_another_thread_does_not_hold_up_the_state(state: State, archive: Archive) -> None:
    taking = archive.begin(state)
    while taking.step():
        pass
    made: list[Manifest] = []
    finishing = threading.Thread(target=lambda: made.append(taking.finish(1)))
    finishing.start()
    states_made.advance(state, 2500)
    finishing.join()
    assert made[0].applied == 2000
    taking.abandon()  # too late, and so without effect
    assert archive.newest == made[0]


def test_what_was_kept_is_found_again_and_leftovers_go(folder: Path, state: State, archive: Archive) -> None:
    kept = take(archive, state)
    content = read_all(archive)
    for name in (
        "unfinished.sqlite",
        "unfinished.manifest",
        "5-" + "0" * 32 + ".sqlite",
        "9-" + "0" * 32 + ".manifest",
    ):
        (folder / name).write_bytes(b"left")
    again = Archive.open(folder)
    assert again.newest == kept
    assert names(folder) == files(kept)
    assert read_all(again, kept.name, CHUNK_BYTES) == content[CHUNK_BYTES:]


@pytest.mark.parametrize("suffix", [".sqlite", ".manifest"])
def test_half_a_snapshot_is_none(folder: Path, state: State, archive: Archive, suffix: str) -> None:
    kept = take(archive, state)
    (folder / f"{kept.name}{suffix}").unlink()
    assert Archive.open(folder).newest is None
    assert names(folder) == []


def test_a_receiver_goes_on_at_its_offset_only_in_the_same_snapshot(state: State, archive: Archive) -> None:
    kept = take(archive, state)
    for name, offset, start in (
        ("", 0, 0),
        (kept.name, CHUNK_BYTES, CHUNK_BYTES),
        (kept.name, kept.size_bytes, 0 if kept.size_bytes % CHUNK_BYTES else kept.size_bytes),
        (kept.name, 17, 0),
        (kept.name, -CHUNK_BYTES, 0),
        (kept.name, 2**60, 0),
        ("1-" + "0" * 32, CHUNK_BYTES, 0),
    ):
        reading, found = archive.read(name, offset)
        reading.close()
        assert found == start, (name, offset)


def test_damage_is_not_sent_and_ends_the_snapshot(folder: Path, state: State, archive: Archive) -> None:
    kept = take(archive, state)
    with (folder / f"{kept.name}.sqlite").open("r+b") as file:
        file.seek(CHUNK_BYTES + 5)
        file.write(b"rot")
    reading, _ = archive.read()
    with closing(reading):
        assert len(reading.chunk(0)) == CHUNK_BYTES
        with pytest.raises(SnapshotDamaged):
            reading.chunk(CHUNK_BYTES)
    assert archive.newest is None
    assert names(folder) == []
    assert take(archive, state).applied == 2000


def test_no_snapshot_without_room_for_it(folder: Path, state: State) -> None:
    archive = Archive.open(folder, free_bytes=2**60)
    with pytest.raises(SnapshotFull, match="have to stay so"):
        archive.begin(state)
    assert names(folder) == []


def test_a_disk_that_fills_up_costs_the_snapshot_and_nothing_else(state: State, small_disk: Path) -> None:
    archive = Archive.open(small_disk / "snapshots")
    with pytest.raises(SnapshotFull, match="takes"):
        archive.begin(state)
    copying = state.copy_to(small_disk / "copy", step_seconds=0.0)
    with pytest.raises(SnapshotFull, match="no room"):
        copy_beside_writing(copying, state)
    with pytest.raises(SnapshotFull):
        copying.step()
    states_made.advance(state, state.applied + 10)
    assert state.hash() == states_made.hash_at(state.applied)


def test_a_folder_that_went_away_costs_the_snapshot_and_nothing_else(
    folder: Path, state: State, archive: Archive
) -> None:
    taking = archive.begin(state)
    while taking.step():
        pass
    for path in folder.iterdir():
        path.unlink()
    os.rmdir(folder)
    with pytest.raises(SnapshotUnavailable):
        taking.finish(1)
    with pytest.raises(SnapshotUnavailable):
        archive.begin(state)
    states_made.advance(state, 2010)
