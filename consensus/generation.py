"""Where the state database lies: `db-<generation>.sqlite`, named by the file `CURRENT` beside it.

A new generation becomes the state by one rename, so a reader finds either the old one or the new one, whole. What is
not in force is nobody's state: it is removed at the next start, or when the next generation is installed.
"""

from __future__ import annotations

import os
import re
import sqlite3
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from consensus import disk
from consensus.errors import StateRefused

SCHEMA_VERSION = 2
SCHEMA = Path(__file__).with_name("schema.sql")
CACHED_STATEMENTS = 512

CURRENT = "CURRENT"
_NAME = re.compile(r"db-([1-9][0-9]{0,17})\.sqlite")
_META = "SELECT schema_version, cluster_id, applied, log_time_ms, catalog_changed FROM meta"
_PRIMARY = 0xFF  # of an extended result code
_DAMAGED = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)
_OLDEST_SQLITE = (3, 37, 0)  # STRICT tables


class Meta(NamedTuple):
    """The one row of `meta`."""

    schema_version: int
    cluster_id: str
    applied: int
    log_time_ms: int
    catalog_changed: int


def current(folder: Path) -> Path | None:
    """The database in force, or None where none has been made. Raises StateRefused when CURRENT is not usable."""
    try:
        name = (folder / CURRENT).read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise StateRefused(f"{folder / CURRENT} is not text; {_advice(folder)}") from error
    if not _NAME.fullmatch(name) or not (folder / name).is_file():
        raise StateRefused(f"{folder / CURRENT} names {name[:80]!r}, which is not there; {_advice(folder)}")
    return folder / name


def create(folder: Path, cluster_id: str) -> Path:
    """Makes the first, empty generation and puts it in force; safe to repeat after a crash at any point. Raises
    StateRefused when a database that has applied something lies here without CURRENT, OSError and sqlite3.Error."""
    folder.mkdir(parents=True, exist_ok=True)
    disk.sync_folder(folder.parent)
    target = folder / "db-1.sqlite"
    for leftover in sorted(folder.glob("db-*.sqlite")):
        if leftover != target or not _is_empty(leftover):
            raise StateRefused(f"{leftover} is here, but no {CURRENT}; {_advice(folder)}")
    unfinished = folder / "new.sqlite"
    for leftover in folder.glob("new.sqlite*"):
        leftover.unlink()
    _write_empty(unfinished, cluster_id)
    _sync(unfinished)
    unfinished.rename(target)
    disk.sync_folder(folder)
    _put_in_force(folder, target.name)
    return target


def install(folder: Path, file: Path) -> Path:
    """Puts a whole database, on the same file system and opened by nobody, in force as a new generation; returns where
    it now lies. The one before it stays until `remove_others`. Raises OSError: then either of them is in force."""
    _sync(file)
    # A number that no file here has: a database must never meet the `-wal` that belongs to another one.
    target = folder / f"db-{max(_numbers(folder), default=0) + 1}.sqlite"
    file.rename(target)
    # Also makes it durable that what once had this name is gone.
    disk.sync_folder(folder)
    _put_in_force(folder, target.name)
    return target


def settle(folder: Path) -> None:
    """For the writer, before it builds on the generation in force: that this one is in force becomes durable, as a
    predecessor may have been killed while it installed it; and the others go. Raises OSError."""
    disk.sync_folder(folder)
    remove_others(folder)


def remove_others(folder: Path) -> None:
    """Removes every generation that is not in force. Who reads one goes on reading it. Raises OSError, StateRefused."""
    kept = current(folder)
    if kept is None:
        return
    for path in folder.glob("db-*.sqlite*"):
        if not path.name.startswith(kept.name):
            path.unlink(missing_ok=True)


