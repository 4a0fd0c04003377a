"""A blob in pieces, each of which fills from its beginning: how far they have come. Pure."""

from __future__ import annotations

from collections.abc import Iterable

PIECE_BYTES = 4 * 1024 * 1024
MAX_PIECES = 1 << 16


def piece_bytes_of(size_bytes: int) -> int:
    """How large the pieces of such a blob are: PIECE_BYTES, doubled until there are at most MAX_PIECES."""
    piece_bytes = PIECE_BYTES
    while size_bytes > piece_bytes * MAX_PIECES:
        piece_bytes *= 2
    return piece_bytes


class Pieces:
    """`received` says of each piece how many bytes are there already, and may end early."""

    def __init__(self, size_bytes: int, piece_bytes: int, received: Iterable[int] = ()) -> None:
        self.size_bytes = size_bytes
        self.piece_bytes = piece_bytes
        self.count = -(-size_bytes // piece_bytes)
        self._received = [*received][: self.count]
        self._received += [0] * (self.count - len(self._received))
        self.received_bytes = sum(self._received)

    @property
    def whole(self) -> bool:
        """Whether nothing is missing."""
        return self.received_bytes == self.size_bytes

    def start(self, piece: int) -> int:
        """Where in the blob it begins."""
        return piece * self.piece_bytes

    def stop(self, piece: int) -> int:
        """Where in the blob it ends."""
        return min((piece + 1) * self.piece_bytes, self.size_bytes)

    def at(self, offset: int) -> int:
        """The piece in which this byte is."""
        return offset // self.piece_bytes

    def reached(self, piece: int) -> int:
        """The first byte of the blob that the piece lacks; its end if there is none."""
        return self.start(piece) + self._received[piece]

    def is_whole(self, piece: int) -> bool:
        """Whether the piece lacks nothing."""
        return self.reached(piece) == self.stop(piece)

    def add(self, piece: int, count: int) -> None:
        """So many more bytes of the piece are there. Raises ValueError if it has not so many."""
        if self.reached(piece) + count > self.stop(piece):
            raise ValueError(f"piece {piece} has {self.stop(piece) - self.start(piece)} bytes")
        self._received[piece] += count
        self.received_bytes += count

    def extent(self, offset: int) -> int:
        """The first missing byte at or behind `offset`; the blob's end if there is none."""
        while offset < self.size_bytes:
            piece = self.at(offset)
            reached = self.reached(piece)
            if reached < self.stop(piece):
                return max(offset, reached)
            offset = reached
        return self.size_bytes
