"""Who is not asked for a blob, because wrong bytes came when it was. Pure: it is told the time.

A holder that gave all of a wrong blob by itself has given wrong bytes. Where several gave parts of it nobody can say
who: from then on that blob is taken from one holder at a time, until one is right, or wrong by itself.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from consensus.names import Digest, StoreId
from replication.sources import HoldersUnreachable, Wanted

SUSPECT_SECONDS = 60.0
MAX_ENTRIES = 4096


class Blame:
    """What is held against whom, for SUSPECT_SECONDS."""

    def __init__(self) -> None:
        self._suspects: dict[tuple[StoreId, Digest], float] = {}
        self._doubted: dict[Digest, float] = {}

    def false(self, digest: Digest, givers: Collection[StoreId], *, alone: bool, now: float) -> None:
        """What `givers` gave, `alone` or not, was not the blob."""
        until = now + SUSPECT_SECONDS
        if alone:
            self._suspects.update(((giver, digest), until) for giver in givers)
        else:
            self._doubted[digest] = until
        self._forget(now)

    def right(self, digest: Digest) -> None:
        """The blob has come."""
        self._doubted.pop(digest, None)

    def is_doubted(self, digest: Digest) -> bool:
        """Whether the blob is to be taken from one holder alone."""
        return digest in self._doubted

    def without_suspects(self, wanted: Wanted, now: float) -> Wanted:
        """With the holders that may be asked. Raises HoldersUnreachable if none may."""
        self._forget(now)
        holders = tuple(store for store in wanted.holders if (store, wanted.digest) not in self._suspects)
        if not holders and wanted.holders:
            raise HoldersUnreachable("every store that holds the blob has lately given wrong bytes", wanted.digest)
        return replace(wanted, holders=holders)

    def _forget(self, now: float) -> None:
        self._suspects = {key: until for key, until in self._suspects.items() if until > now}
        self._doubted = {digest: until for digest, until in self._doubted.items() if until > now}
        while len(self._suspects) > MAX_ENTRIES:
            del self._suspects[next(iter(self._suspects))]
        while len(self._doubted) > MAX_ENTRIES:
            del self._doubted[next(iter(self._doubted))]
