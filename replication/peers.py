"""The client side of talk between nodes: HTTP/1.1 over TLS, both sides with a certificate of the cluster.

A member is reached under the name `<member>.<cluster id>.meridian`, which its certificate has to bear. Every wait has
an end, and so has the number of connections. Raises what `replication.directory` lists.
"""

from __future__ import annotations

import asyncio
import math
import socket
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import aiohttp
import msgspec
from yarl import URL

from consensus import clock
from consensus.errors import UNDECODABLE
from consensus.names import Digest, StoreId
from replication.directory import BlobNotHeld, Directory, PeerError, PeerIdentity, PeerUnreachable, PeerWrong
from replication.requests import PeerAnswer, PeerRequest

MAX_CONNECTIONS = 1024
MAX_ANSWER_BYTES = 256 * 1024
MAX_SIZE_DIGITS = 20
READ_AHEAD_BYTES = 256 * 1024
CONNECT_SECONDS = 4.0
IDENTITY_SECONDS = 3.0
STALL_SECONDS = 15.0
IDLE_SECONDS = 30.0  # less than what a server allows, so that it is not the server that ends a connection
WARM_CONNECTIONS = 4  # to each member
WARM_SECONDS = 12.0

BLOBS_PATH = "/meridian/v1/blobs"
IDENTITY_PATH = "/meridian/v1/identity"


class _Identity(msgspec.Struct, frozen=True):
    cluster_id: str
    node_id: str
    member: str
    region: str
    store_id: str


@dataclass(frozen=True, slots=True)
class BlobStream:
    """A part of a blob of `size_bytes` on its way: `chunks` are what was asked for."""

    size_bytes: int
    chunks: AsyncIterator[bytes]


def _socket(congestion_control: bytes, address: aiohttp.AddrInfoType) -> socket.socket:
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion_control)
    except OSError:
        made.close()
        raise
    return made


