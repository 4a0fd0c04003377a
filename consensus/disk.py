"""The one door through which durability is asked for. `chaos` removes each call in turn to prove that it is needed.

A file is durable when its data are synced and the folder entry that names it is synced too.
"""

import os
from pathlib import Path

PORTION_BYTES = 4 * 1024 * 1024  # of a large file, to write out at a time


def write_all(descriptor: int, content: bytes, offset: int) -> None:
    """All of it is written, and not yet durable; raises OSError, after which a part of it may be."""
    rest = memoryview(content)
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written


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


def write_out(descriptor: int) -> None:
    """What is dirty of a large file that is being written goes to the disk, so that a sync at its end does not push
    gigabytes before the syncs of others. Promises nothing; raises OSError."""
    os.fdatasync(descriptor)
