"""The parts of a blob: what of it can be known to be right before all of it is there. Pure.

The node that takes a push hashes each part with BLAKE3, and the log carries these digests beside the blob's own: every
region knows from the log, not from a holder, what each part has to be. Parts end at 16 KiB, 32, 64 and so on up to
PART_BYTES, so that the first bytes can be shown soon, and then every PART_BYTES.
"""

from __future__ import annotations

from blake3 import blake3

PART_BYTES = 4 * 1024 * 1024  # a power of two
FIRST_PART_BYTES = 16 * 1024
MIN_PARTED_BYTES = 1024 * 1024 + 1  # a smaller blob has no parts: it is soon whole
MAX_PARTS = 8000  # so that they fit a command, some 31 GiB; a larger blob has none either
PART_DIGEST_BYTES = 16


def part_at(offset: int) -> int:
    """The number of the part in which this byte is."""
    if offset < PART_BYTES:
        return (offset // FIRST_PART_BYTES).bit_length()
    return _early_parts() + offset // PART_BYTES - 1


def part_start(part: int) -> int:
    """Where in the blob it begins."""
    return part_stop(part - 1) if part else 0


def part_stop(part: int) -> int:
    """Where in the blob it ends, if that is long enough."""
    early = _early_parts()
    return FIRST_PART_BYTES << part if part < early else (part - early + 2) * PART_BYTES


def parts_of(size_bytes: int) -> int:
    """How many parts a blob of that size has; 0 if it is too small, or too large."""
    count = part_at(size_bytes - 1) + 1 if size_bytes >= MIN_PARTED_BYTES else 0
    return count if count <= MAX_PARTS else 0


def are_parts_of(parts: bytes, size_bytes: int) -> bool:
    """Whether these may be the digests of all parts of such a blob, or are none: they need not be known."""
    return not parts or len(parts) == parts_of(size_bytes) * PART_DIGEST_BYTES


def part_digest(running: blake3) -> bytes:
    """The digest of a part, all of which has been hashed."""
    return running.digest(PART_DIGEST_BYTES)


class PartsHash:
    """The digests of a blob's parts, as its bytes come in order. Not for use by two threads at once."""

    def __init__(self, finished: bytes = b"") -> None:
        """Goes on at `offset`, behind the parts whose digests these are."""
        self._finished = bytearray(finished)
        self._part = len(finished) // PART_DIGEST_BYTES
        self._offset = part_start(self._part)
        self._running = blake3()

    @property
    def offset(self) -> int:
        """The next byte that counts; `full` if none does any more."""
        return self._offset

    @property
    def full(self) -> bool:
        """Whether there are as many parts as there may be."""
        return self._part == MAX_PARTS

    @property
    def finished(self) -> bytes:
        """The digests of the parts that have come to their end."""
        return bytes(self._finished)

    @classmethod
    def resume(cls, parts: bytes, offset: int) -> PartsHash | None:
        """One that has taken in all that is whole before `offset`, from the digests of these parts, and perhaps of some
        behind; None if they are too few."""
        finished = parts[: min(part_at(offset), MAX_PARTS) * PART_DIGEST_BYTES]
        found = cls(finished)
        return found if found.full or found._part == part_at(offset) else None

    def update(self, chunk: bytes) -> None:
        """Takes in `chunk` without copying it; lets other threads run meanwhile."""
        view = memoryview(chunk)
        while view and not self.full:
            stop = part_stop(self._part)
            piece = view[: stop - self._offset]
            self._running.update(piece)
            self._offset += len(piece)
            view = view[len(piece) :]
            if self._offset == stop:
                self._finished += part_digest(self._running)
                self._part += 1
                self._running = blake3()

    def digests(self, size_bytes: int) -> bytes:
        """Those of all parts of a blob that has so many bytes, all of which have come; none if it has none."""
        count = parts_of(size_bytes)
        last = part_digest(self._running) if count > self._part else b""
        return bytes(self._finished) + last if count else b""


def _early_parts() -> int:
    """How many parts end up to PART_BYTES."""
    return (PART_BYTES // FIRST_PART_BYTES).bit_length()
