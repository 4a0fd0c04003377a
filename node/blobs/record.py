"""What an upload keeps beside its bytes: the `state` file of its folder, which makes taking it up again cheap.

The file is a hint that is checked, never believed: without it, or with a damaged one, the bytes are read again.
"""

from __future__ import annotations

import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgpack

from consensus.errors import InvalidName
from consensus.names import Digest

_MAX_BYTES = 4096
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class UploadRecord:
    """How far an upload has come. `hash_state` is that of `offset` bytes and means something only to processes of the
    same `incarnation`. `digest` is set before the bytes leave for the store: bytes gone and blob there, it is done."""

    incarnation: str
    algorithm: str
    offset: int
    hash_state: bytes | None
    digest: Digest | None

    def encode(self) -> bytes:
        """CRC-32 (4 bytes, big-endian) and msgpack."""
        digest = str(self.digest) if self.digest else None
        body = msgpack.packb((_FORMAT, self.incarnation, self.algorithm, self.offset, self.hash_state, digest))
        return zlib.crc32(body).to_bytes(4, "big") + bytes(body)

    @classmethod
    def decode(cls, content: bytes) -> UploadRecord | None:
        """None for anything that `encode` did not write."""
        body = content[4:]
        if zlib.crc32(body) != int.from_bytes(content[:4], "big"):
            return None
        try:
            version, incarnation, algorithm, offset, hash_state, digest = msgpack.unpackb(body, use_list=False)
            if version != _FORMAT:
                return None
            return cls(incarnation, algorithm, offset, hash_state, Digest.parse(digest) if digest else None)
        except (ValueError, TypeError, InvalidName, msgpack.UnpackException):
            return None

    def write(self, path: Path) -> None:
        """Replaces the file at once, but not durably: uploads are not promised to outlive a power loss. On OSError no
        record is left, neither this nor an older one, which would cost the upload bytes that it still has."""
        temporary = path.with_name(f"{path.name}.new")
        try:
            temporary.write_bytes(self.encode())
            temporary.rename(path)
        except OSError:
            with suppress(OSError):
                path.unlink(missing_ok=True)
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise

    @classmethod
    def read(cls, path: Path) -> UploadRecord | None:
        """None if there is none that can be used."""
        try:
            with path.open("rb") as file:
                return cls.decode(file.read(_MAX_BYTES))
        except OSError:
            return None
