"""Runs `meridian` as a person does: a process of its own, with an environment of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

MERIDIAN = [sys.executable, "-P", "-m", "node.cli"]


def clean_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without what `meridian` would read from it."""
    ours = ("MERIDIAN_", "REGIONS", "BASE_PORT", "PROMETHEUS_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)} | dict(extra)


def meridian(*arguments: str, cwd: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    """What the command printed, and its exit code."""
    return subprocess.run(
        [*MERIDIAN, *arguments],
        cwd=cwd,
        env=clean_environment(extra),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def files_of(folder: Path) -> dict[str, bytes]:
    """What lies directly in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def free_base_port() -> int:
    """A BASE_PORT whose ports of the first three regions are free at this moment, below those given out by port 0."""
    for base in range(21000 + os.getpid() % 500 * 10, 32000, 10):
        if all(_is_free(base + hundred + i) for hundred in (0, 100, 200, 300) for i in (1, 2, 3)):
            return base
    raise AssertionError("no free ports")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
