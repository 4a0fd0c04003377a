from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.parts import PART_BYTES
from replication.pieces import MAX_PIECES, Pieces, piece_bytes_of

TIB = 1024**4


@given(st.integers(0, 2**50))
def test_there_are_never_too_many_pieces(size: int) -> None:
    assert Pieces(min(size, TIB), piece_bytes_of(size)).count <= MAX_PIECES
    assert piece_bytes_of(size) % PART_BYTES == 0


@given(st.integers(0, 400), st.integers(1, 50), st.data())
def test_pieces_are_what_a_map_of_bytes_is(size: int, piece_bytes: int, data: st.DataObject) -> None:
    pieces, there = Pieces(size, piece_bytes), bytearray(size)
    for _ in range(data.draw(st.integers(0, 30)) if size else 0):
        piece = data.draw(st.integers(0, pieces.count - 1))
        start = pieces.reached(piece)
        count = data.draw(st.integers(0, pieces.stop(piece) - start))
        pieces.add(piece, count)
        there[start : start + count] = b"x" * count
    assert pieces.received_bytes == there.count(b"x")
    assert pieces.whole == (0 not in there)
    for offset in range(size):
        missing = there.find(0, offset)
        assert pieces.extent(offset) == (size if missing < 0 else missing)
        assert pieces.start(pieces.at(offset)) <= offset < pieces.stop(pieces.at(offset))
    known = [pieces.reached(piece) - pieces.start(piece) for piece in range(pieces.count)]
    assert Pieces(size, piece_bytes, known).received_bytes == pieces.received_bytes


@given(st.integers(1, 60), st.integers(1, 9), st.data())
def test_what_is_proven_stays(size: int, piece_bytes: int, data: st.DataObject) -> None:
    pieces, proven = Pieces(size, piece_bytes, provable=True), bytearray(size)
    for _ in range(data.draw(st.integers(0, 30))):
        piece = data.draw(st.integers(0, pieces.count - 1))
        before = pieces.proven(piece)
        upto = data.draw(st.integers(before, pieces.stop(piece)))
        pieces.move(piece, data.draw(st.integers(upto, pieces.stop(piece))), upto)
        proven[before:upto] = b"x" * (upto - before)
        if data.draw(st.booleans()):
            pieces.drop(piece)
        assert (piece in pieces.unproven()) == (pieces.reached(piece) > pieces.proven(piece))
        with pytest.raises(ValueError, match=f"piece {piece} "):
            pieces.move(piece, pieces.reached(piece), pieces.proven(piece) - 1)
    assert pieces.received_bytes == sum(pieces.reached(p) - pieces.start(p) for p in range(pieces.count))
    for offset in range(size):
        missing = proven.find(0, offset)
        assert pieces.proven_extent(offset) == (size if missing < 0 else missing)
    for piece in pieces.unproven():
        pieces.drop(piece)
    assert pieces.received_bytes == proven.count(b"x")


def test_no_piece_takes_more_than_it_has() -> None:
    pieces = Pieces(10, 4, [4, 1])
    assert [pieces.is_whole(piece) for piece in range(3)] == [True, False, False]
    with pytest.raises(ValueError, match="piece 2 has 2 bytes"):
        pieces.add(2, 3)