def read_meta(connection: sqlite3.Connection) -> Meta:
    """Raises StateRefused for a schema this version does not know, and for a file that is damaged or no database."""
    try:
        (version,) = connection.execute("SELECT schema_version FROM meta").fetchone()
        if version == SCHEMA_VERSION:
            return Meta(*connection.execute(_META).fetchone())
    except (sqlite3.DatabaseError, TypeError) as error:
        if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & _PRIMARY in _DAMAGED:
            path = Path(connection.execute("PRAGMA database_list").fetchone()[2])
            raise StateRefused(
                f"{path} is damaged, or not a state database: {error}; {_repair(path.parent)}"
            ) from error
        raise
    raise StateRefused(
        f"the state has schema {version}, this version knows {SCHEMA_VERSION}: start the Meridian that wrote it"
    )


def open_whole(path: Path) -> sqlite3.Connection:
    """A read-only connection to a database that nobody writes and that has no `-wal`; leaves no file beside it."""
    return _connect(path, "ro&immutable=1")


def open_writer(path: Path, cluster_id: str) -> sqlite3.Connection:
    """The one connection that writes, or that of its `Backfill`. Commits reach the disk at checkpoints only: the log
    replays what is lost. Raises StateRefused when the state is of another schema or cluster."""
    connection = _connect(path, "rw")
    try:
        _check_owner(path, read_meta(connection).cluster_id, cluster_id)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        # In pages; only where the backfill does not keep up.
        connection.execute("PRAGMA wal_autocheckpoint = 16384")
        connection.execute(f"PRAGMA journal_size_limit = {64 * 1024 * 1024}")
        connection.execute(f"PRAGMA cache_size = -{64 * 1024}")
    except BaseException:
        connection.close()
        raise
    return connection


def open_reader(path: Path) -> sqlite3.Connection:
    """A read-only connection, for one thread at a time; it goes on reading when the writer dies. Raises StateRefused
    when the state is of another schema."""
    connection = _connect(path, "ro")
    try:
        read_meta(connection)
        connection.execute(f"PRAGMA cache_size = -{16 * 1024}")
    except BaseException:
        connection.close()
        raise
    return connection


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        raise StateRefused(f"SQLite {sqlite3.sqlite_version} is too old; 3.37 or newer is needed")
    return sqlite3.connect(
        f"file:{quote(str(path))}?mode={mode}",
        uri=True,
        isolation_level=None,
        cached_statements=CACHED_STATEMENTS,
        check_same_thread=False,
    )


def _check_owner(path: Path, owner: str, cluster_id: str) -> None:
    if owner != cluster_id:
        raise StateRefused(
            f"{path} belongs to cluster {owner}, this node to {cluster_id}: give each node a data folder of its own"
        )


def _numbers(folder: Path) -> list[int]:
    found = (_NAME.match(path.name) for path in folder.glob("db-*.sqlite*"))
    return [int(match[1]) for match in found if match]


def _write_empty(path: Path, cluster_id: str) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.executescript(SCHEMA.read_text(encoding="utf-8"))
        connection.execute("INSERT INTO meta VALUES (1, ?, ?, 0, 0, 0)", (SCHEMA_VERSION, cluster_id))
    finally:
        connection.close()


def _is_empty(path: Path) -> bool:
    try:
        connection = open_reader(path)
    except StateRefused:
        return False
    try:
        return read_meta(connection).applied == 0
    finally:
        connection.close()


def _put_in_force(folder: Path, name: str) -> None:
    unfinished = folder / f"{CURRENT}.new"
    unfinished.write_text(f"{name}\n", encoding="ascii")
    _sync(unfinished)
    unfinished.rename(folder / CURRENT)
    disk.sync_folder(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        disk.sync_file(descriptor)
    finally:
        os.close(descriptor)


def _advice(folder: Path) -> str:
    return (
        f"put the name of the newest database in {folder} that you trust into {CURRENT}, "
        "or move the folder away to have it rebuilt where the log is still whole"
    )


def _repair(folder: Path) -> str:
    return (
        f"check the disk, stop the node, and move {folder} away to have it rebuilt, if the log is whole (it has a "
        "segment 00000000000000000001.log); else restore log and state from one and the same backup"
    )
