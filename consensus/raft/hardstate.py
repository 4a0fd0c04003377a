"""What a member must not forget beside its entries: its term, whom it voted for in it, and the snapshot it began from.

One small file, replaced as a whole: synced, renamed into place, the folder synced, before anything depends on it.
"""

from __future__ import annotations

import contextlib
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import msgpack

from consensus import smallfile
from consensus.errors import LogCorrupt, LogUnavailable

_FILE = "hardstate"
_MAGIC = b"MRDNHS1\n"
_CHECKSUM_BYTES = 4


@dataclass(frozen=True, slots=True)
class Stored:
    """`base` is (index, term) of the last entry that the snapshot held which this member's state began from; (0, 0) if
    it began from nothing."""

    term: int = 0
    voted_for: str | None = None
    base: tuple[int, int] = (0, 0)


class HardState:
    """The file in one folder. Belongs to one thread."""

    def __init__(self, folder: Path, stored: Stored) -> None:
        self._folder = folder
        self.stored = stored

    @classmethod
    def open(cls, folder: Path) -> HardState:
        """Comes behind `Wal.open` of the same folder, which syncs it: a predecessor may have been killed between its
        rename and that. Raises LogCorrupt: a member that forgot its vote could vote twice, so nothing is guessed.
        LogUnavailable when the disk fails."""
        path = folder / _FILE
        try:
            return cls(folder, _decode(path, path.read_bytes()))
        except FileNotFoundError:
            return cls(folder, Stored())
        except OSError as error:
            raise LogUnavailable(f"cannot read {path}: {error}") from error

    def vote(self, term: int, voted_for: str | None) -> None:
        """Durable when this returns. Raises LogUnavailable, after which the member must stop."""
        self._store(replace(self.stored, term=term, voted_for=voted_for))

    def begin_from(self, base: tuple[int, int]) -> None:
        """Durable when this returns. Raises LogUnavailable, after which the member must stop."""
        self._store(replace(self.stored, base=base))

    def _store(self, stored: Stored) -> None:
        content = msgpack.packb([stored.term, stored.voted_for, stored.base], use_bin_type=True)
        checksum = zlib.crc32(content).to_bytes(_CHECKSUM_BYTES, "little")
        try:
            smallfile.put(self._folder / _FILE, _MAGIC + checksum + content)
        except OSError as error:
            raise LogUnavailable(f"cannot make the vote in {self._folder} durable: {error}") from error
        self.stored = stored


def _decode(path: Path, content: bytes) -> Stored:
    start = len(_MAGIC) + _CHECKSUM_BYTES
    checksum, body = content[len(_MAGIC) : start], content[start:]
    if content[: len(_MAGIC)] == _MAGIC and zlib.crc32(body).to_bytes(_CHECKSUM_BYTES, "little") == checksum:
        # A whole file of another version is no better than a damaged one.
        with contextlib.suppress(ValueError, TypeError, msgpack.UnpackException):
            term, voted_for, (base, base_term) = msgpack.unpackb(body, use_list=False, raw=False)
            if {type(term), type(base), type(base_term)} == {int} and isinstance(voted_for, str | None):
                return Stored(term, voted_for, (base, base_term))
    raise LogCorrupt(
        f"{path} is damaged: it says for whom this member has voted, and must not be guessed. Let the node rejoin "
        f"as a new member and copy its data from a peer."
    )
