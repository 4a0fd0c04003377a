"""The newest entries of a log in memory, where an apply loop that keeps up reads them."""

from __future__ import annotations

from consensus.log import MAX_BATCH_BYTES, MAX_BATCH_ENTRIES, Entry

OVERHEAD_BYTES = 256  # what an entry costs in memory beside its payload, so that empty ones are bounded too

_TAIL_BYTES = 16 * 1024 * 1024


class Tail:
    """Up to _TAIL_BYTES of them."""

    def __init__(self) -> None:
        self._entries: dict[int, Entry] = {}  # in order of index
        self._size = 0

    def add(self, entry: Entry) -> None:
        """Takes an entry behind the last one taken."""
        self._entries[entry.index] = entry
        self._size += len(entry.payload) + OVERHEAD_BYTES
        while self._size > _TAIL_BYTES:
            oldest = self._entries.pop(next(iter(self._entries)))
            self._size -= len(oldest.payload) + OVERHEAD_BYTES

    def batch(self, after: int) -> tuple[Entry, ...]:
        """The entries behind `after` if they are held, a batch at most; nothing if they are not."""
        found: list[Entry] = []
        size = 0
        while len(found) < MAX_BATCH_ENTRIES and size < MAX_BATCH_BYTES:
            entry = self._entries.get(after + 1 + len(found))
            if entry is None:
                break
            found.append(entry)
            size += len(entry.payload)
        return tuple(found)
