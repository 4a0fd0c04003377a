"""A small file that is replaced as a whole: what it says is the old or the new, also after a power loss."""

from __future__ import annotations

import os
from pathlib import Path

from consensus import disk


def put(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Durable when this returns. One writer at a time. Raises OSError, after which either of both is there."""
    unfinished = path.with_name(f"{path.name}.new")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        disk.sync_file(descriptor)
    unfinished.rename(path)
    disk.sync_folder(path.parent)
