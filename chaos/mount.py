"""The controlling end of the lossy file system: mount it, crash it, make it fail."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from ctypes.util import find_library
from pathlib import Path
from types import TracebackType
from typing import Self

from chaos.faults import Fault

_CLOSE_SECONDS = 15.0


def fuse_missing() -> str:
    """Why FUSE cannot be used on this machine, or ""."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "no access to /dev/fuse"
    if not (find_library("fuse") or find_library("fuse3")):
        return "libfuse is not installed"
    return "" if shutil.which("fusermount") else "fusermount is not installed"


class LossyMount:
    """A lossy file system, empty at first, mounted on `folder` while the context lasts; its contents end with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "chaos.lossyfs", str(self.folder)]
        # Its own session: an interrupt from the terminal must reach the nodes that use it first.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        self._answer()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        finally:
            self._process.stdout.close()

    def crash(self, *, kept: float = 0.0, seed: int = 0) -> None:
        """Power fails and comes back: what was not synced is gone (with `kept`: each sector stays by that chance).

        Every process that uses the file system has to be dead.
        """
        self._order({"do": "crash", "kept": kept, "seed": seed})

    def fail(self, faults: Iterable[Fault]) -> None:
        """From now on these faults and no others; they outlive a crash."""
        self._order({"do": "faults", "faults": [fault.to_json() for fault in faults]})

    def cut_power(self, after: int | None) -> int:
        """After that many more changes every further one fails, until the next crash (or None) gives power back.

        Returns how many changes have been asked for so far.
        """
        return self._order({"do": "power", "after": after})

    def write_back(self, chance: float) -> None:
        """From now on each change is durable at once by that chance, as when the kernel writes back on its own."""
        self._order({"do": "writeback", "chance": chance})

    def report_free(self, free_bytes: int) -> None:
        """What statfs says is free, from now on."""
        self._order({"do": "free", "bytes": free_bytes})

    def _order(self, order: dict[str, object]) -> int:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> int:
        assert self._process is not None
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the lossy file system ended with {self._process.wait()}")
        return int(json.loads(answer).get("changes", 0))
