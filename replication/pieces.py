"""A blob in pieces, each of which fills from its beginning: how far they have come, how far they are right. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from consensus import parts

MAX_PIECES = 1 << 16


def piece_bytes_of(size_bytes: int) -> int:
    """How large the pieces of such a blob are: PART_BYTES, doubled until there are at most MAX_PIECES. No part is in
    two of them."""
    piece_bytes = parts.PART_BYTES
    while size_bytes > piece_bytes * MAX_PIECES:
        piece_bytes *= 2
    return piece_bytes


class Pieces:
    """`received` says of each piece how many bytes are there already, `proven` how many of them are known to be right;
    both may end early. Without `provable` none ever are, before the blob is whole."""

    def __init__(
        self,
        size_bytes: int,
        piece_bytes: int,
        received: Iterable[int] = (),
        proven: Iterable[int] = (),
        *,
        provable: bool = False,
    ) -> None:
        self.size_bytes = size_bytes
        self.piece_bytes = piece_bytes
        self.count = -(-size_bytes // piece_bytes)
        self.provable = provable
        self._received = self._padded(received)
        self._proven = self._padded(proven)
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

    def proven(self, piece: int) -> int:
        """The first byte of the piece that is not known to be right; its end if there is none."""
        return self.start(piece) + self._proven[piece]

    def is_whole(self, piece: int) -> bool:
        """Whether the piece lacks nothing."""
        return self.reached(piece) == self.stop(piece)

    def add(self, piece: int, count: int) -> None:
        """So many more bytes of the piece are there. Raises ValueError if it has not so many."""
        self.move(piece, self.reached(piece) + count, self.proven(piece))

    def move(self, piece: int, reached: int, proven: int) -> None:
        """The piece is there up to `reached`, further than before or not, and right up to `proven`. Raises ValueError
        if that cannot be."""
        start = self.start(piece)
        if not self.proven(piece) <= proven <= reached <= self.stop(piece):
            raise ValueError(
                f"piece {piece} has {self.stop(piece) - start} bytes, {self._proven[piece]} of them proven"
            )
        self.received_bytes += reached - self.reached(piece)
        self._received[piece], self._proven[piece] = reached - start, proven - start

    def drop(self, piece: int) -> None:
        """What is not proven of the piece does not count any more."""
        self.move(piece, self.proven(piece), self.proven(piece))

    def unproven(self) -> list[int]:
        """The pieces that have bytes which are not proven."""
        return [piece for piece in range(self.count) if self._received[piece] > self._proven[piece]]

    def extent(self, offset: int) -> int:
        """The first missing byte at or behind `offset`; the blob's end if there is none."""
        return self._extent(offset, self._received)

    def proven_extent(self, offset: int) -> int:
        """The first byte at or behind `offset` that is not proven; the blob's end if there is none."""
        return self._extent(offset, self._proven)

    def _extent(self, offset: int, counts: Sequence[int]) -> int:
        while offset < self.size_bytes:
            piece = self.at(offset)
            reached = self.start(piece) + counts[piece]
            if reached < self.stop(piece):
                return max(offset, reached)
            offset = reached
        return self.size_bytes

    def _padded(self, counts: Iterable[int]) -> list[int]:
        found = [*counts][: self.count]
        return found + [0] * (self.count - len(found))
