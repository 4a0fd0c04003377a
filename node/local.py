"""A cluster on this machine: each region a `meridian serve` of its own, detached, in a folder of its own.

`$MERIDIAN_DATA/<region>/` holds `meridian.toml` (written at each start), `meridian.log`, `meridian.pid`,
`meridian.lock`, `data/` and, in a cluster of several, `tls/`: all that a region's processes read. The process that
becomes the supervisor writes the pid file itself before it executes it, under the lock, so that there is no moment in
which a supervisor lives and is not on record. A pid is believed only if the process of that number was started with
this folder's configuration: a stale file is harmless, whoever has the number now.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from consensus import clock
from consensus.errors import InvalidName
from consensus.names import Region
from node.addresses import split_address
from node.config import ConfigError, load

DEFAULT_REGIONS = "eu,us,ap"
DEFAULT_BASE_PORT = "5100"
DEFAULT_DATA = "./.meridian"
MAX_REGIONS = 7  # as many members as a cluster has at most
LAST_RANGE = 300  # the four ranges of ports lie 100 apart
LOG_BYTES = 64 * 1024 * 1024
TAIL_BYTES = 4096
STOP_SECONDS = 18.0  # then SIGKILL: with all that follows `down` stays under the 30 s that are promised
KILL_SECONDS = 5.0
RELEASE_SECONDS = 5.0  # for the processes of a killed supervisor to let go of its ports
PROBE_SECONDS = 2.0
MAJORITY_SECONDS = 10.0  # in which a majority that is there is found, also on a busy machine
POLL_SECONDS = 0.05

_PLACE = re.compile(r"MERIDIAN_(NODE|LISTEN|CLUSTER)_.*")


class LocalError(Exception):
    """What the person at the terminal has to know, in one line (and the end of a log)."""


class RegionFolder:
    """One region's folder, and the supervisor that may run on it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "meridian.toml"
        self.log_file = path / "meridian.log"
        self.pid_file = path / "meridian.pid"

    @property
    def name(self) -> str:
        """The region."""
        return self.path.name

    def supervisor(self) -> int | None:
        """The pid of the supervisor that runs on this folder."""
        try:
            text = self.pid_file.read_text("ascii").strip()
            arguments = Path("/proc", str(int(text)), "cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return None
        return int(text) if {b"serve", os.fsencode(self.config_file)} <= set(arguments) else None

    @contextlib.contextmanager
    def turn(self, deadline: float) -> Iterator[None]:
        """Starting and stopping exclude each other. `deadline` is on the monotonic clock; raises LocalError."""
        with (self.path / "meridian.lock").open("ab") as file:
            while not _lock(file.fileno()):
                if clock.monotonic() > deadline:
                    raise LocalError(f"region {self.name}: another command is starting or stopping it")
                time.sleep(POLL_SECONDS)
            yield

    def tail(self, start: int = 0) -> str:
        """The end of the log, not further back than byte `start`."""
        size = self.log_bytes()
        with contextlib.suppress(OSError), self.log_file.open("rb") as file:
            file.seek(max(start if start <= size else 0, size - TAIL_BYTES))
            return file.read(TAIL_BYTES).decode("utf-8", "replace")
        return ""

    def log_bytes(self) -> int:
        """The length of the log; 0 where there is none."""
        try:
            return self.log_file.stat().st_size
        except OSError:
            return 0


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class LocalRegion:
    """The i-th region of the cluster, i from 1."""

    folder: RegionFolder
    index: int
    base_port: int

    @property
    def name(self) -> str:
        """The region."""
        return self.folder.name

    @property
    def member(self) -> str:
        """The name of its node."""
        return f"{self.name}-1"

    @property
    def address(self) -> str:
        """host:port of the registry."""
        return f"127.0.0.1:{self.base_port + self.index}"

    @property
    def admin(self) -> str:
        """host:port of /readyz and its kin."""
        return f"127.0.0.1:{self.base_port + 100 + self.index}"

    @property
    def peers(self) -> str:
        """host:port at which the other regions' keepers reach it."""
        return f"127.0.0.1:{self.base_port + 200 + self.index}"

    @property
    def transfers(self) -> str:
        """host:port at which the other regions fetch blobs."""
        return f"127.0.0.1:{self.base_port + 300 + self.index}"

    def start(self, environ: Mapping[str, str], membership: str = "") -> subprocess.Popen[bytes] | None:
        """Starts the supervisor, detached; None if it runs already. `membership` is the [cluster] section of its
        configuration, nothing where it stands alone. Raises LocalError, OSError."""
        self.folder.path.mkdir(parents=True, exist_ok=True)
        with self.folder.turn(clock.monotonic() + STOP_SECONDS + KILL_SECONDS):
            if self.folder.supervisor() is not None:
                self._require_same_ports()
                return None
            _await_free(self.address, self.admin, *((self.peers, self.transfers) if membership else ()))
            replace(self.folder.config_file, self._configuration() + membership)
            if self.folder.log_bytes() > LOG_BYTES:
                self.folder.log_file.replace(self.folder.log_file.with_suffix(".log.1"))
            return self._launch(environ)

    def ready(self) -> bool:
        """Whether /readyz answers 200."""
        return self.probe()[0] == http.HTTPStatus.OK

    def probe(self) -> tuple[int, dict[str, str]]:
        """The status of /readyz and what it found; 0 and nothing where nobody answers."""
        host, port = split_address(self.admin)
        connection = http.client.HTTPConnection(host, port, timeout=PROBE_SECONDS)
        try:
            connection.request("GET", "/readyz")
            answer = connection.getresponse()
            return answer.status, dict(json.loads(answer.read()))
        except (OSError, http.client.HTTPException, ValueError, TypeError):
            return 0, {}
        finally:
            connection.close()

    def _require_same_ports(self) -> None:
        with contextlib.suppress(OSError, ConfigError):
            runs_at = load(self.folder.config_file, {}).listen
            if (runs_at.address, runs_at.admin) != (self.address, self.admin):
                raise LocalError(
                    f"region {self.name} runs already, at {runs_at.address} and not at {self.address}: stop it first, "
                    "or set REGIONS and BASE_PORT as they were"
                )

    def _configuration(self) -> str:
        return f"""\
# Written by `meridian local` at each start: changes are lost.
[node]
region = "{self.name}"
name = "{self.member}"
data = "data"

[listen]
address = "{self.address}"
admin = "{self.admin}"
peers = "{self.peers}"
transfers = "{self.transfers}"

[registry]
delete_tags = true
delete_manifests = true
delete_blobs = true

[access]
policy = "open"

[supervisor]
drain_seconds = 10
"""

    def _launch(self, environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
        with self.folder.log_file.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "node.cli", "serve", "--config", str(self.folder.config_file)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder.path,
                env={name: value for name, value in environ.items() if not _PLACE.fullmatch(name)},
                start_new_session=True,
                preexec_fn=lambda: replace(self.folder.pid_file, f"{os.getpid()}\n"),
            )


def _await_free(*addresses: str) -> None:
    deadline = clock.monotonic() + RELEASE_SECONDS
    for address in addresses:
        while not _is_free(address):
            if clock.monotonic() > deadline:
                raise LocalError(f"{address} is in use by another program; choose another BASE_PORT")
            time.sleep(POLL_SECONDS)


def _is_free(address: str) -> bool:
    host, port = split_address(address)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen()
        except OSError:
            return False
    return True


def replace(path: Path, text: str) -> None:
    """The file has this text, or the one before."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(text, "utf-8")
    temporary.replace(path)


@dataclass(frozen=True, slots=True)
class Cluster:
    """The regions of this machine."""

    data: Path
    regions: tuple[LocalRegion, ...]

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Cluster:
        """From REGIONS, BASE_PORT and MERIDIAN_DATA; raises LocalError."""
        names = [name.strip() for name in environ.get("REGIONS", DEFAULT_REGIONS).split(",")]
        try:
            regions = [Region.parse(name) for name in names]
        except InvalidName as error:
            raise LocalError(f"REGIONS: {error.text!r}: {error.reason}") from error
        if len(set(regions)) != len(regions):
            raise LocalError("REGIONS: names a region twice")
        if len(regions) > MAX_REGIONS:
            raise LocalError(f"REGIONS: more than {MAX_REGIONS}")
        text = environ.get("BASE_PORT", DEFAULT_BASE_PORT)
        if not (text.isascii() and text.isdecimal()) or int(text[:6]) + LAST_RANGE + len(regions) > 65535:
            most = 65535 - LAST_RANGE - len(regions)
            raise LocalError(f"BASE_PORT: expected a whole number of at most {most}, got {text!r}")
        data = Path(environ.get("MERIDIAN_DATA") or DEFAULT_DATA).resolve()
        folders = [RegionFolder(data / str(region)) for region in regions]
        placed = tuple(LocalRegion(folder, i, int(text)) for i, folder in enumerate(folders, 1))
        return cls(data, placed)

    def region(self, name: str) -> LocalRegion:
        """Raises LocalError for one that REGIONS does not name."""
        for region in self.regions:
            if region.name == name:
                return region
        known = ", ".join(region.name for region in self.regions)
        raise LocalError(f"no region {name!r}; REGIONS names {known}")

    def folders(self) -> list[RegionFolder]:
        """Every region that was ever started in this data folder, whatever REGIONS says today."""
        return [RegionFolder(file.parent) for file in sorted(self.data.glob("*/meridian.pid"))]


def stop(folders: Sequence[RegionFolder]) -> list[str]:
    """Ends the supervisors, and with them all their processes, within 23 s: SIGTERM, later SIGKILL. Returns the regions
    that ran. Raises LocalError if another command holds one of them, or if a process outlives SIGKILL."""
    deadline = clock.monotonic() + STOP_SECONDS
    with contextlib.ExitStack() as turns:
        for folder in folders:
            turns.enter_context(folder.turn(deadline + KILL_SECONDS + 1))
        running = [folder for folder in folders if folder.supervisor() is not None]
        for number, limit in ((signal.SIGTERM, deadline), (signal.SIGKILL, deadline + KILL_SECONDS)):
            for folder in running:
                _signal(folder, number)
            while any(folder.supervisor() is not None for folder in running) and clock.monotonic() < limit:
                time.sleep(POLL_SECONDS)
    if left := [folder.name for folder in running if folder.supervisor() is not None]:
        raise LocalError(f"still running: {', '.join(left)}")
    return [folder.name for folder in running]


def _signal(folder: RegionFolder, number: signal.Signals) -> None:
    pid = folder.supervisor()
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def wait_started(region: LocalRegion, deadline: float, *, log_start: int) -> bool:
    """Waits until the region is ready (True), or has for MAJORITY_SECONDS been without a majority of the cluster and
    otherwise well (False). Raises as `wait_ready` does."""
    alone_since: float | None = None
    while True:
        status, checks = region.probe()
        if status == http.HTTPStatus.OK:
            return True
        others = [said for name, said in checks.items() if name in {"state", "keeper"}]
        if others != ["ok", "ok"]:
            alone_since = None
        elif alone_since is None:
            alone_since = clock.monotonic()
        elif clock.monotonic() - alone_since > MAJORITY_SECONDS:
            return False
        _check_starting(region, deadline, log_start)
        time.sleep(POLL_SECONDS)


def wait_ready(
    region: LocalRegion,
    deadline: float,
    *,
    log_start: int,
    pause: Callable[[], None] = lambda: time.sleep(POLL_SECONDS),
) -> None:
    """Waits for /readyz. Raises LocalError, with the end of the log, once the supervisor is gone or `deadline` (on the
    monotonic clock) has passed."""
    while not region.ready():
        _check_starting(region, deadline, log_start)
        pause()


def _check_starting(region: LocalRegion, deadline: float, log_start: int) -> None:
    gone = region.folder.supervisor() is None
    if gone or clock.monotonic() > deadline:
        why = "ended while it started" if gone else "not ready in time"
        tail = region.folder.tail(log_start).rstrip()
        raise LocalError(f"region {region.name}: {why}; {region.folder.log_file}:\n{tail}")
