"""What an arrival keeps beside its bytes: the `state` file of its folder, which says what of each piece has come.

It is written behind the bytes, in its place, and not synced. Processes of the same start of a node may believe it as it
is; for others each piece has the CRC-32 of what it should hold.
"""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass

import msgpack

from consensus.errors import InvalidName
from consensus.names import Digest

HEAD_BYTES = 512
_FORMAT = 1
_ENTRY = struct.Struct(">II")  # bytes received, CRC-32 of them


@dataclass(frozen=True, slots=True)
class LedgerHead:
    """Whose ledger it is. `incarnation` is that of the processes which wrote the entries."""

    digest: Digest
    size_bytes: int
    piece_bytes: int
    incarnation: str

    def encode(self) -> bytes:
        """HEAD_BYTES in all: CRC-32 of what follows (4 bytes), length (2 bytes), msgpack, zeros; big-endian."""
        fields = (str(self.digest), self.size_bytes, self.piece_bytes, self.incarnation)
        body: bytes = msgpack.packb((_FORMAT, *fields))
        rest = (len(body).to_bytes(2, "big") + body).ljust(HEAD_BYTES - 4, b"\0")
        return zlib.crc32(rest).to_bytes(4, "big") + rest

    @classmethod
    def decode(cls, content: bytes) -> LedgerHead | None:
        """None for anything that `encode` did not write."""
        rest = content[4:]
        if len(content) != HEAD_BYTES or zlib.crc32(rest) != int.from_bytes(content[:4], "big"):
            return None
        body = rest[2 : 2 + int.from_bytes(rest[:2], "big")]
        try:
            version, name, size_bytes, piece_bytes, incarnation = msgpack.unpackb(body, use_list=False)
            return cls(Digest.parse(name), size_bytes, piece_bytes, incarnation) if version == _FORMAT else None
        except (ValueError, TypeError, InvalidName, msgpack.UnpackException):
            return None


def write_entry(descriptor: int, piece: int, received: int, checksum: int) -> None:
    """So much of a piece is there. Raises OSError."""
    entry = _ENTRY.pack(received, checksum)
    if os.pwrite(descriptor, entry, HEAD_BYTES + piece * _ENTRY.size) != _ENTRY.size:
        raise OSError(28, os.strerror(28))


def read_entries(descriptor: int, count: int) -> list[tuple[int, int]]:
    """(bytes received, CRC-32) of each piece; those never written are (0, 0). Raises OSError."""
    content = os.pread(descriptor, count * _ENTRY.size, HEAD_BYTES).ljust(count * _ENTRY.size, b"\0")
    return list(_ENTRY.iter_unpack(content))
