"""The write-ahead log against damage and torn writes: what is cut, what is refused, and that a prefix always stays."""

import os
import shutil
import zlib
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus import segments
from consensus.errors import LogCorrupt, LogTrimmed
from consensus.wal import Wal
from tests.consensus.wal_files import files, opened, read_all

SEGMENT_BYTES = 400  # three or four of the records below
PAYLOAD = b"0123456789" * 6


def payload_of(index: int) -> bytes:
    return b"%03d" % index + PAYLOAD


@dataclass(frozen=True)
class Written:
    """A log that was written record by record: where each record of each segment starts."""

    folder: Path
    offsets: dict[Path, list[int]]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """Three segments; each record was synced before the next one was written."""
    folder = tmp_path / "wal"
    with opened(folder, SEGMENT_BYTES) as wal:
        while len(files(folder)) < 3 or files(folder)[-1].stat().st_size < SEGMENT_BYTES:
            wal.append([payload_of(wal.commit + 1)])
    size = segments.RECORD_BYTES + len(payload_of(1))
    return Written(
        folder, {path: list(range(segments.HEADER_BYTES, path.stat().st_size, size)) for path in files(folder)}
    )


# What is in a record, by the offset of one byte of each field.
FIELDS = {
    "magic": 0,
    "length": 4,
    "length, high": 7,
    "index": 8,
    "durable": 16,
    "payload checksum": 24,
    "head checksum": 28,
    "payload": segments.RECORD_BYTES,
    "payload's end": segments.RECORD_BYTES + len(payload_of(1)) - 1,
}


