"""What is right of a blob, however its bytes come."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus import parts
from consensus.names import Digest
from consensus.parts import PartsHash, part_at, part_start, parts_of
from replication.proof import Proof, Proving

SIZE = 200_000
CONTENT = hashlib.shake_128(b"proof").digest(SIZE)
DIGEST = Digest("sha256", hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_BYTES", 32 * 1024)
    monkeypatch.setattr(parts, "MIN_PARTED_BYTES", 1)


def proof() -> Proof:
    running = PartsHash()
    running.update(CONTENT)
    found = Proof.of(DIGEST, SIZE, running.digests(SIZE))
    assert found
    return found


@pytest.mark.usefixtures("small_parts")
def test_parts_are_small_here() -> None:
    assert parts_of(SIZE) == 8


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, SIZE - 1),
    st.lists(st.integers(1, 50_000), min_size=1, max_size=20),
    st.none() | st.integers(0, SIZE - 1),
)
def test_what_is_proven_is_right_and_what_is_wrong_is_noticed_in_its_part(
    begin: int, lengths: list[int], lie: int | None
) -> None:
    content = bytearray(CONTENT)
    if lie is not None:
        content[lie] ^= 1
    start = part_start(part_at(begin))
    proving = Proving(proof(), start)
    for length in lengths:
        position = proving.position
        right = proving.add(bytes(content[position : position + length]))
        reached = min(position + length, SIZE)
        assert start <= proving.proven <= proving.position <= reached
        if right:
            assert proving.position == reached
            assert proving.proven == (SIZE if reached == SIZE else part_start(part_at(reached)))
        else:
            assert lie is not None
            assert proving.proven == proving.position == part_start(part_at(lie))
            assert reached > lie
            content[lie] ^= 1  # the next who is asked is right
            lie = None
        if lie is not None and lie >= start:
            assert proving.proven <= part_start(part_at(lie))


def test_a_blob_without_parts_is_one_part_if_it_is_one_piece() -> None:
    small = CONTENT[: 32 * 1024]
    for algorithm in ("sha256", "sha512"):
        digest = Digest(algorithm, hashlib.new(algorithm, small).hexdigest())
        found = Proof.of(digest, len(small), b"")
        assert found
        proving = Proving(found, 0)
        assert proving.add(small[:-1])
        assert not proving.add(b"!")
        assert proving.position == 0
        assert proving.add(small)
        assert proving.proven == len(small)
    assert Proof.of(DIGEST, SIZE, b"") is None
