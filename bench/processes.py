"""What a server's processes cost, read from /proc: all descendants of one pid."""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


def tree(root: int) -> list[int]:
    """This process and all its descendants."""
    children: dict[int, list[int]] = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := stat(int(entry.name))):
            children[int(fields[1])].append(int(entry.name))
    found, pending = [], [root]
    while pending:
        found.append(pending.pop())
        pending += children[found[-1]]
    return found


def stat(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat after the name; none when the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def cpu_seconds(root: int) -> float:
    """User and system time of the tree so far, of ended and awaited children too."""
    return sum(sum(map(int, fields[11:15])) for pid in tree(root) if (fields := stat(pid))) / TICKS


def memory_bytes(root: int) -> int:
    """Proportional set size (PSS) of the tree: pages shared between its processes count once."""
    return sum(pss_bytes(pid) for pid in tree(root))


def pss_bytes(pid: int) -> int:
    """PSS of one process; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def peak_bytes(pid: int) -> int:
    """The most memory that one process has had at a time, with the pages it shares; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


class MemoryWatch:
    """Samples the memory of a tree every 100 ms while in its `with` block; `peak_bytes` is the highest sum seen."""

    INTERVAL_SECONDS = 0.1

    def __init__(self, root: int) -> None:
        self.root = root
        self.peak_bytes = 0
        self.samples = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.is_set():
            self.peak_bytes = max(self.peak_bytes, memory_bytes(self.root))
            self.samples += 1
            self._stop.wait(self.INTERVAL_SECONDS)
