"""The processes of a lab that outlived it: each one started in it has the lab's id in its environment."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

MARK = "LAB_ID"

_TERM_SECONDS = 2.0
_KILL_SECONDS = 5.0
_POLL_SECONDS = 0.02


def remains(lab_id: str) -> list[int]:
    """The pids of processes that were started in the lab and still run, those of this user at least."""
    mark = f"{MARK}={lab_id}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and int(folder.name) != os.getpid():
            with contextlib.suppress(OSError):
                if mark in (folder / "environ").read_bytes().split(b"\0"):  # empty for one that only waits to be reaped
                    found.append(int(folder.name))
    return found


def sweep(lab_id: str) -> list[int]:
    """Ends them, within 7 s: SIGTERM, and SIGKILL after two. Returns those that ran, and raises nothing."""
    ran = remains(lab_id)
    for number, seconds in ((signal.SIGTERM, _TERM_SECONDS), (signal.SIGKILL, _KILL_SECONDS)):
        deadline = time.monotonic() + seconds
        told: set[int] = set()
        while (left := remains(lab_id)) and time.monotonic() < deadline:
            for pid in set(left) - told:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)
            told.update(left)
            time.sleep(_POLL_SECONDS)
    return ran
