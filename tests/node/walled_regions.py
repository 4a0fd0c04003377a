"""Three real regions on this machine, each behind walls: its processes see nothing of the others' folders."""

from __future__ import annotations

import concurrent.futures
import os
import shlex
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from chaos.ports import free_base_port
from node.local import Cluster, stop
from tests.node.commands import MERIDIAN, clean_environment
from tests.node.running import digest_of, eventually

PLAIN = "application/vnd.example.plain"
EU, US, AP = range(3)
READY_SECONDS = 60.0
SHORT_LOG = {"MERIDIAN_LOG_SEGMENT_BYTES": "65536", "MERIDIAN_LOG_KEEP_BYTES": "65536"}
_WALLS = ("unshare", "--mount") if os.geteuid() == 0 else ("unshare", "--mount", "--map-root-user")


def walls_can_be_built() -> bool:
    """Whether this user may have mounts of its own."""
    try:
        return (
            subprocess.run(
                [*_WALLS, "mount", "-t", "tmpfs", "none", "/mnt"], check=False, capture_output=True
            ).returncode
            == 0
        )
    except FileNotFoundError:
        return False


class Regions:
    """Three regions on this machine, and a client of each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.variables = {
            "MERIDIAN_DATA": str(folder / "data"),
            "BASE_PORT": str(free_base_port()),
            **SHORT_LOG,
        }
        self.cluster = Cluster.from_environment(self.variables)
        self.walled = walls_can_be_built()
        self.clients = [
            httpx.Client(base_url=f"http://{region.address}", timeout=30, trust_env=False)
            for region in self.cluster.regions
        ]

    def start(self, *regions: int) -> None:
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            for _ in pool.map(self._start, regions):
                pass
        eventually(lambda: all(self.cluster.regions[region].ready() for region in regions), READY_SECONDS)

    def _start(self, region: int) -> None:
        chosen = self.cluster.regions[region]
        command = [*MERIDIAN, "local", "start", chosen.name]
        if self.walled:
            others = [each.folder.path for each in self.cluster.regions if each != chosen]
            for folder in others:
                folder.mkdir(parents=True, exist_ok=True)
            hidden = "".join(f"mount -t tmpfs -o mode=000,ro none {shlex.quote(str(each))} && " for each in others)
            command = [*_WALLS, "sh", "-c", f"{hidden}exec {shlex.join(command)}"]
        answer = subprocess.run(
            command,
            cwd=self.folder,
            env=clean_environment(self.variables),
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert answer.returncode == 0, answer

    def close(self) -> None:
        """Ends all of it."""
        stop(self.cluster.folders())
        for client in self.clients:
            client.close()

    def kill(self, region: int) -> None:
        pid = self.cluster.regions[region].folder.supervisor()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: self.cluster.regions[region].folder.supervisor() is None)

    def status(self, region: int) -> dict[str, object]:
        answer = httpx.get(f"http://{self.cluster.regions[region].admin}/meridian/v1/status", trust_env=False)
        return dict(answer.raise_for_status().json())

    def steward(self) -> int:
        """Who leads."""
        names = [region.member for region in self.cluster.regions]
        found = eventually(lambda: next((s for r in (EU, US, AP) if (s := self.status(r)["steward"])), None))
        return names.index(found)

    def push(self, region: int, content: bytes, reference: str = "v1", repository: str = "team/app") -> str:
        answer = self.put(region, content, reference, repository)
        assert answer.status_code == 201, answer.text
        return digest_of(content)

    def put(
        self, region: int, content: bytes, reference: str = "v1", repository: str = "team/app", **headers: str
    ) -> httpx.Response:
        return self.clients[region].put(
            f"/v2/{repository}/manifests/{reference}", content=content, headers={"content-type": PLAIN, **headers}
        )

    def get(self, region: int, reference: str = "v1", repository: str = "team/app") -> bytes | None:
        """The manifest, None if there is none; nothing but these two is an answer."""
        answer = self.clients[region].get(f"/v2/{repository}/manifests/{reference}")
        assert answer.status_code in {200, 404}, answer.text
        return answer.content if answer.status_code == 200 else None


@contextmanager
def walled_regions(folder: Path) -> Iterator[Regions]:
    """All three, ready; they end with the block."""
    made = Regions(folder)
    try:
        made.start(EU, US, AP)
        yield made
    finally:
        made.close()
