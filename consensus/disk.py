"""The one door through which durability is asked for. `chaos` removes each call in turn to prove that it is needed.

A file is durable when its data are synced and the folder entry that names it is synced too.
"""

import os
from pathlib import Path

PORTION_BYTES = 4 * 1024 * 1024  # of a large file, to begin writing at a time


def sync_data(descriptor: int) -> None:
    """Data and size of an open file reach the disk; raises OSError, after which nothing about the file is certain."""
    os.fdatasync(descriptor)


def sync_file(descriptor: int) -> None:
    """Data and all metadata of an open file reach the disk; raises OSError."""
    os.fsync(descriptor)


def sync_folder(path: Path) -> None:
    """Entries made, renamed or removed in a folder reach the disk; raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def begin_writing(descriptor: int, start: int, end: int) -> None:
    """The kernel begins to write these bytes of an open file, and nobody waits for that: a sync later on finds little
    left, and does not push gigabytes before the syncs of others. Promises nothing; raises OSError."""
    os.posix_fadvise(descriptor, start, end - start, os.POSIX_FADV_DONTNEED)