def flip(path: Path, offset: int) -> None:
    with path.open("rb+") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes((byte ^ 0x41,)))


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("record", ["first", "middle", "last"])
@pytest.mark.parametrize("segment", ["first", "middle", "last"])
def test_a_flipped_byte_is_refused_unless_it_can_be_a_torn_write(
    written: Written, segment: str, record: str, field: str
) -> None:
    position = {"first": 0, "middle": 1, "last": -1}
    path = files(written.folder)[position[segment]]
    offset = written.offsets[path][position[record]]
    flip(path, offset + FIELDS[field])
    before = path.read_bytes()
    if segment == record == "last":
        with opened(written.folder, SEGMENT_BYTES) as wal:
            assert len(read_all(wal)) == wal.commit == sum(map(len, written.offsets.values())) - 1
        assert path.stat().st_size == offset
        return
    with pytest.raises(LogCorrupt) as refused:
        Wal.open(written.folder, segment_bytes=SEGMENT_BYTES)
    assert str(path) in str(refused.value)
    assert f"offset {offset}:" in str(refused.value)
    assert "restore" in str(refused.value)
    assert "rejoin" in str(refused.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("offset", range(0, segments.HEADER_BYTES, 3))
@pytest.mark.parametrize("segment", [0, 1, -1])
def test_a_damaged_header_is_refused(written: Written, segment: int, offset: int) -> None:
    path = files(written.folder)[segment]
    flip(path, offset)
    with pytest.raises(LogCorrupt, match=path.name):
        Wal.open(written.folder, segment_bytes=SEGMENT_BYTES)


def test_another_format_is_refused_as_such(written: Written) -> None:
    path = files(written.folder)[0]
    content = bytearray(path.read_bytes())
    content[8] = segments.VERSION + 1
    content[: segments.HEADER_BYTES] = resealed(bytes(content[: segments.HEADER_BYTES]))
    path.write_bytes(content)
    with pytest.raises(LogCorrupt, match="another version"):
        Wal.open(written.folder, segment_bytes=SEGMENT_BYTES)


def resealed(header: bytes) -> bytes:
    return header[:-4] + zlib.crc32(header[:-4]).to_bytes(4, "little")


def test_a_segment_under_a_wrong_name_is_refused(written: Written) -> None:
    last = files(written.folder)[-1]
    last.rename(last.with_name(segments.segment_name(9999)))
    with pytest.raises(LogCorrupt, match="the header says"):
        Wal.open(written.folder, segment_bytes=SEGMENT_BYTES)


def test_a_missing_segment_is_refused(written: Written) -> None:
    files(written.folder)[1].unlink()
    with pytest.raises(LogCorrupt, match=r"entries \d+ to \d+ are missing"):
        Wal.open(written.folder, segment_bytes=SEGMENT_BYTES)


@pytest.mark.parametrize("segment", [0, 1])
def test_an_older_segment_cut_anywhere_is_refused(written: Written, segment: int) -> None:
    path = files(written.folder)[segment]
    content = path.read_bytes()
    for length in (0, 5, segments.HEADER_BYTES, written.offsets[path][-1], len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(LogCorrupt):
            Wal.open(written.folder, segment_bytes=SEGMENT_BYTES)


def test_cut_at_any_byte_of_the_last_record_the_rest_is_whole(written: Written) -> None:
    path = files(written.folder)[-1]
    content, start = path.read_bytes(), written.offsets[path][-1]
    total = sum(map(len, written.offsets.values()))
    for length in range(start, len(content)):
        path.write_bytes(content[:length])
        with opened(written.folder, 10_000) as wal:
            assert wal.commit == total - 1
            assert wal.append([b"next"]) == total
        with opened(written.folder, 10_000) as wal:
            assert read_all(wal) == [payload_of(index) for index in range(1, total)] + [b"next"]


@pytest.mark.parametrize(
    "tail",
    [bytes(1), bytes(100_000), b"\xff" * 5000, PAYLOAD * 100, b"\xf5MR\xa9" * 3_000_00],
    ids=["a zero", "zeros", "ones", "text", "magic"],
)
def test_rubbish_behind_the_last_record_is_cut(written: Written, tail: bytes) -> None:
    path = files(written.folder)[-1]
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(tail)
    with opened(written.folder, SEGMENT_BYTES) as wal:
        assert len(read_all(wal)) == sum(map(len, written.offsets.values()))
    assert path.stat().st_size == size


def test_records_of_another_segment_behind_the_last_one_are_cut(written: Written) -> None:
    """A file system may show a removed file's blocks in the tail of a torn write."""
    first, *_, last = files(written.folder)
    with last.open("ab") as file:
        file.write(b"torn" + first.read_bytes()[segments.HEADER_BYTES :])
    with opened(written.folder, SEGMENT_BYTES) as wal:
        assert wal.commit == sum(map(len, written.offsets.values()))


def test_a_payload_that_looks_like_records_proves_nothing(tmp_path: Path) -> None:
    """A client may push a manifest made of whole segments; a torn write of it must not stop the node."""
    with opened(tmp_path / "source", 10**6) as wal:
        for index in range(1, 20):
            wal.append([payload_of(index)])
    forged = files(tmp_path / "source")[0].read_bytes()
    with opened(tmp_path / "wal", 10**6) as wal:
        wal.append([b"first"])
        wal.append([forged + PAYLOAD])
    path = files(tmp_path / "wal")[0]
    os.truncate(path, path.stat().st_size - 1)
    with opened(tmp_path / "wal") as wal:
        assert read_all(wal) == [b"first"]


def test_a_write_torn_in_its_middle_is_cut_but_damage_before_it_is_not(tmp_path: Path) -> None:
    """The disk kept the end of the last write, not its beginning: nothing of it was acknowledged."""
    with opened(tmp_path / "wal", 10**6) as wal:
        wal.append([payload_of(1)])
        wal.append([payload_of(2), payload_of(3), payload_of(4)])
    path = files(tmp_path / "wal")[0]
    size = segments.RECORD_BYTES + len(payload_of(1))
    shutil.copytree(tmp_path / "wal", tmp_path / "damaged")
    flip(path, segments.HEADER_BYTES + size + 40)
    with opened(tmp_path / "wal") as wal:
        assert read_all(wal) == [payload_of(1)]
    flip(files(tmp_path / "damaged")[0], segments.HEADER_BYTES + 40)
    with pytest.raises(LogCorrupt, match=f"offset {segments.HEADER_BYTES + size}"):
        Wal.open(tmp_path / "damaged")


@pytest.mark.parametrize("beyond", [1, 2, segments.RECORD_BYTES - 1, segments.RECORD_BYTES, segments.RECORD_BYTES + 1])
def test_damage_in_a_large_record_is_told_by_the_next_one_wherever_it_starts(tmp_path: Path, beyond: int) -> None:
    """The file is searched a mebibyte at a time."""
    with opened(tmp_path / "wal") as wal:
        wal.append([bytes(1024 * 1024 + 1 - beyond - segments.RECORD_BYTES)])
        wal.append([b"behind it"])
    flip(files(tmp_path / "wal")[0], segments.HEADER_BYTES + 100)
    with pytest.raises(LogCorrupt, match="whole records follow"):
        Wal.open(tmp_path / "wal")


def test_what_is_written_but_not_synced_is_not_read(tmp_path: Path) -> None:
    with opened(tmp_path / "wal") as wal:
        wal.append([b"synced"])
        path = files(tmp_path / "wal")[0]
        with path.open("rb+") as file:
            salt = segments.read_salt(file, path, 1)
            end = file.seek(0, os.SEEK_END)
            file.write(segments.encode_record_head(2, b"not yet", durable=end, salt=salt) + b"not yet")
        assert read_all(wal) == [b"synced"]
    with opened(tmp_path / "wal") as wal:
        assert read_all(wal) == [b"synced", b"not yet"]


def test_damage_found_while_reading_is_refused(written: Written) -> None:
    with opened(written.folder, SEGMENT_BYTES) as wal:
        flip(files(written.folder)[1], 60)
        with pytest.raises(LogCorrupt, match="damaged"):
            read_all(wal)
        files(written.folder)[0].unlink()
        with pytest.raises(LogCorrupt, match="removed"):
            wal.read(0)


def test_an_unfinished_segment_and_foreign_files_are_no_part_of_it(written: Written) -> None:
    (written.folder / f"{77:020d}.new").write_bytes(b"half a head")
    (written.folder / "notes.txt").write_text("an operator was here")
    (written.folder / "12.log").write_text("not ours")
    with opened(written.folder, SEGMENT_BYTES) as wal:
        assert len(read_all(wal)) == wal.commit
    assert not (written.folder / f"{77:020d}.new").exists()
    assert (written.folder / "notes.txt").exists()


def test_trimming_removes_whole_segments_and_never_the_active_one(written: Written) -> None:
    first, second, third = files(written.folder)
    with opened(written.folder, SEGMENT_BYTES) as wal:
        wal.trim(int(second.stem) - 2)
        assert files(written.folder) == [first, second, third]
        wal.trim(int(second.stem) - 1)
        assert files(written.folder) == [second, third]
        assert wal.first == int(second.stem)
        with pytest.raises(LogTrimmed):
            wal.read(0)
        wal.trim(10**9)
        assert files(written.folder) == [third]
        assert len(read_all(wal)) == len(written.offsets[third])
        commit = wal.commit
    with opened(written.folder, SEGMENT_BYTES) as wal:
        assert (wal.first, wal.commit) == (int(third.stem), commit)


STEPS = st.one_of(
    st.tuples(st.just("append"), st.lists(st.binary(max_size=200), min_size=1, max_size=5)),
    st.tuples(st.just("reopen"), st.just(None)),
    st.tuples(st.just("tear"), st.integers(1, 300)),
    st.tuples(st.just("trim"), st.integers(0, 60)),
    st.tuples(st.just("read"), st.integers(0, 60)),
)


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(STEPS, max_size=30), segment_bytes=st.integers(30, 800))
def test_any_sequence_of_steps_keeps_a_prefix_of_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, object]], segment_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("model") / "wal"
    expected: list[bytes] = []
    wal = Wal.open(folder, segment_bytes=segment_bytes)
    for step, value in steps:
        if step == "append":
            assert isinstance(value, list)
            assert wal.append(value) == len(expected) + 1
            expected += value
        elif step == "trim":
            assert isinstance(value, int)
            wal.trim(value)
        elif step in ("reopen", "tear"):
            wal.close()
            if isinstance(value, int):
                expected = tear(folder, expected, value)
            wal = Wal.open(folder, segment_bytes=segment_bytes)
        assert wal.commit == len(expected)
        after = max(value if isinstance(value, int) else 0, wal.first - 1)
        assert read_all(wal, min(after, wal.commit)) == expected[after:]
    wal.close()


def tear(folder: Path, expected: list[bytes], count: int) -> list[bytes]:
    """Takes up to `count` bytes from the end of the last segment, and says what must be left."""
    path = files(folder)[-1]
    before = int(path.stem) - 1
    left = max(path.stat().st_size - count, segments.HEADER_BYTES)
    os.truncate(path, left)
    sizes = [segments.RECORD_BYTES + len(payload) for payload in expected[before:]]
    whole = sum(end <= left for end in accumulate(sizes, initial=segments.HEADER_BYTES)) - 1
    return expected[: before + whole]
