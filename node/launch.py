"""What the supervisor tells a process it starts: one JSON document on its standard input.

The configuration travels in it, as parsed: a child never reads the file, which may have been changed or broken since.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Self

import msgspec

from node.config import Config

KEEPER_SOCKET = "keeper.sock"
REPLICATOR_SOCKET = "blobs.sock"  # no longer than the other: a path has only so much room
SOCKETS = (KEEPER_SOCKET, REPLICATOR_SOCKET)
METRICS_FOLDER = "metrics"
SUPERSEDED = signal.SIGUSR1  # to a gateway in whose place others serve: end as at SIGTERM, but the node goes on


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """`incarnation` is drawn at each start of the supervisor; descriptors are inherited under these numbers (-1: none);
    `number` counts gateways from 0."""

    name: str
    config: Config
    runtime: str
    incarnation: str
    started_ms: int
    ready_descriptor: int
    number: int = 0
    registry_descriptor: int = -1
    admin_descriptor: int = -1
    transfers_descriptor: int = -1

    @classmethod
    def receive(cls) -> Self:
        """In the process that was started. Raises msgspec.MsgspecError."""
        return msgspec.json.decode(sys.stdin.buffer.read(), type=cls)

    def encode(self) -> bytes:
        """As it is sent; shorter than what a pipe holds."""
        return msgspec.json.encode(self)

    @property
    def keeper_socket(self) -> Path:
        """Where the keeper listens."""
        return Path(self.runtime, KEEPER_SOCKET)

    @property
    def replicator_socket(self) -> Path:
        """Where the replicator listens, in a cluster."""
        return Path(self.runtime, REPLICATOR_SOCKET)

    def report_ready(self) -> None:
        """Tells the supervisor that the process does its work from now on. Called once."""
        os.write(self.ready_descriptor, b"1")
        os.close(self.ready_descriptor)
