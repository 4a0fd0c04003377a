"""`meridian local up` and `down`: the cluster as one thing in the foreground of a terminal.

`up` watches and says what it sees; it never restarts a region, and it lives on when all of them are down. It holds
`$MERIDIAN_DATA/up.pid` locked for as long as it runs, so that `down` can find it; if it is killed, the regions live on.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType

from consensus import clock
from node.local import KILL_SECONDS, POLL_SECONDS, Cluster, LocalError, LocalRegion, stop, wait_ready
from node.local_members import Members

READY_SECONDS = 240.0
WATCH_SECONDS = 1.0
CLAIM_SECONDS = 2.0
Say = Callable[[str], None]


class _Stopped(Exception):
    """A signal asked `up` to end."""


class _Signals:
    """SIGTERM, SIGINT and SIGHUP set `stopped`; these and the end of a child cut a wait short. Nothing is ever thrown
    into running code, so that a second signal disturbs a stop no more than a first one does a start."""

    def __init__(self) -> None:
        self.stopped = False
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._handlers = {number: signal.signal(number, self._stop) for number in _STOPPING}
        self._handlers[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda number, frame: None)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stopped = True

    def wait(self, seconds: float) -> None:
        """Returns at a signal, or after `seconds`."""
        if select.select([self._reader], [], [], seconds)[0]:
            with contextlib.suppress(BlockingIOError):
                os.read(self._reader, 4096)

    def close(self) -> None:
        signal.set_wakeup_fd(self._before)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        os.close(self._reader)
        os.close(self._writer)


_STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def up(cluster: Cluster, environ: Mapping[str, str], say: Say) -> None:
    """Starts or adopts the regions, says "ready", stays until a signal or `down`, and ends every region. Raises
    LocalError if a region does not become ready; those that were started here are stopped then."""
    cluster.data.mkdir(parents=True, exist_ok=True)
    signals = _Signals()
    try:
        with _claim(cluster.data):
            _Foreground(cluster, signals, say).run(environ)
    finally:
        signals.close()


class _Foreground:
    def __init__(self, cluster: Cluster, signals: _Signals, say: Say) -> None:
        self._cluster = cluster
        self._signals = signals
        self._say = say
        self._members = Members.of(cluster)
        self._children: list[subprocess.Popen[bytes]] = []

    def run(self, environ: Mapping[str, str]) -> None:
        started: list[LocalRegion] = []
        try:
            self._start(environ, started)
            self._watch()
        except _Stopped:
            pass
        except BaseException:
            stop([region.folder for region in started])
            raise
        self._say("stopping")
        stop(self._cluster.folders())
        self._say("stopped")

    def _start(self, environ: Mapping[str, str], started: list[LocalRegion]) -> None:
        began = clock.monotonic()
        log_starts: dict[str, int] = {}
        for region in self._members.regions:
            self._check_signal()
            log_starts[region.name] = region.folder.log_bytes()
            child = region.start(environ, self._members.section(region))
            if child is not None:
                self._children.append(child)
                started.append(region)
            verb = "runs already" if child is None else "starts"
            pid = region.folder.supervisor()
            self._say(f"region {region.name}: {verb}, pid {pid}, http://{region.address}, admin http://{region.admin}")
        for region in self._members.left_out:
            self._say(f"region {region.name}: {self._members.advice}")
        for region in self._members.regions:
            wait_ready(region, began + READY_SECONDS, log_start=log_starts[region.name], pause=self._pause)
        self._say(f"ready after {clock.monotonic() - began:.1f} s; Ctrl-C or `meridian local down` ends it")

    def _pause(self) -> None:
        self._signals.wait(POLL_SECONDS)
        self._reap()
        self._check_signal()

    def _check_signal(self) -> None:
        if self._signals.stopped:
            raise _Stopped

    def _reap(self) -> None:
        self._children = [child for child in self._children if child.poll() is None]

    def _watch(self) -> None:
        seen = {region.name: region.folder.supervisor() for region in self._members.regions}
        while not self._signals.stopped:
            self._signals.wait(WATCH_SECONDS)
            self._reap()
            for region in self._members.regions:
                pid = region.folder.supervisor()
                if pid != seen[region.name]:
                    seen[region.name] = pid
                    advice = f"`meridian local start {region.name}` starts it again"
                    self._say(f"region {region.name}: " + (f"runs, pid {pid}" if pid else f"down; {advice}"))


@contextlib.contextmanager
def _claim(data: Path) -> Iterator[None]:
    deadline = clock.monotonic() + CLAIM_SECONDS
    with (data / "up.pid").open("a+b") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if clock.monotonic() > deadline:
                    raise LocalError(f"another `meridian local up` runs on {data}") from error
                time.sleep(POLL_SECONDS)
        file.truncate(0)
        file.write(f"{os.getpid()}\n".encode())
        file.flush()
        yield
        file.truncate(0)


def foreground(data: Path) -> int | None:
    """The pid of the `up` that runs on this data folder."""
    with contextlib.suppress(OSError, ValueError), (data / "up.pid").open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(file.read(16))
    return None


def down(cluster: Cluster) -> list[str]:
    """Ends every region of the data folder and an `up` in the foreground, within 30 s; returns the regions that ran.
    Raises LocalError."""
    terminal = foreground(cluster.data)
    names = [folder.name for folder in cluster.folders() if folder.supervisor() is not None]
    _kill(terminal, signal.SIGTERM)
    stop(cluster.folders())
    deadline = clock.monotonic() + KILL_SECONDS
    while (left := foreground(cluster.data)) is not None and left == terminal:
        if clock.monotonic() > deadline:
            _kill(left, signal.SIGKILL)
            break
        time.sleep(POLL_SECONDS)
    return names


def _kill(pid: int | None, number: signal.Signals) -> None:
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
