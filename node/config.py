"""The configuration: one TOML file, environment variables over it, unknown keys refused, read once.

`MERIDIAN_<SECTION>_<KEY>` (for example `MERIDIAN_LISTEN_ADDRESS`) overrides `[section] key`. A relative path counts
from the folder of the file, or from the working folder where there is no file. This module is the only door to the
environment of a node; what a key means is written here and nowhere else (`meridian config check` reads it from here).
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import msgspec
from msgspec import Meta

from node.addresses import is_loopback, keeper_addresses, split_address, transfer_addresses
from node.values import bound, is_list


class ConfigError(Exception):
    """A configuration that cannot be used; the message names the file or variable, the key, and what was expected."""


Port = Annotated[str, Meta(pattern=r"^(\[[0-9a-fA-F:]+\]|[0-9A-Za-z.-]+):[0-9]{1,5}\Z")]
_MEMBER = r"^[a-z0-9][a-z0-9.-]{0,62}=(\[[0-9a-fA-F:]+\]|[0-9A-Za-z.-]+):[0-9]{1,5}(/[0-9]{1,5})?\Z"
MemberAddress = Annotated[str, Meta(pattern=_MEMBER)]
Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0, le=31_536_000)]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of the file; a key that is not a field is an error."""


class Node(Section, frozen=True):
    """Who this node is and where it keeps its data."""

    region: Annotated[
        str, Meta(pattern=r"^[a-z][a-z0-9-]{0,31}\Z"), Meta(description="the region that this node stands in")
    ] = "local"
    name: Annotated[
        str, Meta(pattern=r"^[a-z0-9][a-z0-9.-]{0,62}\Z"), Meta(description="this node's name, unique in its cluster")
    ] = "node-1"
    data: Annotated[str, Meta(min_length=1), Meta(description="folder of everything that this node keeps")] = "./data"
    runtime: Annotated[
        str,
        Meta(description='folder of sockets; "" takes <data>/run, or a folder under /tmp where that is too long'),
    ] = ""
    gateways: Annotated[
        int, Meta(ge=0, le=256), Meta(description="gateway processes; 0 starts one for each processor")
    ] = 0


class Listen(Section, frozen=True):
    """Addresses (host:port), and TLS on the registry's own one."""

    address: Annotated[Port, Meta(description="where clients reach the registry")] = "127.0.0.1:5000"
    admin: Annotated[Port, Meta(description="/livez, /readyz and /metrics")] = "127.0.0.1:5100"
    peers: Annotated[Port, Meta(description="where the other nodes' keepers reach this one")] = "127.0.0.1:5200"
    transfers: Annotated[Port, Meta(description="where the other nodes fetch blobs from this one")] = "127.0.0.1:5300"
    allow_remote_open: Annotated[
        bool, Meta(description="let an open node listen beyond loopback: anybody who reaches it may write and delete")
    ] = False
    tls_certificate: Annotated[
        str, Meta(description='PEM file, the certificate first, then its chain; "" serves plain HTTP')
    ] = ""
    tls_key: Annotated[str, Meta(description="PEM file with the certificate's private key")] = ""


class Registry(Section, frozen=True):
    """What the registry allows."""

    delete_tags: Annotated[bool, Meta(description="whether a tag can be deleted; false answers 405")] = True
    delete_manifests: Annotated[bool, Meta(description="whether a manifest can be deleted; false answers 405")] = True
    delete_blobs: Annotated[bool, Meta(description="whether a blob can be deleted; false answers 405")] = True
    sparse_indexes: Annotated[
        bool, Meta(description="accept an index some of whose manifests are not in the repository")
    ] = False


class Access(Section, frozen=True):
    """Who may do what."""

    policy: Annotated[Literal["open"], Meta(description="open: everybody may do everything")] = "open"


