"""What an arrival keeps beside its bytes: the `state` file of its folder, which says how much of each piece has come.

It is written behind the bytes, in its place, and not synced; no part counts as come that was wrong. Processes of the
same start of a node may believe it as it is, others as far as the digests of the parts say so.
"""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass

import msgpack
from blake3 import blake3

from consensus.errors import InvalidName
from consensus.names import Digest

HEAD_BYTES = 512
_FORMAT = 2
_ENTRY = struct.Struct(">I")  # bytes received


@dataclass(frozen=True, slots=True)
class LedgerHead:
    """Whose ledger it is. `incarnation` is that of the processes which wrote the entries, `parts_sum` stands for the
    parts by which they were proven."""

    digest: Digest
    size_bytes: int
    piece_bytes: int
    incarnation: str
    parts_sum: bytes

    def encode(self) -> bytes:
        """HEAD_BYTES in all: CRC-32 of what follows (4 bytes), length (2 bytes), msgpack, zeros; big-endian."""
        fields = (str(self.digest), self.size_bytes, self.piece_bytes, self.incarnation, self.parts_sum)
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
            version, name, *fields = msgpack.unpackb(body, use_list=False)
            return cls(Digest.parse(name), *fields) if version == _FORMAT else None
        except (ValueError, TypeError, InvalidName, msgpack.UnpackException):
            return None


def sum_of(parts: bytes) -> bytes:
    """What stands for these digests of parts."""
    return blake3(parts).digest(16)


def write_entry(descriptor: int, piece: int, received: int) -> None:
    """So much of a piece is there. Raises OSError."""
    entry = _ENTRY.pack(received)
    if os.pwrite(descriptor, entry, HEAD_BYTES + piece * _ENTRY.size) != _ENTRY.size:
        raise OSError(28, os.strerror(28))


def read_entries(descriptor: int, count: int) -> list[int]:
    """Of each piece, how many bytes are there; none of those never written. Raises OSError."""
    content = os.pread(descriptor, count * _ENTRY.size, HEAD_BYTES).ljust(count * _ENTRY.size, b"\0")
    return [received for (received,) in _ENTRY.iter_unpack(content)]
