"""Which processes live, and which descend from which, as /proc has it."""

from __future__ import annotations

from pathlib import Path


def descendants(pid: int) -> list[int]:
    """Children, grandchildren and so on."""
    try:
        threads = list(Path("/proc", str(pid), "task").iterdir())
        children = [int(child) for thread in threads for child in (thread / "children").read_text().split()]
    except OSError:
        return []
    return children + [each for child in children for each in descendants(child)]


def is_alive(pid: int) -> bool:
    """Whether it runs; one that has ended and waits for its parent does not."""
    try:
        return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except OSError:
        return False
