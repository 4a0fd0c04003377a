"""A server with a small application, and a client that says exactly what it is told to."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import msgspec
import uvloop

from node.config import Limits
from node.gateway.requests import Receive, Scope, Send
from node.gateway.server import HttpServer

GET = b"GET /a/b?c=d HTTP/1.1\r\nHost: here\r\n\r\n"
CHUNK = b"z" * 65536


def on_uvloop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Runs the test on the loop that the gateways run on."""

    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        uvloop.run(test(*args, **kwargs))

    return run


def post(path: bytes, body: bytes, *headers: bytes) -> bytes:
    lines = [b"POST %b HTTP/1.1" % path, b"Host: here", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join([*lines, b"", body])


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@dataclass
class Application:
    """Answers with what it was asked, in JSON; some paths do something else."""

    seen: list[tuple[str, str, bytes]] = field(default_factory=list)
    sent_bytes: int = 0
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handler = getattr(self, "do_" + scope["path"].strip("/").partition("/")[0], self.do_echo)
        try:
            await handler(scope, receive, send)
        finally:
            self.ended.set()

    async def do_echo(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.seen.append((scope["method"], "disconnect", body))
                return
            body += message["body"]
            if not message["more_body"]:
                break
        self.seen.append((scope["method"], scope["path"], body))
        answer = msgspec.json.encode(
            {
                "method": scope["method"],
                "path": scope["path"],
                "query": scope["query_string"].decode(),
                "version": scope["http_version"],
                "headers": [[name.decode(), value.decode("latin-1")] for name, value in scope["headers"]],
                "body": body[:1000].decode("latin-1"),
                "length": len(body),
            }
        )
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(answer))]}
        )
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else answer})

    async def do_early(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers without a look at the body."""
        await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"no"})

    async def do_wait(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.go_on.wait()
        await self.do_early(scope, receive, send)

    async def do_endless(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": CHUNK, "more_body": True})
            self.sent_bytes += len(CHUNK)

    async def do_large(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Much in one piece."""
        length = b"%d" % len(CHUNK)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
        await send({"type": "http.response.body", "body": CHUNK})
        self.sent_bytes += len(CHUNK)

    async def do_half(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Half now, half when told to go on."""
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"8")]})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        await self.go_on.wait()
        await send({"type": "http.response.body", "body": b"rest"})

    async def do_chunked(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-kind", b"chunked")]})
        for part in (b"one", b"", b"two"):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def do_empty(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def do_raise(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError("on purpose")

    async def do_silent(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Returns without an answer."""

    async def do_inject(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x", b"a\r\nset-cookie: b")]})
        await send({"type": "http.response.body", "body": b""})

    async def do_short(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Promises more than it sends."""
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"10")]})
        await send({"type": "http.response.body", "body": b"four", "more_body": True})

    async def do_long(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends more than it promised."""
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"four"})


@dataclass
class Answer:
    """A response as it came."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)


class Client:
    """One raw connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, *parts: bytes) -> None:
        for part in parts:
            self.writer.write(part)
        await self.writer.drain()

    async def answer(self, *, bodyless: bool = False) -> Answer:
        """The next response; raises asyncio.IncompleteReadError when it does not come whole."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {}
        for line in head[1:-2]:
            name, _, value = line.partition(": ")
            assert name not in headers
            headers[name] = value
        body = b""
        if not bodyless:
            if headers.get("transfer-encoding") == "chunked":
                body = await self._chunks()
            elif "content-length" in headers:
                body = await self.reader.readexactly(int(headers["content-length"]))
        return Answer(int(head[0].split()[1]), headers, body)

    async def _chunks(self) -> bytes:
        body = b""
        while size := int(await self.reader.readline(), 16):
            body += await self.reader.readexactly(size)
            assert await self.reader.readline() == b"\r\n"
        assert await self.reader.readline() == b"\r\n"
        return body

    async def ended(self) -> bytes:
        """What comes before the server ends the connection."""
        try:
            return await self.reader.read()
        except ConnectionResetError:
            return b""

    async def is_reset(self) -> bool:
        try:
            while await self.reader.read(65536):
                pass
        except ConnectionResetError:
            return True
        return False

    def close(self) -> None:
        self.writer.transport.abort()


@dataclass
class Service:
    """A server under test."""

    server: HttpServer
    application: Application
    address: tuple[str, int]
    tls: ssl.SSLContext | None

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        client = Client(*await asyncio.open_connection(*self.address, ssl=self.tls))
        try:
            yield client
        finally:
            client.close()

    async def ask(self, *parts: bytes) -> Answer:
        """One request on a connection of its own."""
        async with self.client() as client:
            await client.send(*parts)
            return await client.answer()


@asynccontextmanager
async def serving(
    limits: Limits | None = None, *, tls: ssl.SSLContext | None = None, client_tls: ssl.SSLContext | None = None
) -> AsyncIterator[Service]:
    """A server on a port of its own; nothing of it is left behind."""
    application = Application()
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    server = HttpServer(application, limits or Limits(), tls=tls)
    await server.start(listener)
    assert server.address
    try:
        async with asyncio.timeout(30):
            yield Service(server, application, server.address, client_tls)
    finally:
        await server.drain(0)
