"""One entry on its way through the state machine: where it stands in the log, and the rows that commands share."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from consensus.commands import Outcome, Reason, Status
from consensus.names import Digest, RepositoryName

MAX_OUTCOME_DIGESTS = 100
CHUNK = 100  # values in one IN (...): bounds both its length and how many texts are prepared


class Step:
    """The connection, the log index and the log time while an entry is applied. `index` rises from entry to entry."""

    __slots__ = ("catalog_changed", "connection", "index", "now_ms")

    def __init__(self, connection: sqlite3.Connection, now_ms: int, catalog_changed: int) -> None:
        self.connection = connection
        self.index = 0
        self.now_ms = now_ms
        self.catalog_changed = catalog_changed

    def row(self, query: str, *values: object) -> Any:
        """The only row, or None."""
        return self.connection.execute(query, values).fetchone()

    def rows(self, query: str, *values: object) -> list[Any]:
        """All rows."""
        return self.connection.execute(query, values).fetchall()

    def write(self, query: str, *values: object) -> int:
        """Runs one statement; returns how many rows it changed."""
        return self.connection.execute(query, values).rowcount

    def insert(self, query: str, *values: object) -> int:
        """Inserts one row; returns its id."""
        identity = self.connection.execute(query, values).lastrowid
        assert identity is not None
        return identity

    def write_many(self, query: str, rows: Sequence[tuple[object, ...]]) -> None:
        """Runs one statement for each row."""
        self.connection.executemany(query, rows)

    def done(self, changed: int, *, created: bool = False) -> Outcome:
        """It is as the command wants it; `changed` is this index if that took a change."""
        return Outcome(Status.DONE, self.index, changed, created=created)

    def conflict(self, changed: int, digests: tuple[Digest, ...]) -> Outcome:
        """A tag is not what was expected; `digests` holds what it is."""
        return Outcome(Status.CONFLICT, self.index, changed, Reason.TAG_MOVED, digests)

    def not_found(self, reason: Reason, digests: Sequence[Digest] = (), changed: int = 0) -> Outcome:
        """Something the command needs is not here."""
        return Outcome(Status.NOT_FOUND, self.index, changed, reason, tuple(digests[:MAX_OUTCOME_DIGESTS]))

    def refused(self, reason: Reason, digests: Sequence[Digest] = (), changed: int = 0) -> Outcome:
        """The command cannot be applied as it is."""
        return Outcome(Status.REFUSED, self.index, changed, reason, tuple(digests[:MAX_OUTCOME_DIGESTS]))


def find_repository(step: Step, name: RepositoryName) -> int | None:
    """The id of a repository that has arisen."""
    row = step.row("SELECT id FROM repositories WHERE name = ?", name.value)
    return row[0] if row else None


def raise_repository(step: Step, name: RepositoryName) -> int:
    """The id of the repository, which arises now if it has not before."""
    found = find_repository(step, name)
    if found is not None:
        return found
    step.catalog_changed = step.index
    return step.insert("INSERT INTO repositories (name, tags_changed) VALUES (?, ?)", name.value, step.index)


def find_content(step: Step, digest: Digest) -> tuple[int, int] | None:
    """Id and size of manifest bytes that are kept."""
    row: tuple[int, int] | None = step.row("SELECT id, size_bytes FROM contents WHERE digest = ?", digest.packed)
    return row


def select_in(connection: sqlite3.Connection, query: str, first: Sequence[Any], values: Sequence[Any]) -> Iterator[Any]:
    """The rows of a query that ends in `IN`, for any number of values; `first` are the parameters before them."""
    rest = iter(values)
    while chunk := list(islice(rest, CHUNK)):
        marks = ",".join("?" * len(chunk))
        yield from connection.execute(f"{query} ({marks})", (*first, *chunk)).fetchall()  # noqa: S608  only marks
