"""One region's node under test: real processes on real files, started, killed all at once, and started again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from chaos.ports import free_addresses
from consensus.clock import monotonic

_PRODUCT = Path(__file__).resolve().parent.parent
_SERVE = "from node.cli import main; main()"
_POLL_SECONDS = 0.02
_KILL_SECONDS = 10.0
_LOG_TAIL_BYTES = 6000


class NodeRefused(Exception):
    """The node did not get ready: the message holds the end of its log."""


@dataclass(frozen=True, slots=True)
class RegionFolders:
    """Where a node lives: `data` may be on the lossy file system, `work` (configuration, log, sockets) must not be."""

    data: Path
    work: Path


@dataclass(frozen=True, slots=True)
class Settings:
    """What the configuration says beyond the addresses: more lines of three sections, and more sections."""

    node: str = "gateways = 2"
    listen: str = ""
    log: str = "segment_bytes = 65536\nkeep_bytes = 65536"  # small, so that rounds of seconds see them made and trimmed
    more: str = ""


_ALONE = Settings()


class RegionNode:
    """A node on two ports that stay the same from start to start: of loopback, unless `addresses` has those of the
    registry and of its admin side.

    `product` is the source tree it runs from (this one by default): so code with one fsync removed can be tested.
    `prefix` is a command that ends in executing another, such as that which enters a network namespace.
    """

    def __init__(
        self,
        folders: RegionFolders,
        *,
        product: Path = _PRODUCT,
        settings: Settings = _ALONE,
        addresses: Sequence[str] = (),
        prefix: Sequence[str] = (),
    ) -> None:
        self.folders = folders
        self.address, self.admin_address = addresses or free_addresses(2)
        self._product = product
        self._prefix = tuple(prefix)
        self._process: subprocess.Popen[bytes] | None = None
        folders.work.mkdir(parents=True, exist_ok=True)
        self._log = folders.work / "node.log"
        self._config = folders.work / "meridian.toml"
        self._config.write_text(self._configuration(settings))

    def start(self) -> None:
        """Returns at once; `wait_ready` tells when it serves."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MERIDIAN_")}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._prefix, sys.executable, "-c", _SERVE, "serve", "--config", str(self._config)],
                cwd=self._product,
                env=environment | {"PYTHONPATH": str(self._product)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    async def wait_ready(self, seconds: float = 30.0) -> None:
        """Until /readyz says so; raises NodeRefused when the node ends or takes longer."""
        assert self._process is not None
        deadline = monotonic() + seconds
        async with httpx.AsyncClient(timeout=5.0, trust_env=False) as client:
            while monotonic() < deadline:
                if self._process.poll() is not None:
                    raise NodeRefused(f"it ended with {self._process.returncode}: {self.log_tail()}")
                try:
                    response = await client.get(f"http://{self.admin_address}/readyz")
                except httpx.TransportError:
                    response = None
                if response is not None and response.status_code == 200:
                    return
                await asyncio.sleep(_POLL_SECONDS)
        raise NodeRefused(f"not ready within {seconds} s: {self.log_tail()}")

    def kill(self) -> None:
        """SIGKILL to every process of the node; returns when all are dead."""
        assert self._process is not None
        watched: dict[int, int] = {}
        try:
            # Stopped first, so that none sees another's death, or starts a child, before its own turn comes.
            while found := [pid for pid in self.pids() if pid not in watched]:
                watched |= {pid: descriptor for pid in found if (descriptor := _watch(pid)) is not None}
                for pid in found:
                    _signal(watched.get(pid), signal.SIGSTOP)
            for descriptor in watched.values():
                _signal(descriptor, signal.SIGKILL)
            _wait_dead(list(watched.values()))
        finally:
            for descriptor in watched.values():
                os.close(descriptor)
        self._process.wait(_KILL_SECONDS)
        self._process = None

    def freeze(self) -> None:
        """SIGSTOP to every process of the node: it is there, and does nothing until `thaw`."""
        frozen: set[int] = set()
        while found := set(self.pids()) - frozen:  # one that is not stopped yet may start another
            for pid in found:
                _tell(pid, signal.SIGSTOP)
            frozen |= found

    def thaw(self) -> None:
        """SIGCONT to every process of the node."""
        for pid in self.pids():
            _tell(pid, signal.SIGCONT)

    def stop(self, seconds: float = 30.0) -> int:
        """SIGTERM, as an operator would; returns the exit status."""
        assert self._process is not None
        self._process.terminate()
        status = self._process.wait(seconds)
        self._process = None
        return status

    def pids(self) -> list[int]:
        """Every process of the node, its supervisor first; none if it does not run."""
        return list(_family(self._process.pid)) if self._process else []

    @property
    def runtime(self) -> Path:
        """The folder of its sockets."""
        return self.folders.work / "run"

    def events(self, name: str) -> int:
        """How often it has logged that event, over all starts."""
        return len(re.findall(rf'"event": ?"{name}"'.encode(), self._log.read_bytes()))

    @property
    def first_kept(self) -> int:
        """The first entry of its log, as its files are named; 0 while there is none."""
        return min((int(file.stem) for file in (self.folders.data / "wal").glob("*.log")), default=0)

    @property
    def is_running(self) -> bool:
        """Whether its supervisor lives."""
        return self._process is not None and self._process.poll() is None

    def log_tail(self) -> str:
        """The end of what it wrote to its log."""
        with self._log.open("rb") as log:
            log.seek(max(0, self._log.stat().st_size - _LOG_TAIL_BYTES))
            return log.read().decode(errors="replace")

    def _configuration(self, settings: Settings) -> str:
        return f"""\
[node]
data = "{self.folders.data}"
runtime = "{self.runtime}"
{settings.node}
[listen]
address = "{self.address}"
admin = "{self.admin_address}"
{settings.listen}
[log]
{settings.log}
[telemetry]
access_log = false
{settings.more}
"""


def _family(pid: int) -> Iterator[int]:
    """The process and all that descend from it."""
    children = _children(pid)
    if children is None:
        return
    yield pid
    for child in children:
        yield from _family(child)


def _children(pid: int) -> list[int] | None:
    """None if the process is gone. Where one of its threads ends meanwhile all are looked at again: that one's children
    are another's from then on."""
    threads = Path(f"/proc/{pid}/task")
    while threads.exists():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            return [int(child) for each in threads.iterdir() for child in (each / "children").read_text().split()]
    return None


def _watch(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def _signal(descriptor: int | None, number: int) -> None:
    if descriptor is not None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, number)


def _tell(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _wait_dead(descriptors: list[int]) -> None:
    deadline = monotonic() + _KILL_SECONDS
    for descriptor in descriptors:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        if not poll.poll(max(0.0, deadline - monotonic()) * 1000):
            raise RuntimeError("a process survived SIGKILL")
