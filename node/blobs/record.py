"""What an upload keeps beside its bytes: the `state` file of its folder, which says what has been received.

Only what a record says counts: an upload without one, or whose bytes are not those of its record, is gone. After a
power loss a file may have its length and not its bytes.
"""

from __future__ import annotations

import errno
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import msgpack

from consensus.errors import InvalidName
from consensus.names import Digest

_BYTES = 1024  # within one block, whatever the fields
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class UploadRecord:
    """How far an upload has come: `offset` bytes, whose hash (hexadecimal) is `received`. `hash_state` continues it,
    for processes of the same `incarnation`. `digest` is set before the bytes leave for the store: bytes gone and blob
    there, it is done."""

    incarnation: str
    algorithm: str
    offset: int
    received: str
    hash_state: bytes | None
    digest: Digest | None

    def encode(self) -> bytes:
        """_BYTES in all: CRC-32 of what follows (4 bytes), length (2 bytes), msgpack, zeros; big-endian."""
        digest = str(self.digest) if self.digest else None
        fields = (self.incarnation, self.algorithm, self.offset, self.received, self.hash_state, digest)
        body: bytes = msgpack.packb((_FORMAT, *fields))
        rest = (len(body).to_bytes(2, "big") + body).ljust(_BYTES - 4, b"\0")
        return zlib.crc32(rest).to_bytes(4, "big") + rest

    @classmethod
    def decode(cls, content: bytes) -> UploadRecord | None:
        """None for anything that `encode` did not write."""
        rest = content[4:]
        if len(content) != _BYTES or zlib.crc32(rest) != int.from_bytes(content[:4], "big"):
            return None
        body = rest[2 : 2 + int.from_bytes(rest[:2], "big")]
        try:
            version, incarnation, algorithm, offset, received, state, name = msgpack.unpackb(body, use_list=False)
            if version != _FORMAT:
                return None
            return cls(incarnation, algorithm, offset, received, state, Digest.parse(name) if name else None)
        except (ValueError, TypeError, InvalidName, msgpack.UnpackException):
            return None

    def write(self, path: Path) -> None:
        """Over the record before, in its place: a disk that has become full still takes it. Not durable: uploads are
        not promised to outlive a power loss. Raises OSError."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        try:
            if os.pwrite(descriptor, self.encode(), 0) != _BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(descriptor)

    @classmethod
    def read(cls, path: Path) -> UploadRecord | None:
        """None if there is none that can be used."""
        try:
            with path.open("rb") as file:
                return cls.decode(file.read(_BYTES + 1))
        except OSError:
            return None
