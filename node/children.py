"""Processes that live no longer than the one that started them, and are started again when they die.

A child gets SIGKILL from the kernel when its parent dies (PDEATHSIG, set between fork and exec, so that there is no
moment without it). It is in a process group of its own: a Ctrl-C at the terminal is for the supervisor alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from signal import Signals
from typing import Self

from consensus import clock
from node import config, telemetry

KILL_SECONDS = 5.0

_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None, use_errno=True).prctl

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Program:
    """What to start: a module of this product with a standard input, descriptors and an environment. `ready_at` is the
    pipe's end on which it says that it is ready; `descriptors` hold its other end."""

    module: str
    name: str
    stdin: bytes
    descriptors: Sequence[int]
    environment: Mapping[str, str]


class Child:
    """One process. `exited` gives its exit status (as subprocess does: -9 for SIGKILL)."""

    def __init__(self, process: subprocess.Popen[bytes], descriptor: int) -> None:
        self.pid = process.pid
        self._process = process
        self._descriptor = descriptor
        self._loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[int] = self._loop.create_future()
        self._loop.add_reader(descriptor, self._reap)

    @classmethod
    def start(cls, program: Program) -> Self:
        """Raises OSError."""
        parent = os.getpid()
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", program.module, program.name],
            stdin=subprocess.PIPE,
            pass_fds=tuple(program.descriptors),
            env=dict(program.environment),
            process_group=0,
            preexec_fn=lambda: _die_with(parent),
        )
        assert process.stdin
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(program.stdin)
        return cls(process, os.pidfd_open(process.pid))

    def signal(self, number: signal.Signals) -> None:
        """Nothing happens if it has exited."""
        self._process.send_signal(number)

    async def stop(self, seconds: float, request: Signals = Signals.SIGTERM) -> int:
        """The request to end, and SIGKILL after `seconds`; returns the exit status."""
        self.signal(request)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                return await asyncio.shield(self.exited)
        log.warning("process_killed", extra={"pid": self.pid, "after_seconds": seconds})
        self.signal(signal.SIGKILL)
        return await asyncio.shield(self.exited)

    def _reap(self) -> None:
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)
        self.exited.set_result(self._process.wait())


def _die_with(parent: int) -> None:
    """Between fork and exec."""
    if _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0 or os.getppid() != parent:
        os._exit(1)


class Backoff:
    """Pauses before restarts: doubled by each failure in a row, from the first again once a process ran longer than the
    longest pause."""

    def __init__(self, timing: config.Supervisor) -> None:
        self._first = timing.restart_first_seconds
        self._most = timing.restart_most_seconds
        self._next = self._first

    def pause(self, ran_seconds: float) -> float:
        """Seconds to wait after a process that ran for so long."""
        if ran_seconds > self._most:
            self._next = self._first
        pause, self._next = self._next, min(2 * self._next, self._most)
        return pause


class Kept:
    """A process that is kept running until it is stopped. `make` gives the program for each start, with the descriptor
    on which the process will say that it is ready."""

    def __init__(self, kind: str, name: str, make: Callable[[int], Program], timing: config.Supervisor) -> None:
        self.kind = kind
        self.name = name
        self.ready = asyncio.Event()
        self.died = asyncio.Event()  # at least once
        self.child: Child | None = None
        self._make = make
        self._backoff = Backoff(timing)
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Until `stop`."""
        while not self._stopping.is_set():
            began = clock.monotonic()
            status = await self._run_once()
            self.died.set()
            if self._stopping.is_set():
                return
            pause = self._backoff.pause(clock.monotonic() - began)
            extra = {"child": self.name, "status": status, "restart_in_seconds": pause}
            log.warning("process_died", extra=extra)
            telemetry.metrics().restarts.labels(self.kind).inc()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stopping.wait()

    def retire(self) -> None:
        """From now on it is not started again."""
        self._stopping.set()

    async def stop(self, seconds: float, request: Signals = Signals.SIGTERM) -> None:
        """The request to end, and SIGKILL after `seconds`; it is not started again."""
        self.retire()
        if self.child:
            status = await self.child.stop(seconds, request)
            log.info("process_stopped", extra={"child": self.name, "pid": self.child.pid, "status": status})

    async def _run_once(self) -> int | None:
        """Returns the exit status; None if it could not even be started."""
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        loop = asyncio.get_running_loop()
        try:
            child = self.child = Child.start(self._make(writer))
        except OSError as error:
            log.error("process_not_started", extra={"child": self.name, "reason": str(error)})  # noqa: TRY400
            os.close(reader)
            return None
        finally:
            os.close(writer)
        log.info("process_started", extra={"child": self.name, "pid": child.pid})
        loop.add_reader(reader, self._hear, reader)
        try:
            return await child.exited
        finally:
            loop.remove_reader(reader)
            os.close(reader)
            self.ready.clear()
            telemetry.child_ended(child.pid)

    def _hear(self, reader: int) -> None:
        if os.read(reader, 1):
            self.ready.set()
        asyncio.get_running_loop().remove_reader(reader)
