"""The configuration: one TOML file, environment variables over it, unknown keys refused, read once.

`MERIDIAN_<SECTION>_<KEY>` (for example `MERIDIAN_LISTEN_ADDRESS`) overrides `[section] key`. This module is the only
door to the environment of a node.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec

Port = Annotated[str, msgspec.Meta(pattern=r"^(\[[0-9a-fA-F:]+\]|[0-9A-Za-z.-]+):[0-9]{1,5}$")]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Seconds = Annotated[float, msgspec.Meta(gt=0)]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of the file; a key that is not a field is an error."""


class Node(Section):
    """Who this node is and where it keeps its data."""

    region: Annotated[str, msgspec.Meta(pattern="^[a-z][a-z0-9-]{0,31}$")] = "local"
    name: Annotated[str, msgspec.Meta(pattern="^[a-z0-9][a-z0-9.-]{0,62}$")] = "node-1"
    data: str = "./data"
    runtime: str = ""  # folder of the Unix socket; "" takes <data>/run, or a folder under /tmp where that is too long
    gateways: Annotated[int, msgspec.Meta(ge=0, le=256)] = 0  # 0: one a core


class Listen(Section):
    """Addresses, and TLS on the registry's own one."""

    address: Port = "127.0.0.1:5000"
    admin: Port = "127.0.0.1:5100"
    peers: Port = "127.0.0.1:5200"
    allow_remote_open: bool = False  # an open policy beyond loopback has to be asked for
    tls_certificate: str = ""
    tls_key: str = ""


class Registry(Section):
    """What the registry allows."""

    delete_tags: bool = True
    delete_manifests: bool = True
    delete_blobs: bool = True
    sparse_indexes: bool = False  # accept an index whose children are not all here


class Access(Section):
    """Who may do what."""

    policy: Literal["open"] = "open"


class Limits(Section):
    """Bounds on what one client can cost."""

    manifest_bytes: Annotated[int, msgspec.Meta(ge=1024, le=4 * 1024 * 1024)] = 4 * 1024 * 1024
    blob_bytes: Positive = 1024**4
    url_bytes: Positive = 8192
    header_bytes: Positive = 32768
    header_count: Positive = 100
    connections: Positive = 16384  # a gateway
    uploads: Positive = 20000  # a node
    upload_idle_seconds: Seconds = 86400.0
    header_seconds: Seconds = 10.0  # to send a request's head
    idle_seconds: Seconds = 75.0  # between requests on one connection
    body_stall_seconds: Seconds = 30.0  # without a byte of a body, in either direction
    free_bytes: Annotated[int, msgspec.Meta(ge=0)] = 256 * 1024 * 1024  # below it uploads are refused
    page_size: Annotated[int, msgspec.Meta(ge=1, le=100000)] = 1000  # of a listing, at most and by default
    manifest_cache_bytes: Annotated[int, msgspec.Meta(ge=0)] = 32 * 1024 * 1024  # a gateway


class Log(Section):
    """The write-ahead log."""

    segment_bytes: Annotated[int, msgspec.Meta(ge=65536)] = 64 * 1024 * 1024
    keep_bytes: Annotated[int, msgspec.Meta(ge=65536)] = 256 * 1024 * 1024  # trimmed beyond, below a durable checkpoint


class Supervisor(Section):
    """Restarts and shutdown."""

    drain_seconds: Seconds = 20.0
    restart_first_seconds: Seconds = 0.1
    restart_most_seconds: Seconds = 10.0


class Telemetry(Section):
    """Logs, metrics and traces."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    access_log: bool = True
    otlp_endpoint: str = ""  # for example http://127.0.0.1:4318; "" exports nothing
    trace_ratio: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.01


class Config(Section):
    """The whole file."""

    node: Node = Node()
    listen: Listen = Listen()
    registry: Registry = Registry()
    access: Access = Access()
    limits: Limits = Limits()
    log: Log = Log()
    supervisor: Supervisor = Supervisor()
    telemetry: Telemetry = Telemetry()

    @property
    def data(self) -> Path:
        """The folder of everything this node keeps."""
        return Path(self.node.data)
