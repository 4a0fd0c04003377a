"""Hashes that can be kept are the same hashes."""

import hashlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.blobs.hashing import ALGORITHMS, PlainHash, ResumableHash, RunningHash, new_hash, restore_hash
from tests.node.blobs.suite import noise


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_this_machine_can_keep_states(algorithm: str) -> None:
    assert isinstance(new_hash(algorithm), ResumableHash)


@pytest.mark.parametrize("make", [new_hash, PlainHash])
@settings(max_examples=50, deadline=None)
@given(algorithm=st.sampled_from(ALGORITHMS), chunks=st.lists(st.binary(max_size=300), max_size=6))
def test_it_equals_hashlib_at_every_chunk(
    make: Callable[[str], RunningHash], algorithm: str, chunks: list[bytes]
) -> None:
    running, expected = make(algorithm), hashlib.new(algorithm)
    for chunk in chunks:
        running.update(chunk)
        expected.update(chunk)
        assert running.hexdigest() == expected.hexdigest()
    assert running.algorithm == algorithm


@settings(max_examples=100, deadline=None)
@given(algorithm=st.sampled_from(ALGORITHMS), cut=st.integers(0, 1000), size=st.integers(0, 1000))
def test_a_kept_state_goes_on(algorithm: str, cut: int, size: int) -> None:
    content = noise(cut + size)
    first = new_hash(algorithm)
    first.update(content[:cut])
    state = first.state()
    first.update(b"what comes after is not in the state")
    second = restore_hash(algorithm, state, cut)
    assert second is not None
    second.update(content[cut:])
    assert second.hexdigest() == hashlib.new(algorithm, content).hexdigest()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_states_that_cannot_be_are_refused(algorithm: str) -> None:
    running = new_hash(algorithm)
    running.update(noise(100))
    state = running.state()
    assert state is not None
    for damaged, size in ((state, 99), (state, 100 + 2**61), (state[:-1], 100), (state + b"\0", 100), (b"", 0)):
        assert restore_hash(algorithm, damaged, size) is None
    beyond_the_block = bytearray(state)
    beyond_the_block[-8:-4] = (4096).to_bytes(4, "little")
    assert restore_hash(algorithm, bytes(beyond_the_block), 100) is None
    assert restore_hash(algorithm, None, 0) is None
    assert restore_hash("md5", state, 100) is None


def test_without_states_there_is_nothing_to_restore() -> None:
    assert PlainHash("sha256").state() is None
