"""Starting and ending the servers that are measured: each on a free loopback port, with its data in a given folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from chaos.ports import free_ports
from consensus import clock

START_SECONDS = 60.0
STOP_SECONDS = 40.0
PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])

MERIDIAN = """
[node]
data = "{folder}/data"
[listen]
address = "127.0.0.1:{port}"
admin = "127.0.0.1:{admin}"
peers = "127.0.0.1:{peers}"
"""
DOCKER_REGISTRY = """
version: 0.1
log: {{level: info, accesslog: {{disabled: false}}}}
storage:
  filesystem: {{rootdirectory: {folder}/data}}
  cache: {{blobdescriptor: inmemory}}
  delete: {{enabled: true}}
http: {{addr: "127.0.0.1:{port}"}}
"""
NGINX = """
daemon off;
worker_processes auto;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  sendfile on;
  tcp_nopush on;
  keepalive_requests 100000000;
  default_type application/octet-stream;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{ listen 127.0.0.1:{port}; root {folder}/data; }}
}}
"""


class ServerMissing(Exception):
    """A server's program is not installed."""


class ServerFailed(Exception):
    """A server did not start or ended early; holds the end of its log."""


@dataclass(frozen=True)
class Server:
    """A running server: host:port, the pid that all its processes descend from, and the folder of its data and log."""

    name: str
    version: str
    address: str
    pid: int
    folder: Path


def program(name: str) -> str:
    """The path of an installed program; raises ServerMissing."""
    if found := shutil.which(name, path=PATH):
        return found
    raise ServerMissing(f"{name} is not installed (.ci/install-clients installs it)")


def version(*command: str) -> str:
    """The first line a program says about its version."""
    said = subprocess.run(command, capture_output=True, text=True, timeout=START_SECONDS, check=False)
    return (said.stdout + said.stderr).strip().splitlines()[0]


@contextmanager
def meridian(folder: Path) -> Iterator[Server]:
    """One node with the product's defaults, access log included."""
    port, admin, peers = free_ports(3)
    config = folder / "meridian.toml"
    config.write_text(MERIDIAN.format(folder=folder, port=port, admin=admin, peers=peers))
    executable = str(Path(sys.executable).parent / "meridian")
    command = [executable, "serve", "--config", str(config)]
    with running(command, folder, f"http://127.0.0.1:{admin}/readyz") as pid:
        yield Server("meridian", version(executable, "version"), f"127.0.0.1:{port}", pid, folder)


@contextmanager
def docker_registry(folder: Path) -> Iterator[Server]:
    """Debian's docker-registry with its file system driver and in-memory cache."""
    (port,) = free_ports(1)
    config = folder / "config.yml"
    config.write_text(DOCKER_REGISTRY.format(folder=folder, port=port))
    executable = program("docker-registry")
    with running([executable, "serve", str(config)], folder, f"http://127.0.0.1:{port}/v2/") as pid:
        yield Server("docker-registry", version(executable, "--version"), f"127.0.0.1:{port}", pid, folder)


@contextmanager
def nginx(folder: Path) -> Iterator[Server]:
    """nginx with sendfile, serving `folder`/data as it lies there."""
    (port,) = free_ports(1)
    (folder / "data").mkdir()
    (folder / "data/index.html").write_text("up")
    folder.chmod(0o755)
    config = folder / "nginx.conf"
    config.write_text(("user root;" if os.geteuid() == 0 else "") + NGINX.format(folder=folder, port=port))
    executable = program("nginx")
    command = [executable, "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(config)]
    with running(command, folder, f"http://127.0.0.1:{port}/") as pid:
        yield Server("nginx", version(executable, "-v"), f"127.0.0.1:{port}", pid, folder)


@contextmanager
def running(command: Sequence[str], folder: Path, ready: str) -> Iterator[int]:
    """A process from the moment its `ready` address answers until the block ends; yields its pid.

    Raises ServerFailed when it does not answer in time or is gone at the end.
    """
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        _await(process, folder, ready)
        yield process.pid
        if process.poll() is not None:
            raise ServerFailed(_ending(folder))
    finally:
        _end(process)


def _await(process: subprocess.Popen[bytes], folder: Path, ready: str) -> None:
    deadline = clock.monotonic() + START_SECONDS
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        try:
            with opener.open(ready, timeout=1):
                return
        except (urllib.error.URLError, OSError):
            if process.poll() is not None or clock.monotonic() > deadline:
                raise ServerFailed(_ending(folder)) from None
            time.sleep(0.05)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _ending(folder: Path) -> str:
    return "\n".join((folder / "log").read_text(errors="replace").splitlines()[-20:])
