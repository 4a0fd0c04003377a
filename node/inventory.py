"""The inventory of a node on its disk: copies that it holds and tells of, and those that others tell of.

One SQLite file for each start of the node, written by the replicator alone and read by gateways too. It has to outlive
processes, not a power loss: nothing of it is synced, and the next start of the node begins another.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import astuple
from pathlib import Path
from typing import Self
from urllib.parse import quote

from consensus import entropy
from consensus.names import Digest, StoreId
from node.config import Config
from replication.directory import PeerWrong
from replication.inventory import MAX_COPIES, PAGE_ENTRIES, Page, Standing

MAX_GONE = 1 << 16  # so many are remembered not to be held any more
_BUSY_SECONDS = 5.0

_SCHEMA = (
    "CREATE TABLE own (digest BLOB PRIMARY KEY, number INTEGER NOT NULL, held INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE UNIQUE INDEX own_numbers ON own (number)",
    "CREATE INDEX own_gone ON own (number) WHERE NOT held",
    "CREATE TABLE members (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, store TEXT NOT NULL,"
    " incarnation TEXT NOT NULL, reached INTEGER NOT NULL, forgotten INTEGER NOT NULL, round INTEGER NOT NULL,"
    " settled INTEGER NOT NULL, copies INTEGER NOT NULL)",
    "CREATE TABLE copies (digest BLOB, member INTEGER, round INTEGER NOT NULL, PRIMARY KEY (digest, member))"
    " WITHOUT ROWID",
    "CREATE TRIGGER copy_comes AFTER INSERT ON copies BEGIN"
    " UPDATE members SET copies = copies + 1 WHERE id = NEW.member; END",
    "CREATE TRIGGER copy_goes AFTER DELETE ON copies BEGIN"
    " UPDATE members SET copies = copies - 1 WHERE id = OLD.member; END",
    # The last number given, that of the last change that is forgotten, and whether the store has been looked through.
    "CREATE TABLE meta (store TEXT NOT NULL, incarnation TEXT NOT NULL, last INTEGER NOT NULL,"
    " forgotten INTEGER NOT NULL, walked INTEGER NOT NULL)",
)
_HOLDERS = "SELECT DISTINCT m.store FROM copies c CROSS JOIN members m ON m.id = c.member WHERE c.digest = ?"
_CHANGES = "SELECT digest, number, held FROM own WHERE number > ? ORDER BY number LIMIT ?"
_CHANGE = (
    "INSERT INTO own VALUES (?1, ?2, ?3) ON CONFLICT (digest) DO UPDATE SET number = ?2, held = ?3 WHERE held <> ?3"
)
_COPY = "INSERT INTO copies VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET round = ?3 WHERE round <> ?3"


def inventory_file(config: Config, incarnation: str) -> Path:
    """Of the node's start with that incarnation."""
    return config.data / "inventory" / f"{incarnation}.sqlite"


class InventoryReader:
    """Reads an inventory; for one thread at a time. Raises sqlite3.Error, also while there is no inventory yet."""

    def __init__(self, file: Path) -> None:
        self._connection = _connect(file, "ro")

    def close(self) -> None:
        """Idempotent."""
        self._connection.close()

    def page(self, incarnation: str, after: int, round_forgotten: int) -> Page:
        """The changes behind `after`, a number of that incarnation, for who began to ask when the changes up to
        `round_forgotten` were forgotten. From 0 on if it is another's, or some of them are forgotten by now."""
        with _transaction(self._connection, "DEFERRED"):
            store, current, last, forgotten, walked = self._connection.execute("SELECT * FROM meta").fetchone()
            known = incarnation == current and after <= last and (after >= forgotten or round_forgotten == forgotten)
            begin = after if known else 0
            rows = self._connection.execute(_CHANGES, (begin, PAGE_ENTRIES + 1)).fetchall()
        more = len(rows) > PAGE_ENTRIES
        rows = rows[:PAGE_ENTRIES]
        return Page(
            store_id=store,
            incarnation=current,
            begin=begin,
            end=rows[-1][1] if more else last,
            forgotten=forgotten,
            more=more,
            walked=bool(walked),
            held=tuple(digest for digest, _, held in rows if held),
            gone=tuple(digest for digest, _, held in rows if not held),
        )

    def holders(self, digest: Digest) -> tuple[StoreId, ...]:
        """The stores whose nodes say that they have a copy."""
        rows = self._connection.execute(_HOLDERS, (digest.packed,)).fetchall()
        return tuple(StoreId(store) for (store,) in rows)


def page_of(file: Path, incarnation: str, after: int, round_forgotten: int) -> Page:
    """One page of the inventory in a file, see InventoryReader.page. Blocks. Raises sqlite3.Error."""
    with closing(InventoryReader(file)) as reader:
        return reader.page(incarnation, after, round_forgotten)


def holders_of(file: Path, digest: Digest) -> tuple[StoreId, ...]:
    """As InventoryReader.holders; none where there is no inventory."""
    with suppress(sqlite3.Error), closing(InventoryReader(file)) as reader:
        return reader.holders(digest)
    return ()


