"""A containerd of its own for a test, and `ctr` to speak to it."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from consensus import clock
from tests.clients.workspace import Workspace, find

START_SECONDS = 30.0
CONFIG = """
version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.overlayfs", "io.containerd.internal.v1.opt"]
[grpc]
  address = "{folder}/c.sock"
[ttrpc]
  address = "{folder}/t.sock"
"""

Ctr = Callable[..., str]


@pytest.fixture
def ctr(workspace: Workspace) -> Iterator[Ctr]:
    """`ctr` against a containerd of its own: a call returns all that it said."""
    find("ctr")
    # A Unix socket's path is bounded to 107 bytes; pytest's folders can be longer.
    with tempfile.TemporaryDirectory(prefix="ctr-") as folder:
        config = Path(folder, "config.toml")
        config.write_text(CONFIG.format(folder=folder))
        with Path(folder, "log").open("wb") as log:
            command = [find("containerd"), "--config", str(config)]
            daemon = subprocess.Popen(command, env=workspace.environment, stdout=log, stderr=log)

        def call(*arguments: str | Path) -> str:
            done = workspace.attempt("ctr", "--address", f"{folder}/c.sock", "--namespace=test", *arguments)
            assert done.returncode == 0, done.stderr
            return done.stdout + done.stderr

        try:
            await_start(daemon, workspace, folder)
            yield call
        finally:
            daemon.terminate()
            daemon.wait(timeout=START_SECONDS)


def await_start(daemon: subprocess.Popen[bytes], workspace: Workspace, folder: str) -> None:
    deadline = clock.monotonic() + START_SECONDS
    while workspace.attempt("ctr", "--address", f"{folder}/c.sock", "--connect-timeout=1s", "version").returncode:
        said = Path(folder, "log").read_text()
        assert daemon.poll() is None, said
        assert clock.monotonic() < deadline, said
