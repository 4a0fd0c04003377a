"""What is measured: each case is one kind of load with the goal it has against docker-registry."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from http.client import HTTPConnection

from bench import load
from bench.load import Content, Load, RandomRange
from bench.processes import cpu_seconds
from bench.servers import Server

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
REPOSITORY = "bench/image"
TAG = "v1"
MB = 1_000_000


@dataclass(frozen=True)
class Scale:
    """How much is done: rounds, seconds of each wrk run, and the sizes of what is pushed."""

    rounds: int
    seconds: float
    large_bytes: int  # of the blob of the 1 GB cases
    small_uploads: int  # 1 MB blobs a round


FULL = Scale(rounds=5, seconds=4.0, large_bytes=1 << 30, small_uploads=160)
QUICK = Scale(rounds=3, seconds=1.0, large_bytes=128 << 20, small_uploads=40)


@dataclass(frozen=True)
class Stock:
    """What every server holds before the reads: blobs of three sizes, and a manifest of them."""

    small: Content
    middle: Content
    large: Content
    manifest: bytes
    manifest_digest: str

    @classmethod
    def make(cls) -> Stock:
        """The same on every machine."""
        small, middle, large = Content.of("4K", 4096), Content.of("1M", MB), Content.of("100M", 100 * MB)
        layers = [
            {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": each.digest, "size": each.size_bytes}
            for each in (small, middle, large)
        ]
        config = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": small.digest, "size": 4096}
        document = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers}
        manifest = json.dumps(document, indent=2).encode()
        return cls(small, middle, large, manifest, load.digest_of(manifest))

    def put(self, server: Server) -> None:
        """Push everything to a registry, or lay it out as files for nginx."""
        contents = (self.small, self.middle, self.large)
        if server.name == "nginx":
            manifests, blobs = (server.folder / "data/v2" / REPOSITORY / kind for kind in ("manifests", "blobs"))
            manifests.mkdir(parents=True)
            blobs.mkdir()
            for name in (TAG, self.manifest_digest):
                (manifests / name).write_bytes(self.manifest)
            for content in contents:
                (blobs / content.digest).write_bytes(content.whole())
            return
        with closing(load.connect(server.address)) as connection:
            for content in contents:
                load.upload(connection, REPOSITORY, content)
            load.put_manifest(connection, REPOSITORY, TAG, self.manifest, MANIFEST)


@dataclass(frozen=True)
class Case:
    """One kind of load; `act` gets the server and the round's number, and answers what it amounted to."""

    name: str
    unit: str  # req/s or MB/s
    act: Callable[[Server, int], Load]
    goal: float | None = None  # at least this many times docker-registry
    servers: tuple[str, ...] = ("meridian", "docker-registry", "nginx")


@dataclass(frozen=True)
class Measurement:
    """One run of one case. `cpu_seconds` is what the server's processes used for all of it."""

    case: str
    server: str
    round: int
    value: float
    p50_ms: float
    p99_ms: float
    requests: int
    bytes: int
    cpu_seconds: float


def measure(case: Case, server: Server, number: int) -> Measurement:
    """Run a case once, with nothing left to be written to the disk from the one before it."""
    os.sync()
    before = cpu_seconds(server.pid)
    done = case.act(server, number)
    used = cpu_seconds(server.pid) - before
    amount = done.requests if case.unit == "req/s" else done.bytes / MB
    return Measurement(
        case.name, server.name, number, amount / done.seconds, done.p50_ms, done.p99_ms, done.requests, done.bytes, used
    )


def all_cases(stock: Stock, scale: Scale) -> list[Case]:
    """Every case, reads first."""
    return [
        read("manifest by tag, 16 clients", f"manifests/{TAG}", scale, unit="req/s", goal=8.0),
        read("manifest by digest, 16 clients", f"manifests/{stock.manifest_digest}", scale, unit="req/s", goal=8.0),
        read("4 KB blob, 16 clients", f"blobs/{stock.small.digest}", scale, unit="req/s"),
        read("1 MB blob, 16 clients", f"blobs/{stock.middle.digest}", scale, goal=3.0),
        read("100 MB blob, 16 clients", f"blobs/{stock.large.digest}", replace(scale, seconds=3 * scale.seconds)),
        read(
            "1 MB range of a 100 MB blob, 16 clients",
            f"blobs/{stock.large.digest}",
            scale,
            ranges=RandomRange(stock.large.size_bytes, MB),
        ),
        *pushes(scale),
    ]


def read(
    name: str,
    path: str,
    scale: Scale,
    *,
    unit: str = "MB/s",
    goal: float | None = None,
    ranges: RandomRange | None = None,
) -> Case:
    """A case of one GET repeated by 16 clients."""

    def act(server: Server, _: int) -> Load:
        url = f"http://{server.address}/v2/{REPOSITORY}/{path}"
        return load.get(url, connections=16, seconds=scale.seconds, headers=[f"Accept: {MANIFEST}"], ranges=ranges)

    return Case(name, unit, act, goal=goal)


def pushes(scale: Scale) -> list[Case]:
    """The cases that push: content is new in every round, and both registries get the same."""
    large = [Content.of(f"large {number}", scale.large_bytes) for number in range(scale.rounds)]
    small = [[Content.of(f"small {n} {m}", MB) for m in range(scale.small_uploads)] for n in range(scale.rounds)]
    gigabytes = f"{scale.large_bytes / (1 << 30):g} GiB"

    def push_large(server: Server, number: int) -> Load:
        return load.at_once(
            server.address, [large[number]], lambda on, each: load.upload(on, REPOSITORY, each), clients=1
        )

    def push_small(server: Server, number: int) -> Load:
        def act(connection: HTTPConnection, content: Content) -> None:
            load.upload(connection, REPOSITORY, content, streamed=False)

        return load.at_once(server.address, small[number], act, clients=8)

    registries = ("meridian", "docker-registry")
    return [
        Case(f"push of a {gigabytes} blob (PATCH), 1 client", "MB/s", push_large, goal=1.0, servers=registries),
        Case("push of 1 MB blobs (POST, PUT), 8 clients", "MB/s", push_small, servers=registries),
    ]