class Limits(Section, frozen=True):
    """Bounds on what one client can cost."""

    manifest_bytes: Annotated[
        int, Meta(ge=1024, le=4 * 1024 * 1024), Meta(description="largest manifest that is accepted")
    ] = 4 * 1024 * 1024
    blob_bytes: Annotated[Positive, Meta(description="largest blob that is accepted")] = 1024**4
    url_bytes: Annotated[Positive, Meta(description="longest path and query of a request")] = 8192
    header_bytes: Annotated[Positive, Meta(description="all headers of a request together")] = 32768
    header_count: Annotated[Positive, Meta(description="headers of a request")] = 100
    connections: Annotated[Positive, Meta(description="open client connections of one gateway")] = 16384
    uploads: Annotated[Positive, Meta(description="open uploads of the node; beyond it a new one gets 429")] = 20000
    upload_idle_seconds: Annotated[Seconds, Meta(description="an upload untouched for so long is removed")] = 86400.0
    header_seconds: Annotated[Seconds, Meta(description="time to send the head of a request")] = 10.0
    idle_seconds: Annotated[Seconds, Meta(description="time between two requests of one connection")] = 75.0
    body_stall_seconds: Annotated[Seconds, Meta(description="longest pause within a body, in either direction")] = 30.0
    free_bytes: Annotated[
        int, Meta(ge=0), Meta(description="below so much free space uploads are refused; pulls go on")
    ] = 256 * 1024 * 1024
    page_size: Annotated[
        int, Meta(ge=1, le=100000), Meta(description="entries of a listing's page, at most and by default")
    ] = 1000
    manifest_cache_bytes: Annotated[int, Meta(ge=0), Meta(description="manifests that one gateway keeps in memory")] = (
        32 * 1024 * 1024
    )


class Log(Section, frozen=True):
    """The write-ahead log."""

    segment_bytes: Annotated[int, Meta(ge=65536), Meta(description="size at which the log begins its next file")] = (
        64 * 1024 * 1024
    )
    keep_bytes: Annotated[
        int, Meta(ge=65536), Meta(description="the log is trimmed beyond this, below a durable checkpoint")
    ] = 256 * 1024 * 1024


class Cluster(Section, frozen=True):
    """The nodes that keep one log together; a node without members stands alone."""

    id: Annotated[
        str, Meta(pattern=r"^([0-9a-f]{32})?\Z"), Meta(description="the cluster's id, as its CA was made with it")
    ] = ""
    members: Annotated[
        tuple[MemberAddress, ...],
        Meta(max_length=7),
        Meta(
            description="every node by its name, this one too, and the port of its [listen] peers; behind a slash that "
            "of its [listen] transfers, where it is not 100 above"
        ),
    ] = ()
    ca: Annotated[str, Meta(description="PEM file, the certificate of the cluster's CA")] = ""
    certificate: Annotated[str, Meta(description="PEM file, the certificate of this node")] = ""
    key: Annotated[str, Meta(description="PEM file with the certificate's private key")] = ""
    congestion_control: Annotated[
        str,
        Meta(pattern=r"^[a-z0-9_-]{0,15}\Z"),
        Meta(
            description="what TCP does about loss where blobs travel between nodes: the name of an algorithm of the "
            "kernel, such as bbr or cubic; empty for the kernel's own choice"
        ),
    ] = ""

    @property
    def addresses(self) -> dict[str, str]:
        """host:port of each member's keeper by the member's name."""
        return keeper_addresses(self.members)

    @property
    def transfer_addresses(self) -> dict[str, str]:
        """host:port where each member hands out blobs and takes requests, by its name."""
        return transfer_addresses(self.members)


class Supervisor(Section, frozen=True):
    """Restarts and shutdown."""

    drain_seconds: Annotated[
        float, Meta(gt=0, lt=30), Meta(description="time for requests under way to end at SIGTERM")
    ] = 20.0
    restart_first_seconds: Annotated[Seconds, Meta(description="pause before a process is restarted")] = 0.1
    restart_most_seconds: Annotated[
        Seconds, Meta(description="longest such pause; each failure in a row doubles it up to here")
    ] = 10.0


