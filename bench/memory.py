"""Memory while many clients pull and push large blobs at once."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection

from bench import load
from bench.cases import REPOSITORY
from bench.load import Content
from bench.processes import MemoryWatch, cpu_seconds, memory_bytes
from bench.servers import Server
from consensus import clock

CLIENTS = 16
SETTLE_SECONDS = 2.0
ALLOWED_BYTES = 100_000_000


@dataclass(frozen=True)
class MemoryUse:
    """PSS of all the server's processes: before any request, and at most while `clients` pulled and as many pushed."""

    server: str
    clients: int
    blob_bytes: int
    idle_bytes: int
    peak_bytes: int
    samples: int
    seconds: float
    cpu_seconds: float

    @property
    def grown_bytes(self) -> int:
        """The peak above idle."""
        return self.peak_bytes - self.idle_bytes


def contents(blob_bytes: int) -> tuple[Content, list[Content]]:
    """The blob that every client pulls, and the distinct ones that are pushed meanwhile."""
    with ThreadPoolExecutor(4) as pool:
        pulled, *pushed = pool.map(lambda n: Content.of(f"memory {n}", blob_bytes), range(CLIENTS + 1))
    return pulled, pushed


def observe(server: Server, pulled: Content, pushed: list[Content]) -> MemoryUse:
    """All clients pull one blob while as many push a blob each; the server must be fresh."""
    time.sleep(SETTLE_SECONDS)
    idle = memory_bytes(server.pid)
    with closing(load.connect(server.address)) as connection:
        load.upload(connection, REPOSITORY, pulled)
    before, started = cpu_seconds(server.pid), clock.monotonic()

    def pull(connection: HTTPConnection, content: Content) -> None:
        load.download(connection, REPOSITORY, content)

    def push(connection: HTTPConnection, content: Content) -> None:
        load.upload(connection, REPOSITORY, content)

    with MemoryWatch(server.pid) as watch, ThreadPoolExecutor(2) as pool:
        pulls = pool.submit(load.at_once, server.address, [pulled] * CLIENTS, pull, clients=CLIENTS)
        load.at_once(server.address, pushed, push, clients=CLIENTS)
        pulls.result()
    return MemoryUse(
        server=server.name,
        clients=CLIENTS,
        blob_bytes=pulled.size_bytes,
        idle_bytes=idle,
        peak_bytes=watch.peak_bytes,
        samples=watch.samples,
        seconds=clock.monotonic() - started,
        cpu_seconds=cpu_seconds(server.pid) - before,
    )
