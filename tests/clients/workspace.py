"""Running client programs in a home of their own, so that nothing of the machine is read or written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

TOOLS = Path(sys.prefix) / "tools/bin"
DEADLINE_SECONDS = 90.0
STORAGE = """
[storage]
driver = "vfs"
graphroot = "{root}/storage"
runroot = "{root}/run"
[storage.options.vfs]
ignore_chown_errors = "true"
"""
REGISTRIES = """
unqualified-search-registries = []
short-name-mode = "disabled"
[[registry]]
location = "{registry}"
insecure = true
"""
ENGINE = """
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
"""


def find(program: str) -> str:
    """The path of a client; skips the test by the client's name where it is not installed."""
    found = shutil.which(program, path=f"{TOOLS}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{program} is not installed")
    return found


@dataclass(frozen=True)
class Workspace:
    """A folder that is home to every client started in it, and the registry they talk to."""

    folder: Path
    registry: str  # host:port

    def __post_init__(self) -> None:
        containers = self.folder / ".config/containers"
        containers.mkdir(parents=True)
        (containers / "policy.json").write_text(json.dumps({"default": [{"type": "insecureAcceptAnything"}]}))
        (containers / "storage.conf").write_text(STORAGE.format(root=self.folder / "containers"))
        (containers / "registries.conf").write_text(REGISTRIES.format(registry=self.registry))
        (containers / "containers.conf").write_text(ENGINE)
        (self.folder / "auth.json").write_text("{}")

    @property
    def environment(self) -> dict[str, str]:
        """All that a client sees; proxies, credentials and settings of the machine are not in it."""
        containers = self.folder / ".config/containers"
        # For root, skopeo, podman and buildah keep what they learn of blobs in one place of the machine; this has
        # them keep it in the home, as they do for any other user.
        cache = {"_CONTAINERS_ROOTLESS_UID": "1000"} if os.geteuid() == 0 else {}
        return cache | {
            "PATH": f"{TOOLS}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(self.folder),
            "TMPDIR": str(self.folder),
            "LANG": "C.UTF-8",
            "XDG_CONFIG_HOME": str(self.folder / ".config"),
            "XDG_RUNTIME_DIR": str(self.folder),
            "DOCKER_CONFIG": str(self.folder / ".docker"),
            "REGISTRY_AUTH_FILE": str(self.folder / "auth.json"),
            "CONTAINERS_CONF": str(containers / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(containers / "storage.conf"),
            "CONTAINERS_REGISTRIES_CONF": str(containers / "registries.conf"),
            "CONTAINERD_SNAPSHOTTER": "native",
            "XDG_DATA_HOME": str(self.folder / ".local/share"),
        }

    def run(self, *command: str | Path, stdin: str | None = None) -> str:
        """Run a client to its end; its standard output, stripped. Fails with all it said unless it exits with 0."""
        done = self.attempt(*command, stdin=stdin)
        assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def attempt(self, *command: str | Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a client that may fail."""
        program, *arguments = map(str, command)
        return subprocess.run(
            [find(program), *arguments],
            cwd=self.folder,
            env=self.environment,
            input=stdin or "",
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECONDS,
            check=False,
        )
