"""A folder that one process at a time works in; the lock goes with the process, however it ends."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

from consensus import clock
from consensus.errors import LogUnavailable

_POLL_SECONDS = 0.02


def lock_folder(folder: Path, seconds: float) -> int:
    """The descriptor of the file `lock` in it, to be closed by the holder. Raises LogUnavailable if another process
    holds it for that long, OSError."""
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = clock.monotonic() + seconds
    pause = threading.Event()
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if clock.monotonic() >= deadline:
                os.close(descriptor)
                raise LogUnavailable(f"another process has held the log in {folder} for {seconds:g} s") from None
            pause.wait(_POLL_SECONDS)
        else:
            return descriptor
