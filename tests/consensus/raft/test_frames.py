from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.raft.frames import decode, encode, is_mark, mark
from consensus.raft.handshake import Reason, Refused
from consensus.raft.links import MAX_FRAME_BYTES, MAX_LENGTH

SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.binary()
VALUES = st.recursive(
    SCALARS | st.text(),
    lambda inner: st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@settings(max_examples=50)
@given(st.dictionaries(st.text(), VALUES))
def test_a_message_survives_the_wire(message: dict[str, Any]) -> None:
    frame = encode(message)
    assert decode(frame) == message
    assert not is_mark(frame)


@given(st.binary() | st.binary().map(lambda tail: b"\x81\xa1n" + tail))
def test_any_bytes_are_a_message_or_refused(frame: bytes) -> None:
    with suppress(Refused):  # and nothing else is raised
        assert all(isinstance(key, str) for key in decode(frame))


def test_a_refusal_says_why_but_repeats_nothing_of_it() -> None:
    with pytest.raises(Refused) as error:
        decode(b"secret")
    assert error.value.reason is Reason.BAD_FRAME
    assert "secret" not in str(error.value)


@given(st.integers(0, 2**64 - 1))
def test_a_mark_is_no_message(number: int) -> None:
    assert is_mark(mark(number))
    with pytest.raises(Refused):
        decode(mark(number))


def test_the_longest_list_that_is_allowed_passes() -> None:
    assert len(decode(encode({"n": [0] * MAX_LENGTH}))["n"]) == MAX_LENGTH


def test_what_is_over_the_limit_is_neither_made_nor_read() -> None:
    with pytest.raises(ValueError, match="at most 16777216"):
        encode({"n": bytes(MAX_FRAME_BYTES)})
    with pytest.raises(Refused):
        decode(bytes(MAX_FRAME_BYTES + 1))
