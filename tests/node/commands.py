"""Runs `meridian` as a person does: a process of its own, with an environment of its own."""

from __future__ import annotations

import os
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
