"""The vote of a member: either the old one or the new one is on disk, and nothing else is ever believed."""

import os
import zlib
from pathlib import Path

import msgpack
import pytest

from consensus.errors import LogCorrupt, LogUnavailable
from consensus.raft.hardstate import HardState, Stored
from tests.consensus.wal_files import no_room


def test_a_member_begins_with_nothing(tmp_path: Path) -> None:
    assert HardState.open(tmp_path).stored == Stored(0, None, (0, 0))
    assert list(tmp_path.iterdir()) == []


def test_what_is_stored_is_found_again(tmp_path: Path) -> None:
    hard = HardState.open(tmp_path)
    hard.vote(3, "b")
    hard.begin_from((30, 2))
    hard.vote(4, None)
    assert HardState.open(tmp_path).stored == hard.stored == Stored(4, None, (30, 2))
    hard.vote(2**63, "région")
    assert HardState.open(tmp_path).stored == Stored(2**63, "région", (30, 2))


def test_every_flipped_bit_and_every_cut_is_refused(tmp_path: Path) -> None:
    HardState.open(tmp_path).vote(3, "b")
    path = tmp_path / "hardstate"
    content = path.read_bytes()
    for damaged in (
        *(
            content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]
            for at in range(len(content))
            for bit in (0, 7)
        ),
        *(content[:length] for length in range(len(content))),
        content + b"\0",
    ):
        path.write_bytes(damaged)
        with pytest.raises(LogCorrupt, match="rejoin"):
            HardState.open(tmp_path)
        assert path.read_bytes() == damaged


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\xff" * 40,
        msgpack.packb(7),
        msgpack.packb([1, "a"]),
        msgpack.packb([1, "a", 7]),
        msgpack.packb([1, "a", [1, 2, 3]]),
        msgpack.packb([1, 7, [1, 2]]),
        msgpack.packb(["1", "a", [1, 2]]),
        msgpack.packb([1, b"\xff", [1, 2]], use_bin_type=False),
        msgpack.packb([1, "a", [1, 2]]) + b"\0",
    ],
)
def test_a_whole_file_that_makes_no_sense_is_refused(tmp_path: Path, body: bytes) -> None:
    (tmp_path / "hardstate").write_bytes(b"MRDNHS1\n" + zlib.crc32(body).to_bytes(4, "little") + body)
    with pytest.raises(LogCorrupt, match="rejoin"):
        HardState.open(tmp_path)


def test_what_a_crash_left_half_way_does_not_count(tmp_path: Path) -> None:
    HardState.open(tmp_path).vote(3, "b")
    (tmp_path / "hardstate.new").write_bytes(b"MRDN")
    hard = HardState.open(tmp_path)
    assert hard.stored == Stored(3, "b")
    hard.vote(4, "c")
    assert HardState.open(tmp_path).stored == Stored(4, "c")


def test_a_vote_that_cannot_be_written_is_none(tmp_path: Path) -> None:
    hard = HardState.open(tmp_path)
    hard.vote(3, "b")
    with no_room(), pytest.raises(LogUnavailable, match="cannot make the vote"):
        hard.vote(4, "c")
    assert HardState.open(tmp_path).stored == hard.stored == Stored(3, "b")
    (tmp_path / "hardstate.new").unlink()
    (tmp_path / "hardstate.new").symlink_to("/dev/full")
    with pytest.raises(LogUnavailable, match="No space left"):
        hard.vote(4, "c")
    assert HardState.open(tmp_path).stored == Stored(3, "b")


def test_a_vote_that_cannot_be_synced_or_renamed_is_none(tmp_path: Path) -> None:
    hard = HardState.open(tmp_path)
    hard.vote(3, "b")
    (tmp_path / "hardstate.new").symlink_to("/dev/null")  # takes every byte and syncs none
    with pytest.raises(LogUnavailable, match="cannot make the vote"):
        hard.vote(4, "c")
    assert HardState.open(tmp_path).stored == hard.stored == Stored(3, "b")
    (tmp_path / "hardstate.new").unlink()
    (tmp_path / "hardstate").rename(tmp_path / "kept")
    (tmp_path / "hardstate").mkdir()
    with pytest.raises(LogUnavailable, match="cannot make the vote"):
        hard.vote(4, "c")
    with pytest.raises(LogUnavailable, match="cannot read"):
        HardState.open(tmp_path)
    assert hard.stored == Stored(3, "b")


def test_only_its_owner_reads_it(tmp_path: Path) -> None:
    HardState.open(tmp_path).vote(3, "b")
    assert os.stat(tmp_path / "hardstate").st_mode & 0o777 == 0o600
