"""The load: `wrk` for reads with keep-alive, and blocking sockets in threads for what wrk cannot do."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from urllib.parse import urlsplit

from bench.servers import program
from consensus import clock

BLOCK_BYTES = 1 << 20
NOISE = hashlib.shake_256(b"bench").digest(BLOCK_BYTES)
SUMMARY = """
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("\\n@{\\"requests\\":%d,\\"bytes\\":%d,\\"micros\\":%d,\\"p50\\":%d,\\"p99\\":%d,\\"errors\\":%d}\\n",
    summary.requests, summary.bytes, summary.duration, latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.status + e.timeout))
end
"""
RANGES = """
local size, length = %d, %d
request = function()
  local first = math.random(0, size - length)
  return wrk.format("GET", nil, {["Range"] = string.format("bytes=%%d-%%d", first, first + length - 1)})
end
"""


class LoadFailed(Exception):
    """The server answered with an error, or the load generator could not run."""


@dataclass(frozen=True)
class Load:
    """What a load amounted to. Latencies are of whole requests; 0 where they were not measured."""

    requests: int
    bytes: int
    seconds: float
    p50_ms: float = 0.0
    p99_ms: float = 0.0


@dataclass(frozen=True)
class RandomRange:
    """Each request asks for this many bytes at another place of a file of this size."""

    size_bytes: int
    length_bytes: int


def get(
    url: str, *, connections: int, seconds: float, headers: Sequence[str] = (), ranges: RandomRange | None = None
) -> Load:
    """Repeat one GET on kept-alive connections. Raises LoadFailed on any status of 400 and above or broken answer."""
    script = SUMMARY + (RANGES % (ranges.size_bytes, ranges.length_bytes) if ranges else "")
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script)
        file.flush()
        options = ["-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout=30s", "-s", file.name]
        options += [part for header in headers for part in ("-H", header)]
        command = [program("wrk"), *options, url]
        said = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 90, check=False)
    line = next((line for line in said.stdout.splitlines() if line.startswith("@")), None)
    if line is None:
        raise LoadFailed(f"wrk {url}: {said.stdout}{said.stderr}")
    found = json.loads(line[1:])
    if found["errors"] or not found["bytes"]:
        raise LoadFailed(f"wrk {url}: {found}")
    return Load(
        found["requests"], found["bytes"], found["micros"] / 1e6, p50_ms=found["p50"] / 1e3, p99_ms=found["p99"] / 1e3
    )


@dataclass(frozen=True)
class Content:
    """A blob of cheap bytes that are distinct for each seed: a counter at the head of every block, then fixed noise."""

    seed: str
    size_bytes: int
    digest: str

    @classmethod
    def of(cls, seed: str, size_bytes: int) -> Content:
        """Content with its digest worked out, so that uploads need not hash."""
        hashed = hashlib.sha256()
        for block in blocks(seed, size_bytes):
            hashed.update(block)
        return cls(seed, size_bytes, f"sha256:{hashed.hexdigest()}")

    def blocks(self) -> Iterator[memoryview]:
        """The bytes in blocks of at most 1 MiB."""
        return blocks(self.seed, self.size_bytes)

    def whole(self) -> bytes:
        """All bytes at once."""
        return b"".join(map(bytes, self.blocks()))


def blocks(seed: str, size_bytes: int) -> Iterator[memoryview]:
    """The blocks of a content; a yielded block is only valid until the next one."""
    buffer = bytearray(NOISE)
    view = memoryview(buffer)
    for position in range(0, size_bytes, BLOCK_BYTES):
        head = hashlib.sha256(f"{seed}/{position}".encode()).digest()
        buffer[: len(head)] = head
        yield view[: min(BLOCK_BYTES, size_bytes - position)]


def connect(address: str) -> HTTPConnection:
    """A kept-alive connection to host:port."""
    host, _, port = address.partition(":")
    connection = HTTPConnection(host, int(port), timeout=300)
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def expect(answer: HTTPResponse, status: int) -> HTTPResponse:
    """The answer with its body read; raises LoadFailed for any other status."""
    body = answer.read()
    if answer.status != status:
        raise LoadFailed(f"{answer.status} instead of {status}: {body[:500]!r}")
    return answer


def upload(connection: HTTPConnection, repository: str, content: Content, *, streamed: bool = True) -> None:
    """Push one blob: POST, then one PATCH of everything and an empty PUT as docker does, or everything in the PUT."""
    connection.request("POST", f"/v2/{repository}/blobs/uploads/", headers={"Content-Length": "0"})
    location = expect(connection.getresponse(), 202).headers["Location"]
    if streamed:
        location = send(connection, "PATCH", location, content, 202).headers["Location"]
    target = f"{location}{'&' if urlsplit(location).query else '?'}digest={content.digest}"
    if streamed:
        connection.request("PUT", path_of(target), headers={"Content-Length": "0"})
        expect(connection.getresponse(), 201)
    else:
        send(connection, "PUT", target, content, 201)


def send(connection: HTTPConnection, method: str, location: str, content: Content, status: int) -> HTTPResponse:
    """One request with a content as its body."""
    connection.putrequest(method, path_of(location))
    connection.putheader("Content-Type", "application/octet-stream")
    connection.putheader("Content-Length", str(content.size_bytes))
    connection.endheaders()
    for block in content.blocks():
        connection.send(block)
    return expect(connection.getresponse(), status)


def path_of(location: str) -> str:
    """Path and query of a Location, which may be relative or absolute."""
    parts = urlsplit(location)
    return f"{parts.path}?{parts.query}" if parts.query else parts.path


def put_manifest(connection: HTTPConnection, repository: str, tag: str, manifest: bytes, media_type: str) -> None:
    """Push one manifest under a tag."""
    connection.request("PUT", f"/v2/{repository}/manifests/{tag}", body=manifest, headers={"Content-Type": media_type})
    expect(connection.getresponse(), 201)


def download(connection: HTTPConnection, repository: str, content: Content) -> None:
    """Pull one blob and throw its bytes away; raises LoadFailed when it is not all of them."""
    connection.request("GET", f"/v2/{repository}/blobs/{content.digest}")
    answer = connection.getresponse()
    buffer, received = bytearray(BLOCK_BYTES), 0
    while count := answer.readinto(buffer):
        received += count
    if answer.status != 200 or received != content.size_bytes:
        raise LoadFailed(f"{answer.status} after {received} of {content.size_bytes} bytes")


def at_once(
    address: str, contents: Sequence[Content], act: Callable[[HTTPConnection, Content], None], *, clients: int
) -> Load:
    """Do something with every content, by this many clients with a connection each."""

    def client(share: Sequence[Content]) -> list[float]:
        taken = []
        with closing(connect(address)) as connection:
            for content in share:
                started = clock.monotonic()
                act(connection, content)
                taken.append(clock.monotonic() - started)
        return taken

    started = clock.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        taken = sorted(
            each for share in pool.map(client, [contents[n::clients] for n in range(clients)]) for each in share
        )
    seconds = clock.monotonic() - started
    p99 = taken[min(len(taken) - 1, int(len(taken) * 0.99))]
    return Load(
        len(contents),
        sum(each.size_bytes for each in contents),
        seconds,
        p50_ms=taken[len(taken) // 2] * 1e3,
        p99_ms=p99 * 1e3,
    )


def digest_of(content: bytes) -> str:
    """The sha256 digest of these bytes."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