class Telemetry(Section, frozen=True):
    """Logs, metrics and traces."""

    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="the least severe event that is logged")
    ] = "info"
    access_log: Annotated[bool, Meta(description="one log line for each request")] = True
    otlp_endpoint: Annotated[
        str,
        Meta(pattern=r"^(https?://[^\s]+)?\Z"),
        Meta(description='traces go here by OTLP over HTTP, for example to http://127.0.0.1:4318; "" sends none'),
    ] = ""
    trace_ratio: Annotated[
        float, Meta(ge=0, le=1), Meta(description="share of the requests traced that came without a decision")
    ] = 0.01


class Config(Section, frozen=True):
    """The whole file."""

    node: Node = Node()
    listen: Listen = Listen()
    registry: Registry = Registry()
    access: Access = Access()
    limits: Limits = Limits()
    log: Log = Log()
    cluster: Cluster = Cluster()
    supervisor: Supervisor = Supervisor()
    telemetry: Telemetry = Telemetry()

    @property
    def data(self) -> Path:
        """The folder of everything this node keeps."""
        return Path(self.node.data)


_PATHS = {
    "node": ("data", "runtime"),
    "listen": ("tls_certificate", "tls_key"),
    "cluster": ("ca", "certificate", "key"),
}
_VARIABLE = re.compile(r"MERIDIAN_([A-Z]+)_([A-Z0-9_]+)")
# Kubernetes describes a service called `meridian-node` by such variables; they are not meant for us.
_SERVICE_LINK = re.compile(r"(SERVICE_(HOST|PORT)|PORT)(_[A-Z0-9_]*)?")
Values = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Traced:
    """A configuration, and for each "section.key" where its value is from: "default", "file" or a variable's name."""

    config: Config
    origins: Mapping[str, str]


def environment() -> Mapping[str, str]:
    """The environment of this process, as a copy."""
    return dict(os.environ)


def export(name: str, value: str | None) -> None:
    """Sets (None: removes) a variable for libraries that read nothing but the environment."""
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def section_types() -> dict[str, type[Section]]:
    """The sections in the order of the file."""
    return {field.name: field.type for field in msgspec.structs.fields(Config)}


def key_types(section: type[Section]) -> dict[str, Any]:
    """The annotated type of each key of a section, in the order of the file."""
    return get_type_hints(section, include_extras=True)


def load(path: Path | None, environ: Mapping[str, str]) -> Config:
    """The file (None: defaults only) with the environment over it; paths in it are absolute. Raises ConfigError."""
    return trace(path, environ).config


def trace(path: Path | None, environ: Mapping[str, str]) -> Traced:
    """As `load`, and says where each value is from. Raises ConfigError."""
    values, origins = _read_file(path) if path else ({}, {})
    for section, key, value, name in _overlay(environ):
        values.setdefault(section, {})[key] = value
        origins[f"{section}.{key}"] = name
    base = (path.parent if path else Path()).absolute()
    config = _anchor(msgspec.convert(values, Config), base)
    check(config)
    every = (f"{section}.{key}" for section, kind in section_types().items() for key in key_types(kind))
    return Traced(config, {key: origins.get(key, "default") for key in every})


def _read_file(path: Path) -> tuple[Values, dict[str, str]]:
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    values: Values = {}
    origins: dict[str, str] = {}
    for section, content in document.items():
        kind = section_types().get(section)
        if kind is None or not isinstance(content, dict):
            raise ConfigError(f"{path}: [{section}]: no such section; known are {', '.join(section_types())}")
        for key, value in content.items():
            values.setdefault(section, {})[key] = _convert(f"{path}: [{section}] {key}", kind, key, value)
            origins[f"{section}.{key}"] = "file"
    return values, origins


def _overlay(environ: Mapping[str, str]) -> Iterator[tuple[str, str, Any, str]]:
    for name, text in sorted(environ.items()):
        match = _VARIABLE.fullmatch(name)
        kind = section_types().get(match[1].lower()) if match else None
        if match is None or kind is None or _SERVICE_LINK.fullmatch(match[2]):
            continue
        if not _is_text(text):
            raise ConfigError(f"{name}: expected text in UTF-8, got {text!r}")
        section, key = match[1].lower(), match[2].lower()
        several = is_list(key_types(kind).get(key))
        value = [item.strip() for item in text.split(",") if item.strip()] if several else text
        yield section, key, _convert(name, kind, key, value, strict=False), name