class Inventory(InventoryReader):
    """Writes it. There is one at a time."""

    @classmethod
    def open(cls, file: Path, store: StoreId) -> Self:
        """The inventory of this start of the node, made if need be; those of others go. Raises OSError too."""
        file.parent.mkdir(mode=0o700, exist_ok=True)
        for other in file.parent.iterdir():
            if other.is_file() and not other.name.startswith(file.name):
                other.unlink(missing_ok=True)
        return cls(file, store)

    def __init__(self, file: Path, store: StoreId) -> None:
        self._connection = _connect(file, "rwc")
        try:
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = OFF")
            with _transaction(self._connection):
                self._prepare(store)
        except BaseException:
            self.close()
            raise

    def change(self, digests: Iterable[bytes], *, held: bool) -> None:
        """This node holds copies of these from now on, or does not."""
        with _transaction(self._connection) as connection:
            (last,) = connection.execute("SELECT last FROM meta").fetchone()
            for digest in digests:
                if held or connection.execute("SELECT 1 FROM own WHERE digest = ?", (digest,)).fetchone():
                    last += connection.execute(_CHANGE, (digest, last + 1, held)).rowcount
            connection.execute("UPDATE meta SET last = ?", (last,))
            if not held:
                self._forget()

    def kept(self, digest: bytes) -> None:
        """A copy has come, which is told even if it was held before: others may have found that untrue meanwhile."""
        with _transaction(self._connection) as connection:
            (last,) = connection.execute("UPDATE meta SET last = last + 1 RETURNING last").fetchall()[0]
            connection.execute("INSERT OR REPLACE INTO own VALUES (?, ?, 1)", (digest, last))

    def own(self, after: bytes, limit: int) -> list[bytes]:
        """Up to `limit` of the copies that this node tells of, behind a digest in the order of their bytes."""
        query = "SELECT digest FROM own WHERE digest > ? AND held ORDER BY digest LIMIT ?"
        return [digest for (digest,) in self._connection.execute(query, (after, limit)).fetchall()]

    def walked(self) -> None:
        """All that the store holds has been looked at."""
        self._connection.execute("UPDATE meta SET walked = 1")

    def standing(self, member: str) -> Standing:
        """How far the member's inventory is known."""
        query = "SELECT incarnation, reached, forgotten, round, settled FROM members WHERE name = ?"
        row = self._connection.execute(query, (member,)).fetchone()
        return Standing(row[0], row[1], row[2], row[3], bool(row[4])) if row else Standing()

    def count(self, member: str) -> int:
        """The copies that the member is believed to hold."""
        row = self._connection.execute("SELECT copies FROM members WHERE name = ?", (member,)).fetchone()
        return row[0] if row else 0

    def take(self, member: str, page: Page) -> None:
        """Takes a page of the member's inventory in. Raises PeerWrong if it does not follow, or would be too much."""
        before = self.standing(member)
        standing = before.after(page)
        if page.held and self.count(member) + len(page.held) > MAX_COPIES:
            raise PeerWrong(f"{member} tells of more than {MAX_COPIES} copies")
        with _transaction(self._connection) as connection:
            identity = self._put(member, page.store_id, standing)
            connection.executemany(_COPY, [(digest, identity, standing.round) for digest in page.held])
            gone = [(digest, identity) for digest in page.gone]
            connection.executemany("DELETE FROM copies WHERE digest = ? AND member = ?", gone)
            if standing.settled and not (before.settled and before.round == standing.round):
                connection.execute("DELETE FROM copies WHERE member = ? AND round <> ?", (identity, standing.round))

    def untrue(self, store: StoreId, digest: Digest) -> None:
        """The store does not hold the blob, whatever its node has said so far."""
        query = "DELETE FROM copies WHERE digest = ? AND member IN (SELECT id FROM members WHERE store = ?)"
        self._connection.execute(query, (digest.packed, store))

    def _prepare(self, store: StoreId) -> None:
        connection = self._connection
        if connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'meta'").fetchone():
            return
        for statement in _SCHEMA:
            connection.execute(statement)
        connection.execute("INSERT INTO meta VALUES (?, ?, 0, 0, 0)", (store, entropy.token_bytes(16).hex()))

    def _put(self, member: str, store: str, standing: Standing) -> int:
        values = (member, store, *astuple(standing))
        row = self._connection.execute(
            "INSERT INTO members VALUES (NULL, ?1, ?2, ?3, ?4, ?5, ?6, ?7, 0) ON CONFLICT (name) DO UPDATE SET"
            " store = ?2, incarnation = ?3, reached = ?4, forgotten = ?5, round = ?6, settled = ?7 RETURNING id",
            values,
        ).fetchall()
        identity: int = row[0][0]
        return identity

    def _forget(self) -> None:
        """The oldest of those that are not held any more."""
        query = "SELECT number FROM own WHERE NOT held ORDER BY number DESC LIMIT 1 OFFSET ?"
        if row := self._connection.execute(query, (MAX_GONE,)).fetchone():
            self._connection.execute("DELETE FROM own WHERE NOT held AND number <= ?", row)
            self._connection.execute("UPDATE meta SET forgotten = ?", row)


def _connect(file: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(
        f"file:{quote(str(file))}?mode={mode}",
        uri=True,
        isolation_level=None,
        timeout=_BUSY_SECONDS,
        check_same_thread=False,
    )


@contextmanager
def _transaction(connection: sqlite3.Connection, kind: str = "IMMEDIATE") -> Iterator[sqlite3.Connection]:
    connection.execute(f"BEGIN {kind}")
    try:
        yield connection
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
