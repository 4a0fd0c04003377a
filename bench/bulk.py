"""The bytes of a blob from region to region, by ranged HTTP/1.1 and by gRPC streams: which is faster, and at what cost.

    python -m bench.bulk [--megabytes 200]

In the lab (needs root): 80 ms and 200 Mbit/s between eu and us, both sides with the cluster's certificates. HTTP is
what a node serves others; gRPC is a server beside it that streams parts of a file. Who takes the bytes drops them.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import grpc.aio
from yarl import URL

from bench.fetching import GB, LINK_BYTES, LOSS, cluster
from bench.processes import cpu_seconds
from bench.report import replace_section
from chaos.lab.laboratory import Lab
from consensus import clock
from node.config import Cluster
from node.credentials import asking_context

HEADING = "Bulk path"
PIECE_BYTES = 4 << 20
CHUNK_BYTES = 256 << 10
PORT = 7100
FLOWS = (1, 4, 16)
METHOD = "/bench.Bulk/Read"
Take = Callable[[int, int], Coroutine[Any, Any, None]]  # from, to before


@dataclass(frozen=True, slots=True)
class Copy:
    """One blob over the line. Seconds of processor are of the side that gives and of the side that takes."""

    way: str
    loss: float
    flows: int
    size_bytes: int
    seconds: float
    gave_cpu: float
    took_cpu: float


# In the regions


async def give(tls: Path, file: Path) -> None:
    """Serves parts of the file by gRPC until stdin ends."""
    content = os.open(file, os.O_RDONLY)

    async def read(request: bytes, _: Any) -> AsyncIterator[bytes]:
        start, stop = json.loads(request)
        for at in range(start, stop, CHUNK_BYTES):
            yield os.pread(content, min(CHUNK_BYTES, stop - at), at)

    handlers = {"Read": grpc.unary_stream_rpc_method_handler(read)}
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Bulk", handlers),))
    pair = [((tls / "node.key").read_bytes(), (tls / "node.crt").read_bytes())]
    ca = (tls / "ca.crt").read_bytes()
    server.add_secure_port(f"0.0.0.0:{PORT}", grpc.ssl_server_credentials(pair, ca, require_client_auth=True))
    await server.start()
    print("{}", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(None)


async def take(way: str, tls: Path, giver: Sequence[str], size_bytes: int, flows: int) -> None:
    """All of it, a piece after the other on each of the flows, which are warm; prints the seconds. Of the giver: where
    it is, its name, and the path of the blob."""
    address, name, path = giver
    pieces = [(at, min(at + PIECE_BYTES, size_bytes)) for at in range(0, size_bytes, PIECE_BYTES)][::-1]
    async with _by_grpc(tls, address, name, flows) if way == "gRPC" else _by_http(tls, address, name, path) as takers:

        async def flow(number: int) -> None:
            while pieces:
                await takers(number)(*pieces.pop())

        await asyncio.gather(*(takers(number)(0, 1) for number in range(flows)))
        began, used = clock.monotonic(), _cpu()
        await asyncio.gather(*map(flow, range(flows)))
        print(json.dumps({"seconds": clock.monotonic() - began, "cpu": _cpu() - used}), flush=True)


class _by_http:  # noqa: N801
    def __init__(self, tls: Path, address: str, name: str, path: str) -> None:
        ca, certificate, key = (str(tls / file) for file in ("ca.crt", "node.crt", "node.key"))
        context = asking_context(Cluster(ca=ca, certificate=certificate, key=key))
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context), read_bufsize=CHUNK_BYTES)
        self._url, self._name = URL(f"https://{address}{path}", encoded=True), name

    async def __aenter__(self) -> Callable[[int], Take]:
        return lambda _: self._take

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def _take(self, start: int, stop: int) -> None:
        headers = {"Range": f"bytes={start}-{stop - 1}"}
        async with self._session.get(self._url, headers=headers, server_hostname=self._name) as answer:
            count = 0
            async for chunk in answer.content.iter_any():
                count += len(chunk)
        assert (answer.status, count) == (206, stop - start), answer


class _by_grpc:  # noqa: N801
    def __init__(self, tls: Path, address: str, name: str, flows: int) -> None:
        files = ((tls / file).read_bytes() for file in ("ca.crt", "node.key", "node.crt"))
        secured = grpc.ssl_channel_credentials(*files)
        options = [("grpc.ssl_target_name_override", name), ("grpc.use_local_subchannel_pool", 1)]
        host = address.rpartition(":")[0]
        self._channels = [grpc.aio.secure_channel(f"{host}:{PORT}", secured, options) for _ in range(flows)]

    async def __aenter__(self) -> Callable[[int], Take]:
        return lambda number: lambda start, stop: self._take(self._channels[number], start, stop)

    async def __aexit__(self, *_: object) -> None:
        for channel in self._channels:
            await channel.close(None)

    async def _take(self, channel: grpc.aio.Channel, start: int, stop: int) -> None:
        count = 0
        async for chunk in channel.unary_stream(METHOD, None, None)(json.dumps((start, stop)).encode()):
            count += len(chunk)
        assert count == stop - start


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


# Here


@contextmanager
def giving(it: Lab, file: Path) -> Iterator[int]:
    """While eu serves the file by gRPC: the process."""
    process = _start(it, "eu", "give", str(it.nodes["eu"].folders.work / "tls"), str(file))
    assert process.stdin
    assert process.stdout
    try:
        process.stdout.readline()
        yield process.pid
    finally:
        process.stdin.close()
        process.wait(10)


def measure(it: Lab, digest: str, size_bytes: int, loss: float) -> Iterator[Copy]:
    """Each way, with each number of flows."""
    it.set("eu", "us", both=True, loss=loss)
    file = it.nodes["eu"].folders.data / "blobs" / "sha256" / digest[7:9] / digest[7:]
    with giving(it, file) as server:
        for flows in FLOWS:
            for way, giver in (("HTTP", it.nodes["eu"].pids()[0]), ("gRPC", server)):
                used = cpu_seconds(giver)
                tls = str(it.nodes["us"].folders.work / "tls")
                to = (it.wan.places["eu"].transfers, f"eu.{it.cluster_id}.meridian", f"/meridian/v1/blobs/{digest}")
                process = _start(it, "us", "take", way, tls, str(size_bytes), str(flows), *to)
                found = json.loads(process.communicate()[0])
                yield Copy(way, loss, flows, size_bytes, found["seconds"], cpu_seconds(giver) - used, found["cpu"])


def _start(it: Lab, region: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        it.command(region, sys.executable, "-P", "-m", "bench.bulk", *arguments),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )


def as_section(command: str, copies: Sequence[Copy]) -> str:
    """The page's part."""
    lines = [
        f"`{command}`, {datetime.datetime.now(datetime.UTC).date().isoformat()}, load average "
        f"{os.getloadavg()[0]:.1f}. 200 Mbit/s and 80 ms between two regions of the lab, cubic, TLS with certificates "
        "on both sides; pieces of 4 MiB, each flow on a warm connection of its own. CPU-seconds for each GB, of all "
        "processes that give and of the one that takes.",
        "",
        "| loss | flows | HTTP of the line | gRPC of the line | HTTP CPU-s/GB gives, takes | gRPC gives, takes |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for http, other in zip(copies[::2], copies[1::2], strict=True):
        rates = (f"{each.size_bytes / each.seconds / LINK_BYTES:.3f}" for each in (http, other))
        costs = (
            f"{each.gave_cpu / each.size_bytes * GB:.1f}, {each.took_cpu / each.size_bytes * GB:.1f}"
            for each in (http, other)
        )
        lines.append(f"| {http.loss:.1%} | {http.flows} | {' | '.join(rates)} | {' | '.join(costs)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Prints the figures, and puts them on the page."""
    match sys.argv[1:]:
        case ["give", tls, file]:
            asyncio.run(give(Path(tls), Path(file)))
            return
        case ["take", way, tls, size_bytes, flows, *giver]:
            asyncio.run(take(way, Path(tls), giver, int(size_bytes), int(flows)))
            return
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--megabytes", type=int, default=200, help="of the blob")
    parser.add_argument("--page", type=Path, default=Path("bench/RESULTS.md"), help="where the section goes")
    options = parser.parse_args()
    copies: list[Copy] = []
    with tempfile.TemporaryDirectory() as made, cluster("cubic", Path(made)) as (it, clients):
        size_bytes = options.megabytes * 10**6
        digest = clients["eu"].ask("push", seed="bulk", size_bytes=size_bytes)["digest"]
        for loss in (0.0, LOSS):
            for copy in measure(it, digest, size_bytes, loss):
                print(copy, flush=True)
                copies.append(copy)
    section = as_section(" ".join(["python -m bench.bulk", *sys.argv[1:]]), copies)
    print(section)
    replace_section(options.page, HEADING, section)


if __name__ == "__main__":
    main()
