"""What the bytes of a blob have to be, and how much of what has come is known to be that. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from blake3 import blake3

from consensus import parts as bounds
from consensus.names import Digest
from consensus.parts import PART_DIGEST_BYTES, part_at, part_start, part_stop


class _Hash(Protocol):
    def update(self, chunk: memoryview, /) -> object: ...

    def digest(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Proof:
    """By the digests of a blob's parts; where there are none by its own, as if it were one part."""

    digest: Digest
    size_bytes: int
    parts: bytes

    @classmethod
    def of(cls, digest: Digest, size_bytes: int, parts: bytes) -> Proof | None:
        """None for a blob without parts that is more than one piece: its bytes are not held back so long."""
        return cls(digest, size_bytes, parts) if parts or size_bytes <= bounds.PART_BYTES else None

    def start(self, offset: int) -> int:
        """Where the part begins in which this byte is; the blob's end is where it is."""
        if offset == self.size_bytes:
            return offset
        return part_start(part_at(offset)) if self.parts else 0

    def stop(self, offset: int) -> int:
        """Where the part ends in which this byte is."""
        return min(part_stop(part_at(offset)), self.size_bytes) if self.parts else self.size_bytes

    def hash(self) -> _Hash:
        """A new hash for one part."""
        return _PartHash() if self.parts else hashlib.new(self.digest.algorithm)

    def expected(self, offset: int) -> bytes:
        """What the hash of the part has to be in which this byte is."""
        if not self.parts:
            return bytes.fromhex(self.digest.hex)
        at = part_at(offset) * PART_DIGEST_BYTES
        return self.parts[at : at + PART_DIGEST_BYTES]


class _PartHash:
    def __init__(self) -> None:
        self._running = blake3()
        self.update: Callable[[memoryview], object] = self._running.update

    def digest(self) -> bytes:
        return bounds.part_digest(self._running)


class Proving:
    """Bytes that come in order, from the beginning of a part on. What is before `proven` is right; `position` is where
    the next bytes belong."""

    def __init__(self, proof: Proof, start: int) -> None:
        self.proven = self.position = start
        self._proof = proof
        self._hash = proof.hash()

    def add(self, chunk: bytes | memoryview) -> bool:
        """False if a part was wrong: then `position` is back where that part begins, and what else was in `chunk` does
        not count."""
        view = memoryview(chunk)
        while view:
            stop = self._proof.stop(self.proven)
            piece = view[: stop - self.position]
            self._hash.update(piece)
            self.position += len(piece)
            view = view[len(piece) :]
            if self.position == stop and not self._close():
                return False
        return True

    def _close(self) -> bool:
        right = self._hash.digest() == self._proof.expected(self.proven)
        if right:
            self.proven = self.position
        self.position = self.proven
        self._hash = self._proof.hash()
        return right
