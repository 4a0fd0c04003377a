"""The parts of a blob: where they end, and their digests however the bytes come."""

from __future__ import annotations

import hashlib
import itertools

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus import parts
from consensus.parts import (
    FIRST_PART_BYTES,
    MAX_PARTS,
    MIN_PARTED_BYTES,
    PART_BYTES,
    PART_DIGEST_BYTES,
    PartsHash,
    are_parts_of,
    part_at,
    part_start,
    part_stop,
    parts_of,
)

KIB = 1024
NOISE = hashlib.shake_128(b"parts").digest(2 * PART_BYTES + 3 * KIB)
EDGES = [0, 1, *(edge + by for part in range(11) for edge in [part_stop(part)] for by in (-1, 0, 1))]
OFFSETS = st.sampled_from([edge for edge in EDGES if edge <= len(NOISE)]) | st.integers(0, len(NOISE))


def expected(content: bytes) -> bytes:
    bounds = [0, *(part_stop(part) for part in range(parts_of(len(content))))]
    pieces = [content[start:stop] for start, stop in itertools.pairwise(bounds)]
    return b"".join(blake3(piece).digest(PART_DIGEST_BYTES) for piece in pieces)


def test_parts_end_where_they_should() -> None:
    stops = [part_stop(part) // KIB for part in range(12)]
    assert stops == [16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 12288, 16384]
    assert PART_BYTES % FIRST_PART_BYTES == 0


@given(st.integers(0, 2**42))
def test_every_byte_is_in_one_part(offset: int) -> None:
    part = part_at(offset)
    assert part_start(part) <= offset < part_stop(part)
    assert part == 0 or part_start(part) == part_stop(part - 1)
    assert part_start(part) // PART_BYTES == (part_stop(part) - 1) // PART_BYTES  # of one piece of a transfer


@given(st.integers(0, 2**42))
def test_as_many_digests_as_parts(size: int) -> None:
    count = parts_of(size)
    if MIN_PARTED_BYTES <= size <= part_stop(MAX_PARTS - 1):
        assert part_start(count - 1) < size <= part_stop(count - 1)
    else:
        assert count == 0
    assert are_parts_of(b"", size)
    assert are_parts_of(bytes(count * PART_DIGEST_BYTES), size)
    assert not are_parts_of(bytes(count * PART_DIGEST_BYTES + 1), size)
    assert not are_parts_of(bytes((count + 1) * PART_DIGEST_BYTES), size)


@settings(deadline=None, max_examples=40)
@given(OFFSETS, st.lists(OFFSETS, max_size=5))
def test_the_digests_do_not_depend_on_how_the_bytes_come(size: int, cuts: list[int]) -> None:
    content, running = NOISE[:size], PartsHash()
    bounds = [0, *sorted(min(cut, size) for cut in cuts), size]
    for start, stop in itertools.pairwise(bounds):
        running.update(content[start:stop])
        assert running.offset == stop
        for known in (running.finished, running.digests(stop)):  # as an upload that is taken up
            again = PartsHash.resume(known, stop)
            if again is None:
                assert not known
            else:
                assert again.offset <= stop
                again.update(content[again.offset : stop])
                assert again.digests(stop) == running.digests(stop)
        assert running.digests(stop) == expected(content[:stop])
    assert are_parts_of(running.digests(size), size)


def test_a_blob_with_too_many_parts_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "MAX_PARTS", 8)
    running = PartsHash()
    running.update(NOISE[: part_stop(7)])
    assert running.digests(part_stop(7)) == expected(NOISE[: part_stop(7)]) != b""
    running.update(NOISE[part_stop(7) :])
    assert running.digests(len(NOISE)) == b""
    assert running.full
    again = PartsHash.resume(running.finished, len(NOISE))
    assert again
    assert again.full
