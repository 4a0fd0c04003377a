"""Read-only connections to the state in force, whichever generation that is when a read begins.

The writer puts a new generation in force and only then removes the files of the old one and goes on applying. So
whoever looks at CURRENT when a read begins sees all that had been applied before, and a connection found to be in force
after its first read has the whole of its generation: no file of it had gone yet.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from consensus import generation
from consensus.errors import StateRefused

_MAX_ATTEMPTS = 100  # each but the last was overtaken by an installed generation, which takes fsyncs


class Reader:
    """The connection of one reading thread. Raises StateRefused while there is no state, or it is of another schema."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen, self._connection = _open(folder)

    def connection(self) -> sqlite3.Connection:
        """The state in force now. Ask once a read: what one connection says is of one generation, and never older than
        what an earlier one said. Raises StateRefused, and sqlite3.Error when the disk refuses."""
        if not _is_current(self._folder, self._seen):
            seen, connection = _open(self._folder)
            self.close()
            self._seen, self._connection = seen, connection
        return self._connection

    def close(self) -> None:
        """Idempotent."""
        self._connection.close()
        if self._seen >= 0:
            os.close(self._seen)
            self._seen = -1


def open_reader(folder: Path) -> sqlite3.Connection:
    """A connection to the generation in force, for one long read. Raises as Reader does."""
    seen, connection = _open(folder)
    os.close(seen)
    return connection


def _open(folder: Path) -> tuple[int, sqlite3.Connection]:
    for _ in range(_MAX_ATTEMPTS):
        seen = _open_current(folder)
        try:
            connection = _connect(folder)
        except (StateRefused, sqlite3.OperationalError):
            overtaken = not _is_current(folder, seen)
            os.close(seen)
            if overtaken:
                continue
            raise
        except BaseException:
            os.close(seen)
            raise
        if _is_current(folder, seen):
            return seen, connection
        connection.close()
        os.close(seen)
    raise StateRefused(f"the state in {folder} was replaced {_MAX_ATTEMPTS} times while it was being opened")


def _connect(folder: Path) -> sqlite3.Connection:
    path = generation.current(folder)
    if path is None:
        raise StateRefused(f"there is no state in {folder} any more")
    return generation.open_reader(path)


def _open_current(folder: Path) -> int:
    # Held open, so that its inode cannot be given to another file and comparing inodes is exact.
    try:
        return os.open(folder / generation.CURRENT, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise StateRefused(f"there is no state in {folder} yet: the keeper makes it when it first starts") from error


def _is_current(folder: Path, seen: int) -> bool:
    try:
        found = os.stat(f"{folder}/{generation.CURRENT}")
    except FileNotFoundError:
        return True  # the folder was taken away: nobody writes there, and reads outlive writes
    except OSError as error:
        raise sqlite3.OperationalError(f"cannot see which state is in force: {error}") from error
    held = os.fstat(seen)
    return (found.st_ino, found.st_dev) == (held.st_ino, held.st_dev)