class Peers:
    """The other members of a cluster, by their names. `addresses` are host:port of their transfers listeners;
    `congestion_control` is the kernel's name for what TCP does about loss, "" for the kernel's choice."""

    def __init__(
        self, addresses: Mapping[str, str], cluster_id: str, tls: ssl.SSLContext, *, congestion_control: str = ""
    ) -> None:
        self._addresses = dict(addresses)
        self._cluster_id = cluster_id
        connector = aiohttp.TCPConnector(
            ssl=tls,
            limit=MAX_CONNECTIONS,
            keepalive_timeout=IDLE_SECONDS,
            socket_factory=partial(_socket, congestion_control.encode()) if congestion_control else None,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=READ_AHEAD_BYTES,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            trust_env=False,
        )
        self.directory = Directory(self._addresses, self.identity)
        self._distances: dict[str, float] = {}

    async def close(self) -> None:
        """Ends what is under way."""
        await self.directory.close()
        await self._session.close()

    async def identity(self, member: str) -> PeerIdentity:
        """Asks the member who it is."""
        async with self._asking(
            member, "GET", IDENTITY_PATH, timeout=_timeout(IDENTITY_SECONDS, IDENTITY_SECONDS)
        ) as found:
            body = await self._read(member, found)
        try:
            identity = msgspec.json.decode(body, type=_Identity)
        except UNDECODABLE as error:
            raise PeerWrong(f"{member} does not say who it is: {error}") from error
        if (identity.member, identity.cluster_id) != (member, self._cluster_id):
            raise PeerWrong(f"{member} says that it is {identity.member[:80]} of another cluster or name")
        return PeerIdentity(member, identity.node_id, StoreId(identity.store_id), identity.region)

    @asynccontextmanager
    async def blob(self, store: StoreId, digest: Digest, start: int, stop: int) -> AsyncIterator[BlobStream]:
        """The blob from `start` to before `stop`, as that store has it."""
        member = await self.directory.with_store(store)
        if member is None:
            raise PeerUnreachable(f"no member that answers has store {store}")
        headers = [("range", f"bytes={start}-{stop - 1}")]
        path = f"{BLOBS_PATH}/{digest}"
        async with self._asking(member, "GET", path, headers=headers, timeout=_timeout(STALL_SECONDS)) as found:
            if found.status == 404:
                raise BlobNotHeld(f"{member} does not hold the blob")
            if found.status >= 500:
                raise PeerUnreachable(f"{member} answers with status {found.status}")
            yield BlobStream(_size(found, start, stop), self._chunks(member, found))

    def distance(self, store: StoreId) -> float:
        """The round trip to the member with this store in seconds, as last measured; infinity while it is unknown."""
        member = self.directory.known_with_store(store)
        return self._distances.get(member, math.inf) if member else math.inf

    async def keep_warm(self) -> None:
        """Until cancelled: keeps some connections to every member open and measures how far each of them is."""
        while True:
            await asyncio.gather(*(self._warm(member) for member in self._addresses))
            await asyncio.sleep(WARM_SECONDS)

    async def _warm(self, member: str) -> None:
        async def ask() -> float:
            began = clock.monotonic()
            self.directory.learn(await self.identity(member))
            return clock.monotonic() - began

        try:
            await ask()  # alone: who does not answer is not asked by all of them
        except PeerError:
            self._distances.pop(member, None)
            return
        answers = await asyncio.gather(*(ask() for _ in range(WARM_CONNECTIONS)), return_exceptions=True)
        times = [answer for answer in answers if isinstance(answer, float)]
        if times:
            self._distances[member] = min(times)

    async def request(self, member: str, request: PeerRequest) -> PeerAnswer:
        """Passes a request on. An answer that comes before all of the body has been sent ends the sending."""
        timeout = _timeout(request.answer_seconds)
        options = {"data": request.body, "expect100": request.waits, "headers": request.headers, "timeout": timeout}
        async with self._asking(member, request.method, request.target, **options) as found:
            headers = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in found.raw_headers]
            return PeerAnswer(found.status, headers, await self._read(member, found))

    @asynccontextmanager
    async def _asking(
        self, member: str, method: str, target: str, **options: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        url = URL(f"https://{self._addresses[member]}{target}", encoded=True)
        name = f"{member}.{self._cluster_id}.meridian"
        with self._failures(member):
            found = await self._session.request(method, url, server_hostname=name, allow_redirects=False, **options)
        try:
            yield found
        finally:
            found.close()  # of one that has been read to its end this leaves the connection to others

    async def _chunks(self, member: str, found: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        with self._failures(member):
            async for chunk in found.content.iter_any():
                yield chunk

    async def _read(self, member: str, found: aiohttp.ClientResponse) -> bytes:
        body = bytearray()
        async for chunk in self._chunks(member, found):
            body += chunk
            if len(body) > MAX_ANSWER_BYTES:
                raise PeerWrong(f"{member} answers with more than {MAX_ANSWER_BYTES} bytes")
        return bytes(body)

    @contextmanager
    def _failures(self, member: str) -> Iterator[None]:
        try:
            yield
        except (aiohttp.ClientError, OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            self.directory.forget(member)
            raise PeerUnreachable(f"{member}: {type(error).__name__}: {error}"[:300]) from error


def _timeout(stall_seconds: float, total_seconds: float | None = None) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(
        total=total_seconds, connect=CONNECT_SECONDS, sock_connect=CONNECT_SECONDS, sock_read=stall_seconds
    )


def _size(found: aiohttp.ClientResponse, start: int, stop: int) -> int:
    """Of the whole blob, if what comes is what was asked for, or all of the blob that there is of it."""
    place, _, size = found.headers.get("content-range", "").removeprefix("bytes ").partition("/")
    if found.status == 206 and len(size) <= MAX_SIZE_DIGITS and size.isascii() and size.isdecimal():
        size_bytes = int(size)
        if place == f"{start}-{min(stop, size_bytes) - 1}":
            return size_bytes
    raise PeerWrong(f"status {found.status} and {place[:40]!r} in answer to bytes {start} to {stop}")
