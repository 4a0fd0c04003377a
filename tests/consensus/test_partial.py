"""What has come of a snapshot counts as far as its hashes say, whatever happened to process and disk meanwhile."""

import os
import shutil
from contextlib import closing
from pathlib import Path

import pytest

from consensus.errors import SnapshotDamaged, SnapshotFull, SnapshotRefused, SnapshotUnavailable
from consensus.partial import Partial
from consensus.snapshot import CHUNK_BYTES, Manifest
from tests.consensus import states_made
from tests.consensus.states_made import CLUSTER

Made = tuple[bytes, Manifest]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    path, manifest = states_made.snapshot_at(tmp_path_factory.mktemp("made"), 3000)
    return path.read_bytes(), manifest


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Made:
    path, manifest = states_made.snapshot_at(tmp_path_factory.mktemp("other"), 2000)
    return path.read_bytes(), manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "incoming"


def fill(partial: Partial, made: Made, chunks: int = 1000) -> None:
    content, manifest = made
    partial.begin(manifest)
    for _ in range(chunks):
        if partial.complete:
            return
        partial.add(content[partial.offset : partial.offset + CHUNK_BYTES])


def test_nothing_has_come_at_first(folder: Path) -> None:
    with closing(Partial.open(folder)) as partial:
        assert (partial.name, partial.offset, partial.applied, partial.complete) == ("", 0, 0, False)
        with pytest.raises(SnapshotDamaged, match="before the manifest"):
            partial.add(b"x")
        with pytest.raises(SnapshotUnavailable, match="only 0 bytes"):
            partial.verify(CLUSTER)


def test_what_has_come_whole_is_verified_and_fit_to_be_installed(folder: Path, made: Made) -> None:
    with closing(Partial.open(folder)) as partial:
        fill(partial, made)
        assert partial.complete
        verified = partial.verify(CLUSTER)
        assert verified.path.read_bytes() == made[0]
        assert verified.manifest == made[1]
        partial.discard()
        assert list(folder.iterdir()) == []


def test_a_new_process_goes_on_behind_the_last_verified_chunk(folder: Path, made: Made) -> None:
    with closing(Partial.open(folder)) as partial:
        fill(partial, made, 2)
    with closing(Partial.open(folder)) as again:
        assert (again.name, again.offset) == (made[1].name, 2 * CHUNK_BYTES)
        fill(again, made)
        assert again.verify(CLUSTER).path.read_bytes() == made[0]


@pytest.mark.parametrize(
    ("place", "offset"), [(5, 0), (CHUNK_BYTES + 5, CHUNK_BYTES), (2 * CHUNK_BYTES + 5, 2 * CHUNK_BYTES)]
)
def test_what_a_power_loss_damaged_comes_anew(folder: Path, made: Made, place: int, offset: int) -> None:
    with closing(Partial.open(folder)) as partial:
        fill(partial, made, 2)
    with (folder / f"{made[1].name}.sqlite").open("r+b") as file:
        file.seek(place)
        file.write(bytes(999))  # beyond the end: a part of a chunk that was being written
    with closing(Partial.open(folder)) as again:
        assert again.offset == offset
        fill(again, made)
        assert again.verify(CLUSTER).path.read_bytes() == made[0]


def test_a_manifest_that_was_damaged_is_not_believed(folder: Path, made: Made) -> None:
    with closing(Partial.open(folder)) as partial:
        fill(partial, made, 2)
    (folder / f"{made[1].name}.manifest").write_bytes(made[1].encode()[:-1] + b"x")
    with closing(Partial.open(folder)) as again:
        assert again.name == ""
    assert list(folder.iterdir()) == []


def test_a_wrong_chunk_is_not_taken_and_the_right_one_is_afterwards(folder: Path, made: Made) -> None:
    content, manifest = made
    with closing(Partial.open(folder)) as partial:
        partial.begin(manifest)
        with pytest.raises(SnapshotDamaged):
            partial.add(bytes(CHUNK_BYTES))
        assert partial.offset == 0
        partial.add(content[:CHUNK_BYTES])
        with pytest.raises(SnapshotDamaged):
            partial.add(content[:CHUNK_BYTES])


def test_another_snapshot_begins_anew_and_the_same_one_goes_on(folder: Path, made: Made, other: Made) -> None:
    with closing(Partial.open(folder)) as partial:
        fill(partial, other, 2)
        partial.begin(other[1])
        assert partial.offset == 2 * CHUNK_BYTES
        fill(partial, made)
        assert partial.verify(CLUSTER).path.read_bytes() == made[0]
    assert {path.stem for path in folder.iterdir()} == {made[1].name}


def test_what_does_not_verify_is_given_up(folder: Path, made: Made) -> None:
    with closing(Partial.open(folder)) as partial:
        fill(partial, made)
        with pytest.raises(SnapshotRefused):
            partial.verify("other")
        assert partial.name == ""
        fill(partial, made)
        path = folder / f"{made[1].name}.sqlite"
        os.truncate(path, made[1].size_bytes - 1)
        with pytest.raises(SnapshotDamaged):
            partial.verify(CLUSTER)
    assert list(folder.iterdir()) == []


def test_the_room_that_pushes_need_is_left_alone(folder: Path, made: Made) -> None:
    with closing(Partial.open(folder, free_bytes=2**60)) as partial, pytest.raises(SnapshotFull, match="have to stay"):
        partial.begin(made[1])
    assert list(folder.iterdir()) == []


def test_a_disk_that_fills_up_half_way_gets_its_room_back(small_disk: Path, made: Made, tmp_path: Path) -> None:
    content, manifest = made
    with closing(Partial.open(small_disk / "incoming")) as partial, pytest.raises(SnapshotFull, match="are free"):
        partial.begin(manifest)
    (small_disk / "incoming").rmdir()
    # One that was begun while there was room.
    folder = small_disk / "incoming"
    with closing(Partial.open(tmp_path / "roomy")) as partial:
        partial.begin(manifest)
    shutil.copytree(tmp_path / "roomy", folder)
    with closing(Partial.open(folder)) as partial:
        assert partial.name == manifest.name
        with pytest.raises(SnapshotFull):
            partial.add(content[:CHUNK_BYTES])
        assert partial.name == ""
    assert list(folder.iterdir()) == []
