"""Who is not asked for a blob, because wrong bytes came when it was. Pure: it is told the time."""

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

    def suspect(self, digest: Digest, liars: Collection[StoreId], now: float) -> None:
        """They have given wrong bytes for the blob."""
        self._suspects.update(((liar, digest), now + SUSPECT_SECONDS) for liar in liars)
        self._forget(now)

    def without_suspects(self, wanted: Wanted, now: float) -> Wanted:
        """With the holders that may be asked. Raises HoldersUnreachable if none may."""
        self._forget(now)
        holders = tuple(store for store in wanted.holders if (store, wanted.digest) not in self._suspects)
        if not holders and wanted.holders:
            raise HoldersUnreachable("every store that holds the blob has lately given wrong bytes", wanted.digest)
        return replace(wanted, holders=holders)

    def _forget(self, now: float) -> None:
        self._suspects = {key: until for key, until in self._suspects.items() if until > now}
        while len(self._suspects) > MAX_ENTRIES:
            del self._suspects[next(iter(self._suspects))]
