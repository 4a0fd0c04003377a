"""Looking at a write-ahead log's folder from outside."""

import os
import resource
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from consensus.wal import DEFAULT_SEGMENT_BYTES, Wal


@contextmanager
def opened(folder: Path, segment_bytes: int = DEFAULT_SEGMENT_BYTES) -> Iterator[Wal]:
    """The log in `folder`, closed behind the block."""
    with closing(Wal.open(folder, segment_bytes=segment_bytes, lock_seconds=1)) as wal:
        yield wal


def read_all(wal: Wal, after: int = 0) -> list[bytes]:
    """The payloads kept behind `after`; checks that their indexes have no gap and end at the commit."""
    found: list[bytes] = []
    after = max(after, wal.first - 1)
    while batch := wal.read(after):
        assert [entry.index for entry in batch] == list(range(after + 1, after + 1 + len(batch)))
        found += [entry.payload for entry in batch]
        after = batch[-1].index
    assert after == wal.commit
    return found


def files(folder: Path) -> list[Path]:
    """The segments, oldest first."""
    return sorted(folder.glob("*.log"))


def replace_open_file(path: Path, device: str) -> None:
    """Whatever descriptor of this process has `path` open is one of `device` from now on."""
    replacement = os.open(device, os.O_RDWR if device.startswith("/dev") else os.O_RDONLY)
    for link in Path("/proc/self/fd").iterdir():
        if link.exists() and link.resolve() == path.resolve():
            os.dup2(replacement, int(link.name))
    os.close(replacement)


@contextmanager
def no_room() -> Iterator[None]:
    """Every write of this process to a file fails as on a full disk (EFBIG)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
