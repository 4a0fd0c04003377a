"""A node as its operator has it: `meridian serve` on a folder, its log, its addresses."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from chaos.ports import free_ports
from tests.node.commands import MERIDIAN, clean_environment
from tests.node.descent import descendants, is_alive

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG = """
[node]
region = "eu"
gateways = {gateways}
[listen]
address = "127.0.0.1:{port}"
admin = "127.0.0.1:{admin}"
[supervisor]
drain_seconds = 10
restart_most_seconds = 1
"""


def eventually(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    """What the condition returns once it is true; fails after so long."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)
    return result


@dataclass
class RunningNode:
    """`settings` are appended to the configuration."""

    folder: Path
    gateways: int = 2
    settings: str = ""
    port: int = field(default_factory=lambda: free_ports(1)[0])
    admin_port: int = field(default_factory=lambda: free_ports(1)[0])
    process: subprocess.Popen[bytes] | None = None
    _log_start: int = field(default=0)

    @property
    def config_file(self) -> Path:
        return self.folder / "meridian.toml"

    def configure(self, settings: str = "") -> None:
        """Writes the file."""
        text = CONFIG.format(gateways=self.gateways, port=self.port, admin=self.admin_port)
        self.config_file.write_text(text + self.settings + settings)

    def start(self, *, wait: bool = True) -> None:
        self.configure()
        self._log_start = len(self.log_bytes())
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*MERIDIAN, "serve", "--config", str(self.config_file)],
                cwd=self.folder,
                env=clean_environment({}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        if wait:
            self.wait_for("node_serving")

    def log_bytes(self) -> bytes:
        path = self.folder / "log"
        return path.read_bytes() if path.exists() else b""

    def events(self, name: str) -> list[dict[str, Any]]:
        """The lines of that event since the last start; one that is just being written does not count yet."""
        lines = self.log_bytes()[self._log_start :].rpartition(b"\n")[0].splitlines()
        return [line for line in (json.loads(line) for line in lines if line.startswith(b"{")) if line["event"] == name]

    def wait_for(self, event: str, count: int = 1) -> dict[str, Any]:
        """The count-th line of an event."""
        try:
            return eventually(lambda: self.events(event)[count - 1 : count])[0]  # type: ignore[no-any-return]
        except AssertionError:
            raise AssertionError(f"no {event}: {self.log_bytes().decode(errors='replace')[-4000:]}") from None

    @property
    def pid(self) -> int:
        assert self.process
        return self.process.pid

    def children(self) -> list[int]:
        return descendants(self.pid)

    def child(self, name: str) -> int:
        """The pid of the newest process of that name."""
        pids = [line["pid"] for line in self.events("process_started") if line["child"] == name]
        return int(pids[-1])

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        assert self.process
        self.process.terminate()
        return self.process.wait(30)

    def kill(self) -> list[int]:
        """SIGKILL to the supervisor alone; returns what were its children."""
        assert self.process
        children = self.children()
        self.process.kill()
        self.process.wait(10)
        return children

    @contextmanager
    def client(self) -> Iterator[httpx.Client]:
        with httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30, trust_env=False) as client:
            yield client

    def admin(self, path: str) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self.admin_port}{path}", timeout=10, trust_env=False)


@contextmanager
def running(folder: Path, *, gateways: int = 2, settings: str = "") -> Iterator[RunningNode]:
    """A started node; nothing of it is left behind."""
    node = RunningNode(folder, gateways, settings)
    try:
        node.start()
        yield node
    finally:
        if node.process and node.process.poll() is None:
            children = node.kill()
            eventually(lambda: not any(map(is_alive, children)))


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def push_blob(client: httpx.Client, content: bytes, repository: str = "team/app") -> str:
    location = client.post(f"/v2/{repository}/blobs/uploads/").raise_for_status().headers["location"]
    digest = digest_of(content)
    answer = client.put(location, params={"digest": digest}, content=content)
    assert answer.status_code == 201, answer.text
    return digest


def push_image(client: httpx.Client, tag: str, repository: str = "team/app") -> bytes:
    """Returns the manifest."""
    config, layer = json.dumps({"tag": tag}).encode(), tag.encode() * 100
    for blob in (config, layer):
        push_blob(client, blob, repository)

    def descriptor(media_type: str, content: bytes) -> dict[str, Any]:
        return {"mediaType": media_type, "digest": digest_of(content), "size": len(content)}

    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": descriptor("application/vnd.oci.image.config.v1+json", config),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", layer)],
        }
    ).encode()
    answer = client.put(f"/v2/{repository}/manifests/{tag}", content=manifest, headers={"content-type": MANIFEST_TYPE})
    assert answer.status_code == 201, answer.text
    return manifest
