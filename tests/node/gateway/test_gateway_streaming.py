"""Over real connections: long bodies, clients that leave, and clients that are slow."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from node.gateway.server import HttpServer
from tests.node.gateway.rig import Rig, code, digest_of

MIB = 1024 * 1024
LARGE = 48 * MIB


@asynccontextmanager
async def serving(rig: Rig) -> AsyncIterator[int]:
    """The port at which the node listens."""
    listener = socket.create_server(("127.0.0.1", 0))
    port: int = listener.getsockname()[1]
    server = HttpServer(rig.app, rig.config.limits)
    await server.start(listener)
    try:
        yield port
    finally:
        await server.drain(5)


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection that says exactly what it is told to."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=MIB)
    try:
        yield reader, writer
    finally:
        writer.close()


async def recorded(rig: Rig, count: int) -> None:
    """Waits until so many requests are over."""
    async with asyncio.timeout(20):
        while len(rig.records.ended) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def large(size_bytes: int = LARGE) -> AsyncIterator[bytes]:
    for number in range(size_bytes // MIB):
        yield bytes([number % 251]) * MIB


async def large_digest() -> str:
    running = hashlib.sha256()
    async for chunk in large():
        running.update(chunk)
    return f"sha256:{running.hexdigest()}"


async def test_a_large_blob_goes_in_and_out(rig: Rig) -> None:
    digest = await large_digest()
    async with serving(rig) as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        location = (await client.post("/v2/a/blobs/uploads/")).headers["location"]
        patched = await client.patch(location, content=large())
        assert (patched.status_code, patched.headers["range"]) == (202, f"0-{LARGE - 1}")
        assert (await client.put(f"{location}?digest={digest}")).status_code == 201
        running, received = hashlib.sha256(), 0
        async with client.stream("GET", f"/v2/a/blobs/{digest}") as response:
            assert response.headers["content-length"] == str(LARGE)
            async for chunk in response.aiter_bytes():
                running.update(chunk)
                received += len(chunk)
        assert (received, f"sha256:{running.hexdigest()}") == (LARGE, digest)
        part = await client.get(f"/v2/a/blobs/{digest}", headers={"range": f"bytes={MIB - 1}-{MIB}"})
        assert (part.status_code, part.content) == (206, b"\0\1")
    assert rig.records.ended[1].bytes_in == LARGE


@pytest.mark.parametrize("framing", ["Content-Length: 9000000", "Transfer-Encoding: chunked"])
async def test_a_client_that_leaves_goes_on_where_it_was(
    rig: Rig, framing: str, caplog: pytest.LogCaptureFixture
) -> None:
    location = await rig.begin("a")
    whole = b"".join([chunk async for chunk in large(4 * MIB)])
    body = whole if "Length" in framing else b"%x\r\n%b\r\n" % (len(whole), whole)
    (data,) = (rig.folder / "uploads").glob("*/data")
    async with serving(rig) as port:
        async with connected(port) as (_, writer):
            writer.write(f"PATCH {location} HTTP/1.1\r\nHost: here\r\n{framing}\r\n\r\n".encode() + body)
            async with asyncio.timeout(10):
                while data.stat().st_size < MIB:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        await recorded(rig, 2)
    assert rig.records.ended[-1].status == 499
    offset = int((await rig.client.get(location)).headers["range"].removeprefix("0-")) + 1
    assert MIB <= offset <= len(whole)
    rest = whole[offset:] + b"end"
    span = {"content-range": f"{offset}-{offset + len(rest) - 1}"}
    put = await rig.client.put(f"{location}?digest={digest_of(whole + b'end')}", content=rest, headers=span)
    assert put.status_code == 201
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_push_at_once_that_breaks_off_leaves_nothing(rig: Rig) -> None:
    async with serving(rig) as port:
        async with connected(port) as (_, writer):
            head = (
                f"POST /v2/a/blobs/uploads/?digest={digest_of(b'')} HTTP/1.1\r\nHost: here\r\nContent-Length: 9\r\n\r\n"
            )
            writer.write(head.encode() + b"x")
            await writer.drain()
        await recorded(rig, 1)
    assert rig.records.ended[-1].status == 499
    assert rig.open_uploads() == 0


async def test_a_client_that_does_not_read_is_waited_for(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    location, digest = await rig.begin("a"), await large_digest()
    await rig.client.patch(location, content=large())
    await rig.client.put(f"{location}?digest={digest}")
    async with serving(rig) as port:
        async with connected(port) as (reader, writer):
            writer.write(f"GET /v2/a/blobs/{digest} HTTP/1.1\r\nHost: here\r\n\r\n".encode())
            await reader.readuntil(b"\r\n\r\n")
        await recorded(rig, 4)
    record = rig.records.ended[-1]
    # What the buffers of both sides hold was read from the file; the rest was not.
    assert (record.status, record.bytes_out < LARGE // 2) == (499, True)
    assert [entry.getMessage() for entry in caplog.records if entry.levelno >= logging.WARNING] == []


async def test_an_early_refusal_reaches_a_client_that_sends_first(rig: Rig) -> None:
    async with serving(rig) as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        for path in ("/v2/a/manifests/v1", "/v2/a/blobs/uploads/forged", "/v2/A/manifests/v1"):
            response = await client.put(path, content=b"x" * (5 * MIB))
            assert response.status_code in (400, 413)
            code(response)
        assert (await client.get("/v2/")).status_code == 200


async def test_a_short_body_that_nobody_wants_does_not_cost_the_connection(rig: Rig) -> None:
    async with serving(rig) as port, connected(port) as (reader, writer):
        for _ in range(3):
            writer.write(b"PUT /v2/a/manifests/.bad HTTP/1.1\r\nHost: here\r\nContent-Length: 9\r\n\r\nnot taken")
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 400 ")
            length = int(head.lower().partition(b"content-length: ")[2].split()[0])
            assert b"MANIFEST_INVALID" in await reader.readexactly(length)


async def test_a_client_that_asks_first_sends_nothing_that_is_refused(rig: Rig) -> None:
    location = await rig.begin("a")
    async with serving(rig) as port:
        for path, expected in (("/v2/a/blobs/uploads/forged", b"404"), (location, b"100")):
            async with connected(port) as (reader, writer):
                head = f"PATCH {path} HTTP/1.1\r\nHost: here\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
                writer.write(head.encode())
                assert (await reader.readuntil(b"\r\n")).split()[1] == expected
                if expected == b"100":
                    writer.write(b"abc")
                    await reader.readuntil(b"\r\n")
                    assert (await reader.readuntil(b"\r\n")).split()[1] == b"202"
