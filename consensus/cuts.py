"""Cuts of a file that power failures may interrupt.

A cut is not atomic: the bytes behind the new end may become zeros before the size of the file changes (ext4 clears the
rest of the block first), and what is further behind is whole until then. Such a hole looks like damage. So a cut is
announced, by the name of an empty file beside the one to be cut, and the next process ends what it finds announced.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from consensus import disk

_NAME = "{}-{}.cut"
_NAMES = re.compile(r"(.*\.log)-([0-9]{1,19})\.cut")


def announce(path: Path, end: int) -> Path:
    """Durable when this returns: the file is going to have `end` bytes. Returns what to `forget` once it durably has
    them. Raises OSError."""
    announced = path.with_name(_NAME.format(path.name, end))
    announced.touch(0o600)
    disk.sync_folder(path.parent)
    return announced


def resume(folder: Path) -> Sequence[Path]:
    """Makes every announced cut, to be synced before they are forgotten; foreign files are passed over. A file that is
    gone or shorter by now is left as it is: a cut adds nothing. Raises OSError."""
    found = []
    for announced in sorted(folder.iterdir()):
        if match := _NAMES.fullmatch(announced.name):
            found.append(announced)
            path, end = folder / match[1], int(match[2])
            if path.exists() and path.stat().st_size > end:
                os.truncate(path, end)
    return found


def forget(announced: Sequence[Path]) -> None:
    """They are made, durably, and never made again, also when this is. Raises OSError."""
    for path in announced:
        path.unlink()
    for folder in {path.parent for path in announced}:
        disk.sync_folder(folder)