def _convert(place: str, kind: type[Section], key: str, value: Any, *, strict: bool = True) -> Any:
    expected = key_types(kind).get(key)
    if expected is None:
        raise ConfigError(f"{place}: no such key; known are {', '.join(key_types(kind))}")
    try:
        return msgspec.convert(value, expected, strict=strict)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{place}: expected {bound(expected)}, got {value!r}") from error


def _anchor(config: Config, base: Path) -> Config:
    for section, keys in _PATHS.items():
        part = getattr(config, section)
        absolute = {key: os.path.normpath(base / text) for key in keys if (text := getattr(part, key))}
        for key, path in absolute.items():
            if not _is_text(path):
                raise ConfigError(f"[{section}] {key}: expected a path in UTF-8 without NUL, got {path!r}")
        config = msgspec.structs.replace(config, **{section: msgspec.structs.replace(part, **absolute)})
    return config


def _is_text(value: str) -> bool:
    """Whether other processes can be told of it, and the operating system."""
    try:
        return "\0" not in value and bool(value.encode() or True)
    except UnicodeEncodeError:
        return False


def check(config: Config) -> None:
    """What holds between keys. Raises ConfigError."""
    listen, limits, supervisor = config.listen, config.limits, config.supervisor
    addresses = {key: getattr(listen, key) for key in ("address", "admin", "peers", "transfers")}
    for key, address in addresses.items():
        if split_address(address)[1] > 65535:
            raise ConfigError(f"[listen] {key}: expected a port of at most 65535, got {address!r}")
    fixed = [address for address in addresses.values() if split_address(address)[1] != 0]
    if len(set(fixed)) != len(fixed):
        raise ConfigError("[listen] address, admin, peers and transfers: expected four different addresses")
    if bool(listen.tls_certificate) != bool(listen.tls_key):
        raise ConfigError("[listen] tls_certificate and tls_key: expected both or neither")
    if limits.url_bytes > limits.header_bytes:
        raise ConfigError("[limits] url_bytes: expected at most header_bytes")
    if supervisor.restart_first_seconds > supervisor.restart_most_seconds:
        raise ConfigError("[supervisor] restart_first_seconds: expected at most restart_most_seconds")
    if config.log.segment_bytes > config.log.keep_bytes:
        raise ConfigError("[log] segment_bytes: expected at most keep_bytes")
    check_cluster(config)
    check_exposure(config)


def check_cluster(config: Config) -> None:
    """Members need an id and certificates, and this node is one of them. Raises ConfigError."""
    cluster = config.cluster
    addresses = cluster.addresses
    if not addresses:
        return
    every = [*addresses.values(), *cluster.transfer_addresses.values()]
    if len(addresses) != len(cluster.members) or len(set(every)) != len(every):
        raise ConfigError("[cluster] members: expected different names and different addresses")
    if not all(1 <= split_address(address)[1] <= 65535 for address in every):
        raise ConfigError("[cluster] members: expected ports from 1 to 65535, that for transfers (100 above) too")
    if config.node.name not in addresses:
        raise ConfigError(f"[cluster] members: expected this node, {config.node.name}, to be one of them")
    missing = [key for key in ("id", "ca", "certificate", "key") if not getattr(cluster, key)]
    if missing:
        raise ConfigError(f"[cluster] {', '.join(missing)}: expected a value where there are members")


def check_exposure(config: Config) -> None:
    """An open node listens on loopback only, unless told otherwise. Raises ConfigError."""
    listen = config.listen
    if config.access.policy != "open" or listen.allow_remote_open:
        return
    for key, could in (("address", "write and delete"), ("admin", "see what the node does")):
        address = getattr(listen, key)
        if not is_loopback(address):
            raise ConfigError(
                f"[listen] {key}: {address} can be reached from other machines and [access] policy is open: "
                f"anybody could {could}. Listen on 127.0.0.1, or set [listen] allow_remote_open = true"
            )
