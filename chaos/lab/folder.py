"""The folder of a lab that commands control: who runs it, and what it has made.

`lab.json` says who runs the lab, from before anything is made until `down`; `lab.sock` is where that process takes
orders; `lab.log` is what a detached one prints; each region has a folder with its node's files. `lab.lock` is held as
long as the lab runs, and marks the folder as one that a new lab may empty.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from chaos.lab.errors import LabRefused
from chaos.lab.namespaces import remove_interfaces
from chaos.lab.remains import sweep

DEFAULT = Path(".meridian-lab")

_STOP_SECONDS = 20.0
_KILL_SECONDS = 5.0
_POLL_SECONDS = 0.05
_LONGEST_SOCKET = 107  # bytes of a Unix socket's path
_TAKEN = "a lab is up in {} already: `meridian lab down` ends it"
_STARTED = 19  # the field of /proc/PID/stat behind the name, that says when


class RegionRecord(msgspec.Struct, frozen=True):
    """Where a region's node listens, HOST:PORT, and the command in front of one that is to run there."""

    registry: str
    admin: str
    entry: tuple[str, ...]


class Record(msgspec.Struct, frozen=True):
    """Who runs a lab: the process and when it was started, in clock ticks since boot. `regions` is empty until there is
    a WAN; `ready` once every node has said that it is."""

    id: str
    pid: int
    started: int
    regions: dict[str, RegionRecord] = {}
    ready: bool = False

    @property
    def is_running(self) -> bool:
        """Whether that process lives."""
        return _started(self.pid) == self.started


class LabFolder:
    """One lab's folder, whether it runs or not."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.log = self.path / "lab.log"
        self.socket = self.path / "lab.sock"
        self._record = self.path / "lab.json"
        self._lock = self.path / "lab.lock"

    def record(self) -> Record | None:
        """Of the lab that runs, or was never taken down. Raises LabRefused for one that cannot be read."""
        try:
            return msgspec.json.decode(self._record.read_bytes(), type=Record)
        except FileNotFoundError:
            return None
        except msgspec.MsgspecError as error:
            raise LabRefused(f"{self._record} cannot be read: {error}") from error

    def running(self) -> Record:
        """Of the lab that runs. Raises LabRefused."""
        record = self.record()
        if record is None:
            raise LabRefused(f"no lab is up in {self.path}: `meridian lab up` starts one")
        if not record.is_running:
            raise LabRefused(f"the lab in {self.path} has died: `meridian lab down` clears up, `up` starts a new one")
        return record

    def prepare(self) -> None:
        """Makes the folder. Raises LabRefused if a lab runs in it, or if it holds something else."""
        if len(os.fsencode(self.socket)) > _LONGEST_SOCKET:
            raise LabRefused(f"{self.path}: the path is too long for the sockets in it")
        self.path.mkdir(parents=True, exist_ok=True)
        if not self._lock.exists() and any(path != self.log for path in self.path.iterdir()):
            raise LabRefused(f"{self.path} is not empty, and no lab made it: expected a folder for a lab alone")
        if (record := self.record()) and record.is_running:
            raise LabRefused(_TAKEN.format(self.path))

    @contextlib.contextmanager
    def hold(self, lab_id: str) -> Iterator[Record]:
        """This process's, emptied, while the context lasts. Raises LabRefused as `prepare` does."""
        self.prepare()
        with self._lock.open("ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LabRefused(_TAKEN.format(self.path)) from None
            self.clear()
            self._empty()
            record = Record(lab_id, os.getpid(), _started(os.getpid()))
            self.write(record)
            try:
                yield record
            finally:
                self._forget()

    def write(self, record: Record) -> None:
        """From now on it is so."""
        unfinished = self._record.with_suffix(".new")
        unfinished.write_bytes(msgspec.json.format(msgspec.json.encode(record)) + b"\n")
        unfinished.replace(self._record)

    def down(self) -> bool:
        """Ends the lab and every process that was started in it, within 32 s; whether there was one. Raises LabRefused
        if a process outlives SIGKILL."""
        record = self.record()
        if record is None:
            return False
        for number, seconds in ((signal.SIGTERM, _STOP_SECONDS), (signal.SIGKILL, _KILL_SECONDS)):
            deadline = time.monotonic() + seconds
            if record.is_running:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(record.pid, number)
            while record.is_running and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
        if record.is_running:
            raise LabRefused(f"process {record.pid} is still running")
        self.clear()
        return True

    def clear(self) -> None:
        """Ends what a lab that has died left behind."""
        if record := self.record():
            sweep(record.id)
            remove_interfaces(record.id)
            self._forget()

    def _forget(self) -> None:
        self.socket.unlink(missing_ok=True)
        self._record.unlink(missing_ok=True)

    def _empty(self) -> None:
        for path in self.path.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path not in {self._lock, self.log}:
                path.unlink()


def _started(pid: int) -> int:
    """0 if there is no such process, or if it only waits to be reaped."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if state == "Z" else int(fields[_STARTED - 1])
