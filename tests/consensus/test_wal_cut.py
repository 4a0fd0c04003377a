"""Entries that are taken back: by a cut behind any of them, or all of them at once."""

import threading
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus import segments
from consensus.errors import LogCorrupt, LogError, LogFull, LogTrimmed, LogUnavailable
from consensus.wal import Wal
from tests.consensus.wal_files import files, no_room, opened, read_all, replace_open_file

SEGMENT_BYTES = 400  # five records of the size below


def payload_of(index: int, of: str = "first") -> bytes:
    return f"{of} {index:03d}".encode().ljust(60)


def fill(wal: Wal, upto: int, of: str = "first") -> list[bytes]:
    added = []
    while wal.commit < upto:
        added.append(payload_of(wal.commit + 1, of))
        wal.append(added[-1:])
    return added


@pytest.mark.parametrize("after", range(13))
def test_a_cut_takes_back_what_is_behind_it_wherever_it_falls(tmp_path: Path, after: int) -> None:
    with opened(tmp_path / "wal", SEGMENT_BYTES) as wal:
        written = fill(wal, 12)
        assert len(files(tmp_path / "wal")) == 3
        wal.cut(after)
        assert (wal.first, wal.commit) == (1, after)
        assert read_all(wal) == written[:after]
        assert wal.read(after) == ()
    with opened(tmp_path / "wal", SEGMENT_BYTES) as wal:
        assert read_all(wal) == written[:after]
        new = fill(wal, 14, "second")
        assert read_all(wal) == written[:after] + new
    with opened(tmp_path / "wal", SEGMENT_BYTES) as wal:
        assert read_all(wal) == written[:after] + new


def test_a_cut_in_a_batch(tmp_path: Path) -> None:
    with opened(tmp_path / "wal") as wal:
        wal.append([b"a", b"b" * 100_000, b"c" * 100_000, b"d"])
        wal.cut(3)
        wal.append([b"new"])
        wal.cut(4)
        wal.cut(9)
        assert [len(payload) for payload in read_all(wal)] == [1, 100_000, 100_000, 3]
        wal.cut(2)
        wal.append([b"e"])
        assert [len(payload) for payload in read_all(wal)] == [1, 100_000, 1]
    with opened(tmp_path / "wal") as wal:
        assert [len(payload) for payload in read_all(wal)] == [1, 100_000, 1]


def test_what_was_trimmed_cannot_be_cut(tmp_path: Path) -> None:
    with opened(tmp_path / "wal", SEGMENT_BYTES) as wal:
        written = fill(wal, 12)
        wal.trim(10)
        assert wal.first == 11
        with pytest.raises(ValueError, match="trimmed"):
            wal.cut(9)
        wal.cut(10)
        assert (wal.first, wal.commit) == (11, 10)
        with pytest.raises(LogTrimmed):
            wal.read(9)
        written[10:] = fill(wal, 14, "second")
        assert read_all(wal) == written[10:]


def test_a_cut_reads_what_it_keeps_and_refuses_damage(tmp_path: Path) -> None:
    with opened(tmp_path / "wal") as wal:
        fill(wal, 6)
        path = files(tmp_path / "wal")[0]
        with path.open("rb+") as file:
            file.seek(segments.HEADER_BYTES + segments.RECORD_BYTES)
            file.write(b"damage")
        before = path.read_bytes()
        with pytest.raises(LogCorrupt, match="damaged"):
            wal.cut(4)
        assert path.read_bytes() == before
        assert wal.commit == 6


@pytest.mark.parametrize("first", [5, 9, 13, 1000])
def test_a_reset_forgets_every_entry_and_goes_on_where_it_is_told(tmp_path: Path, first: int) -> None:
    with opened(tmp_path / "wal", SEGMENT_BYTES) as wal:
        fill(wal, 12)
        wal.reset(first)
        assert (wal.first, wal.commit) == (first, first - 1)
        with pytest.raises(LogTrimmed):
            wal.read(first - 2)
        assert len(files(tmp_path / "wal")) == 1
        new = fill(wal, first + 5, "second")
    with opened(tmp_path / "wal", SEGMENT_BYTES) as wal:
        assert wal.first == first
        assert read_all(wal) == new


def test_a_log_on_a_full_disk_is_cut_but_not_begun_again(tmp_path: Path) -> None:
    with opened(tmp_path / "wal", SEGMENT_BYTES) as wal:
        fill(wal, 12)
        with no_room():
            wal.cut(6)
            with pytest.raises(LogFull):
                wal.append([b"x"])
            with pytest.raises(LogFull):
                wal.reset(30)
    with opened(tmp_path / "wal", SEGMENT_BYTES) as wal:
        assert read_all(wal) == []


def test_a_log_that_could_not_begin_again_for_want_of_room_does_so_later(tmp_path: Path) -> None:
    with opened(tmp_path / "wal", SEGMENT_BYTES) as wal:
        fill(wal, 12)
        with no_room(), pytest.raises(LogFull):
            wal.reset(30)
        wal.reset(30)
        new = fill(wal, 32)
        assert (wal.first, read_all(wal)) == (30, new)
    with opened(tmp_path / "wal", SEGMENT_BYTES) as wal:
        assert (wal.first, read_all(wal)) == (30, new)


