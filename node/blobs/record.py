"""What an upload keeps beside its bytes: the `state` file of its folder, which says what has been received.

Only what a record says counts: an upload without one, or whose bytes are not those of its record, is gone. After a
power loss a file may have its length and not its bytes. Behind the record proper lie the digests of the parts that are
whole, which it names by a digest of them all: where there was no room for them, they are made again from the bytes.
"""

from __future__ import annotations

import errno
import os
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import msgpack
from blake3 import blake3

from consensus.errors import InvalidName
from consensus.names import Digest
from consensus.parts import MAX_PARTS, PART_DIGEST_BYTES

_BYTES = 1024  # within one block, whatever the fields
_FORMAT = 2
_SUM_BYTES = 16
_MOST_BYTES = _BYTES + (MAX_PARTS + 1) * PART_DIGEST_BYTES


@dataclass(frozen=True, slots=True)
class UploadRecord:
    """How far an upload has come: `offset` bytes, whose hash (hexadecimal) is `received`. `hash_state` continues it,
    for processes of the same `incarnation`. `digest` is set before the bytes leave for the store: bytes gone and blob
    there, it is done. `parts` are the digests of the parts that are whole; None if they are not there."""

    incarnation: str
    algorithm: str
    offset: int
    received: str
    hash_state: bytes | None
    digest: Digest | None
    parts: bytes | None

    def encode(self) -> bytes:
        """_BYTES: CRC-32 of the rest of them (4 bytes), length (2 bytes), msgpack, zeros; big-endian. Then parts."""
        digest, parts = str(self.digest) if self.digest else None, self.parts or b""
        named = None if self.parts is None else (len(parts), _sum(parts))
        fields = (self.incarnation, self.algorithm, self.offset, self.received, self.hash_state, digest, named)
        body: bytes = msgpack.packb((_FORMAT, *fields))
        rest = (len(body).to_bytes(2, "big") + body).ljust(_BYTES - 4, b"\0")
        return zlib.crc32(rest).to_bytes(4, "big") + rest + parts

    @classmethod
    def decode(cls, content: bytes) -> UploadRecord | None:
        """None for anything that `encode` did not write."""
        rest, behind = content[4:_BYTES], content[_BYTES:]
        if len(content) < _BYTES or zlib.crc32(rest) != int.from_bytes(content[:4], "big"):
            return None
        body = rest[2 : 2 + int.from_bytes(rest[:2], "big")]
        try:
            version, incarnation, algorithm, offset, received, state, name, named = msgpack.unpackb(
                body, use_list=False
            )
            if version != _FORMAT:
                return None
            digest = Digest.parse(name) if name else None
            parts = behind[: named[0]] if named else b""
            found = parts if named == (len(parts), _sum(parts)) else None
            return cls(incarnation, algorithm, offset, received, state, digest, found)
        except (ValueError, TypeError, InvalidName, msgpack.UnpackException):
            return None

    def write(self, path: Path) -> None:
        """Over the record before, in its place: a disk that has become full still takes it. Not durable: uploads are
        not promised to outlive a power loss. Raises OSError."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        try:
            content = self.encode()
            try:
                _write(descriptor, content[_BYTES:], _BYTES)
            except OSError:
                content = replace(self, parts=None).encode()
            _write(descriptor, content[:_BYTES], 0)
        finally:
            os.close(descriptor)

    @classmethod
    def read(cls, path: Path) -> UploadRecord | None:
        """None if there is none that can be used."""
        try:
            with path.open("rb") as file:
                return cls.decode(file.read(_MOST_BYTES))
        except OSError:
            return None


def _sum(parts: bytes) -> bytes:
    return blake3(parts).digest(_SUM_BYTES)


def _write(descriptor: int, content: bytes, position: int) -> None:
    if os.pwrite(descriptor, content, position) != len(content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
