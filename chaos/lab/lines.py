"""The controlling end of the carrier: the process that carries packets, made from C where there is a compiler."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from chaos.lab.errors import LinesBroken
from chaos.lab.topology import Link, Pair

SOURCE = Path(__file__).with_name("carrier.c")

_COMPILE_SECONDS = 60.0
_ANSWER_SECONDS = 10.0
_CLOSE_SECONDS = 5.0
_ANSWER_BYTES = 32768


@dataclass(frozen=True, slots=True)
class Count:
    """What became of the packets sent one way. `packets` and `bytes` have arrived; `lost` were by chance or by a cut,
    `dropped` found the queue full. None where it is not known."""

    packets: int | None = None
    bytes: int | None = None
    lost: int | None = None
    dropped: int | None = None


@dataclass(frozen=True, slots=True)
class Port:
    """Where a region's packets come from and go to: a descriptor (TUN, or a datagram socket) and an IPv4 address."""

    descriptor: int
    address: str


def compiled(folder: Path) -> Path | None:
    """The carrier made from C, in this folder, made now if it is not there; None where there is no working compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    program = folder / f"carrier-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]}"
    if not program.exists():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = program.with_name(f"{program.name}.{os.getpid()}")
        command = [compiler, "-O2", "-o", str(unfinished), str(SOURCE)]
        done = subprocess.run(command, check=False, capture_output=True, timeout=_COMPILE_SECONDS)
        if done.returncode != 0:
            return None
        unfinished.replace(program)
    return program


class Lines:
    """A carrier between ports, while the context lasts; it also ends with the process that started it. All ways are cut
    until they are shaped. `program` is what `compiled` gave, None for the one in Python."""

    def __init__(self, ports: Mapping[str, Port], program: Path | None, *, seed: int = 1) -> None:
        self._ports = dict(ports)
        self._names = list(ports)
        self._command = [str(program)] if program else [sys.executable, str(SOURCE.with_suffix(".py"))]
        self._seed = seed
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    @property
    def pid(self) -> int:
        """Of the carrier."""
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> Self:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(_ANSWER_SECONDS)
        ports = [f"{port.descriptor}={port.address}" for port in self._ports.values()]
        with theirs:
            self._process = subprocess.Popen(
                [*self._command, str(theirs.fileno()), str(self._seed), *ports],
                pass_fds=[theirs.fileno(), *(port.descriptor for port in self._ports.values())],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # an interrupt from the terminal must reach the nodes that use it first
            )
        self._control = ours
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process is not None
        assert self._control is not None
        self._control.close()
        try:
            self._process.wait(_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def shape(self, pairs: Iterable[Pair], link: Link) -> None:
        """What is sent on these ways from now on travels so; what is under way keeps its time. Raises LinesBroken."""
        for source, sink in pairs:
            words = (
                self._names.index(source),
                self._names.index(sink),
                round(link.delay_ms * 1e6),
                round(link.jitter_ms * 1e6),
                round(link.loss * 2**32),
                max(1, round(link.bytes_per_second)),
                link.queue_bytes,
                int(link.cut),
            )
            answer = self._order(f"set {' '.join(map(str, words))}")
            if answer != "ok":
                raise LinesBroken(f"the carrier says {answer!r}")

    def counts(self) -> dict[Pair, Count]:
        """Since the start, for each way. Raises LinesBroken."""
        found = {}
        for line in self._order("count").splitlines():
            source, sink, *numbers = map(int, line.split())
            found[self._names[source], self._names[sink]] = Count(*numbers)
        return found

    def _order(self, order: str) -> str:
        assert self._control is not None
        answer = b""
        with contextlib.suppress(OSError):
            self._control.send(order.encode())
            answer = self._control.recv(_ANSWER_BYTES)
        if not answer:
            raise LinesBroken("the carrier does not answer")
        return answer.decode()