def test_a_disk_that_fails_ends_the_log_for_good(tmp_path: Path) -> None:
    with opened(tmp_path / "wal") as wal:
        fill(wal, 3)
        replace_open_file(files(tmp_path / "wal")[0], "/dev/null")
        for _ in range(2):
            with pytest.raises(LogUnavailable, match=r"cannot cut .*failed for good"):
                wal.cut(1)
        with pytest.raises(LogUnavailable, match="failed for good"):
            wal.append([b"x"])
        with pytest.raises(LogUnavailable, match="failed for good"):
            wal.reset(9)


def test_a_folder_that_fails_ends_the_log_for_good(tmp_path: Path) -> None:
    with opened(tmp_path / "wal", SEGMENT_BYTES) as wal:
        fill(wal, 12)
        last = files(tmp_path / "wal")[-1]
        last.unlink()
        last.mkdir()
        with pytest.raises(LogUnavailable, match=r"cannot empty .*failed for good"):
            wal.reset(20)
        with pytest.raises(LogUnavailable, match="failed for good"):
            wal.cut(1)
        last.rmdir()


def test_a_closed_log_is_neither_cut_nor_reset(tmp_path: Path) -> None:
    wal = Wal.open(tmp_path / "wal")
    wal.close()
    with pytest.raises(LogUnavailable, match="closed"):
        wal.cut(0)
    with pytest.raises(LogUnavailable, match="closed"):
        wal.reset(1)


def test_readers_see_what_stays_while_the_rest_is_cut_and_written_again(tmp_path: Path) -> None:
    """Up to entry 20 nothing is taken back, as up to the commit index of an engine."""
    kept, ended = 20, threading.Event()
    wrong: list[object] = []

    def watch(wal: Wal) -> None:
        expected = [payload_of(index) for index in range(1, kept + 1)]
        while not ended.is_set():
            try:
                found: dict[int, bytes] = {}
                while len(found) < kept:
                    found |= {entry.index: entry.payload for entry in wal.read(len(found))}
                if [found[index] for index in range(1, kept + 1)] != expected:
                    wrong.append(found)
            except LogError as error:
                wrong.append(error)

    with opened(tmp_path / "wal", SEGMENT_BYTES) as wal:
        fill(wal, kept)
        readers = [threading.Thread(target=watch, args=(wal,)) for _ in range(2)]
        for reader in readers:
            reader.start()
        for number in range(60):
            fill(wal, kept + 1 + number % 9, f"{number}")
            wal.cut(kept)
        ended.set()
        for reader in readers:
            reader.join()
    assert wrong == []


def test_a_trim_during_a_cut_stays_one(tmp_path: Path) -> None:
    """The one takes segments from the front, the other from the back, a sync for each."""
    with opened(tmp_path / "wal", 1) as wal:
        for number in range(10):
            fill(wal, wal.commit + 20, f"{number}")
            upto = wal.commit - 10
            trimmer = threading.Thread(target=wal.trim, args=(upto,))
            trimmer.start()
            wal.cut(upto + 4)
            trimmer.join()
            assert wal.first == upto + 1
        found = read_all(wal)
        assert len(found) == 4
    with opened(tmp_path / "wal", 1) as wal:
        assert read_all(wal) == found


STEPS = st.one_of(
    st.tuples(st.just("append"), st.integers(1, 5)),
    st.tuples(st.just("cut"), st.integers(0, 12)),
    st.tuples(st.just("trim"), st.integers(0, 12)),
    st.tuples(st.just("reset"), st.integers(-3, 9)),
    st.tuples(st.just("open"), st.just(0)),
)


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(STEPS, max_size=25), segment_bytes=st.integers(30, 800))
def test_any_sequence_of_steps_equals_a_list(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]], segment_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("model") / "wal"
    held: dict[int, bytes] = {}
    last = 0
    wal = Wal.open(folder, segment_bytes=segment_bytes)
    for number, (step, value) in enumerate(steps):
        if step == "append":
            fresh = {last + at: payload_of(last + at, f"{number}") for at in range(1, value + 1)}
            wal.append(list(fresh.values()))
            held, last = held | fresh, last + value
        elif step == "cut":
            last = max(last - value, wal.first - 1)
            wal.cut(last)
        elif step == "trim":
            wal.trim(last - value)
        elif step == "reset":
            last = max(0, last + value)
            wal.reset(last + 1)
            held = {}
        else:
            wal.close()
            wal = Wal.open(folder, segment_bytes=segment_bytes)
        held = {index: payload for index, payload in held.items() if wal.first <= index <= last}
        assert wal.commit == last
        assert read_all(wal) == list(held.values())
    with closing(wal):
        assert len(held) == wal.commit - wal.first + 1
