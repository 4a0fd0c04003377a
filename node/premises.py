"""What a running node has to itself on its machine: its data folder, its runtime folder, its listening sockets."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from consensus import clock, disk
from node.addresses import split_address
from node.config import Config, check_exposure
from node.identity import Identity
from node.launch import METRICS_FOLDER, SOCKETS

BACKLOG = 4096
WAIT_SECONDS = 10.0
MAX_SOCKET_PATH_BYTES = 100
MAX_DATA_PATH_BYTES = 440  # SQLite takes paths of 512, and its files lie below

_POLL_SECONDS = 0.05
_CONGESTION_CONTROLS = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")


class PremisesRefused(Exception):
    """Somebody else is there, or it is not safe; the message says who and what."""


@dataclass(frozen=True, slots=True)
class Premises:
    """`registry`, `admin` and `transfers` listen already; nobody accepts yet. A node alone has no `transfers`."""

    identity: Identity
    runtime: Path
    registry: socket.socket
    admin: socket.socket
    transfers: socket.socket | None = None


@contextlib.contextmanager
def occupied(config: Config) -> Iterator[Premises]:
    """Everything a node needs before it starts processes; given back behind the block. Raises PremisesRefused,
    IdentityRefused, ConfigError, OSError."""
    check_exposure(config)
    if len(os.fsencode(os.path.realpath(config.data))) > MAX_DATA_PATH_BYTES:
        raise PremisesRefused(f"{config.data}: the path of the data folder has at most {MAX_DATA_PATH_BYTES} bytes")
    with contextlib.ExitStack() as stack:
        make_folder(config.data)
        stack.enter_context(_locked(config.data / "lock"))
        identity = Identity.of(config)
        runtime = runtime_folder(config)
        _prepare_runtime(runtime)
        stack.callback(shutil.rmtree, runtime / METRICS_FOLDER, ignore_errors=True)
        registry = stack.enter_context(_listening(config.listen.address))
        admin = stack.enter_context(_listening(config.listen.admin))
        alone = not config.cluster.members
        transfers = None if alone else stack.enter_context(_listening(config.listen.transfers))
        if transfers and config.cluster.congestion_control:
            _control_congestion(transfers, config.cluster.congestion_control)
        yield Premises(identity, runtime, registry, admin, transfers)


def make_folder(path: Path) -> None:
    """Makes it with its parents, durably, for the owner alone. Raises OSError."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    found = missing[-1].parent if missing else path
    with contextlib.suppress(PermissionError):  # then it was not made by this user
        # A predecessor may have been killed after it made this one and before it synced it; there is at most one such.
        disk.sync_folder(found.parent)
    for folder in reversed(missing):
        folder.mkdir(mode=0o700, exist_ok=True)
        disk.sync_folder(folder.parent)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One supervisor for one data folder; the file holds its pid. A predecessor that is just dying is waited for."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with open(descriptor, "r+", encoding="ascii", errors="replace") as file:
        deadline = clock.monotonic() + WAIT_SECONDS
        while not _try_lock(descriptor):
            if clock.monotonic() > deadline:
                file.seek(0)
                raise PremisesRefused(f"{path.parent} is in use by the node with pid {file.read(20).strip() or '?'}")
            time.sleep(_POLL_SECONDS)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def runtime_folder(config: Config) -> Path:
    """As configured; else `<data>/run`; else, where a socket cannot have such a path, one under /tmp."""
    if config.node.runtime:
        return Path(config.node.runtime)
    folder = config.data / "run"
    if _holds_sockets(folder):
        return folder
    name = hashlib.sha256(os.fsencode(config.data)).hexdigest()[:16]
    # Not tempfile's folder: it has to be found again, and it is checked to be ours alone.
    return Path(f"/tmp/meridian-{os.geteuid()}-{name}")  # noqa: S108


def _prepare_runtime(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if folder.is_symlink() or found.st_uid != os.geteuid():
        raise PremisesRefused(f"{folder} has to be a folder of the user that runs the node")
    folder.chmod(0o700)
    for name in SOCKETS:
        (folder / name).unlink(missing_ok=True)
    if not _holds_sockets(folder):
        raise PremisesRefused(
            f"{folder}: a socket's path has at most {MAX_SOCKET_PATH_BYTES} bytes, none of them a comma"
        )


def _holds_sockets(folder: Path) -> bool:
    """gRPC takes a comma, however it is written, for the end of one address and the start of the next."""
    path = os.fsencode(folder / max(SOCKETS, key=len))
    return len(path) <= MAX_SOCKET_PATH_BYTES and b"," not in path


@contextlib.contextmanager
def _listening(address: str) -> Iterator[socket.socket]:
    """Processes of a predecessor that was killed may hold the port for a moment more."""
    host, port = split_address(address)
    family, kind, protocol, _, place = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
    )[0]
    deadline = clock.monotonic() + WAIT_SECONDS
    with socket.socket(family, kind, protocol) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        while True:
            try:
                listener.bind(place)
                break
            except OSError as error:
                if error.errno != errno.EADDRINUSE or clock.monotonic() > deadline:
                    raise PremisesRefused(f"cannot listen on {address}: {error.strerror}") from error
                time.sleep(_POLL_SECONDS)
        listener.listen(BACKLOG)
        yield listener


def _control_congestion(listener: socket.socket, algorithm: str) -> None:
    """For every connection that it accepts."""
    try:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, algorithm.encode())
    except OSError as error:
        with contextlib.suppress(OSError):
            available = _CONGESTION_CONTROLS.read_text("ascii").split()
            raise PremisesRefused(
                f"[cluster] congestion_control: {algorithm} cannot be had here ({error.strerror}); allowed are "
                f"{', '.join(available)}"
            ) from error
        raise PremisesRefused(f"[cluster] congestion_control: {algorithm}: {error.strerror}") from error


def address_of(listener: socket.socket) -> str:
    """host:port that a socket is bound to."""
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
