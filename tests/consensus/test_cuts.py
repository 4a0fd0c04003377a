"""A cut of the log that a crash interrupts: whatever it left, the next process ends it."""

import os
from pathlib import Path

import pytest

from consensus import cuts, segments
from consensus.errors import LogCorrupt
from tests.consensus.wal_files import files, opened, read_all

PAYLOADS = [b"%d" % number * 700 for number in range(1, 7)]
RECORD_BYTES = segments.RECORD_BYTES + 700
KEPT_BYTES = segments.HEADER_BYTES + 2 * RECORD_BYTES


def interrupted(folder: Path) -> Path:
    """A log of six entries, each synced by itself, of which the third has become a hole; its file."""
    with opened(folder) as wal:
        for payload in PAYLOADS:
            wal.append([payload])
    (path,) = files(folder)
    with path.open("rb+") as file:
        file.seek(KEPT_BYTES)
        file.write(bytes(RECORD_BYTES))
    return path


def test_a_hole_is_damage_unless_a_cut_was_announced(tmp_path: Path) -> None:
    path = interrupted(tmp_path)
    with pytest.raises(LogCorrupt, match="whole records follow"), opened(tmp_path):
        pass
    cuts.announce(path, KEPT_BYTES)
    with opened(tmp_path) as wal:
        assert read_all(wal) == PAYLOADS[:2]


def test_a_cut_is_ended_once(tmp_path: Path) -> None:
    cuts.announce(interrupted(tmp_path), KEPT_BYTES)
    with opened(tmp_path) as wal:
        wal.append([b"new"])
    with opened(tmp_path) as wal:
        assert read_all(wal) == [*PAYLOADS[:2], b"new"]


def test_a_cut_leaves_nothing_announced(tmp_path: Path) -> None:
    with opened(tmp_path) as wal:
        wal.append(PAYLOADS)
        wal.cut(4)
        assert sorted(os.listdir(tmp_path)) == ["00000000000000000001.log", "lock"]
        assert read_all(wal) == PAYLOADS[:4]


def test_one_that_was_made_and_not_forgotten_changes_nothing(tmp_path: Path) -> None:
    with opened(tmp_path) as wal:
        wal.append(PAYLOADS[:2])
    (path,) = files(tmp_path)
    cuts.announce(path, path.stat().st_size)
    with opened(tmp_path) as wal:
        assert read_all(wal) == PAYLOADS[:2]


@pytest.mark.parametrize(
    "name", [".cut", "x.cut", "00000000000000000001.log-.cut", "00000000000000000001.log--1.cut", "a-1x.cut"]
)
def test_a_file_that_announces_nothing_is_passed_over(tmp_path: Path, name: str) -> None:
    with opened(tmp_path) as wal:
        wal.append(PAYLOADS)
    (tmp_path / name).touch()
    with opened(tmp_path) as wal:
        assert read_all(wal) == PAYLOADS
    assert (tmp_path / name).exists()


def test_a_cut_adds_nothing(tmp_path: Path) -> None:
    with opened(tmp_path) as wal:
        wal.append(PAYLOADS[:2])
    (path,) = files(tmp_path)
    content = path.read_bytes()
    cuts.announce(path, 2 * len(content))
    cuts.announce(path.with_name("00000000000000000099.log"), 100)
    with opened(tmp_path) as wal:
        assert read_all(wal) == PAYLOADS[:2]
    assert path.read_bytes() == content
    assert not list(tmp_path.glob("*.cut"))
