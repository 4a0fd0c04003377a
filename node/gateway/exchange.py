"""One request and its response: the ASGI side of a connection.

Bytes go through as they come. Of a request's body at most about READ_AHEAD_BYTES wait here for the application, then
the connection stops reading; of a response at most the transport's buffer waits for the client, then `send` waits.
"""

from __future__ import annotations

import asyncio
import http
import logging
from typing import TYPE_CHECKING, Any

from node.gateway.requests import Message, Scope

if TYPE_CHECKING:
    from node.gateway.connection import Connection

READ_AHEAD_BYTES = 512 * 1024
MAX_UNREAD_BYTES = 256 * 1024  # so much of a body that nobody wanted is read to keep the connection

_DISCONNECT: Message = {"type": "http.disconnect"}
_WITHOUT_BODY = (204, 304)
_JOIN_BYTES = 16 * 1024
_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in http.HTTPStatus}

log = logging.getLogger(__name__)


class ClientDisconnected(OSError):
    """The client went away: there is nobody to send to."""


class Exchange:
    """`receive` and `send` of one request. Over when the answer is whole, the client gone or the application failed."""

    __slots__ = (
        "_chunked",
        "_chunks",
        "_connection",
        "_continue",
        "_head",
        "_remaining",
        "_task",
        "_told_end",
        "_waiter",
        "answered",
        "broken",
        "buffered_bytes",
        "expected_bytes",
        "keep_alive",
        "received",
        "scope",
        "started",
    )

    def __init__(
        self, connection: Connection, scope: Scope, *, keep_alive: bool, waits: bool, expected_bytes: int | None
    ) -> None:
        """`waits`: the client sends its body after 100 (Continue). `expected_bytes` of body follow, None: unknown."""
        self.scope = scope
        self.keep_alive = keep_alive
        self.received = False  # the whole request
        self.started = False  # the response is on its way
        self.answered = False  # the whole response
        self.broken = False  # nothing more can be received, or sent
        self.buffered_bytes = 0
        self.expected_bytes = expected_bytes
        self._connection = connection
        self._continue = waits
        self._chunks: list[bytes] = []
        self._waiter: asyncio.Future[None] | None = None
        self._told_end = False
        self._head = b""
        self._chunked = False
        self._remaining = -1  # of the response's body; -1: not announced
        self._task: asyncio.Task[None] | None = None

    # What the connection does.

    def begin(self) -> None:
        """Runs the application."""
        connection = self._connection
        connection.server.exchanges.add(self)
        self._task = connection.loop.create_task(self._run())

    def feed(self, chunk: bytes) -> None:
        """More of the body."""
        if self.expected_bytes is not None:
            self.expected_bytes -= len(chunk)
        if self.answered or self.broken:
            return
        self._continue = False
        self._chunks.append(chunk)
        self.buffered_bytes += len(chunk)
        self._wake()

    def feed_end(self) -> None:
        """The request is whole."""
        self.received = True
        self._continue = False
        self._wake()

    def fail(self) -> None:
        """Nothing more will come, and nothing more can be sent."""
        self.broken = True
        self._chunks.clear()
        self._wake()

    @property
    def waits_for_client(self) -> bool:
        """Whether it is the client's turn to send."""
        return not (self.received or self._continue)

    def cancel(self) -> None:
        """Ends the application where it stands."""
        if self._task:
            self._task.cancel()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # What the application does.

    async def receive(self) -> Message:
        """ASGI's receive."""
        if self._continue and not self.started:
            self._continue = False
            self._connection.write_continue()
        while not (self._chunks or self.broken or self.answered or (self.received and not self._told_end)):
            self._waiter = self._connection.loop.create_future()
            await self._waiter
        if self.broken or self.answered:
            return _DISCONNECT
        chunks = self._chunks
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self.buffered_bytes = 0
        self._connection.want_more()
        self._told_end = self.received
        return {"type": "http.request", "body": body, "more_body": not self.received}

    async def send(self, message: Message) -> None:
        """ASGI's send; raises ClientDisconnected once the client is gone."""
        if self.broken:
            raise ClientDisconnected("the client is gone")
        kind = message["type"]
        if kind == "http.response.start" and not (self._head or self.started):
            self._head = self._make_head(message["status"], message.get("headers", ()))
            return
        if kind != "http.response.body" or not (self._head or self.started) or self.answered:
            raise RuntimeError(f"{kind} does not come at this point")
        more = message.get("more_body", False)
        self._write_body(message.get("body", b""), more=more)
        if not more:
            self.answered = True
            self._wake()
            self._connection.answered(self)
        elif self._connection.write_paused:
            await self._connection.drained()
            if self.broken:
                raise ClientDisconnected("the client is gone")

    def _make_head(self, status: int, headers: Any) -> bytes:
        lines = [_STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status]
        bare = status in _WITHOUT_BODY or self.scope["method"] == "HEAD"
        self._remaining = 0 if bare else -1
        for name, value in headers:
            if name == b"content-length" and not bare:
                self._remaining = int(value)
            elif name == b"connection" and value == b"close":
                self.keep_alive = False
                continue
            lines.append(b"%b: %b\r\n" % (name, value))
        if self._remaining < 0:
            self._chunked = self.scope["http_version"] == "1.1"
            self.keep_alive = self.keep_alive and self._chunked
            if self._chunked:
                lines.append(b"transfer-encoding: chunked\r\n")
        lines.append(self._connection.server.date_line)
        if not self._keeps_connection():
            self.keep_alive = False
            lines.append(b"connection: close\r\n")
        lines.append(b"\r\n")
        head = b"".join(lines)
        if head.count(b"\n") != len(lines) or head.count(b"\r") != len(lines) or b"\0" in head:
            raise RuntimeError("a response header holds a control character")
        return head

    def _keeps_connection(self) -> bool:
        """The next request begins behind this one's body: to be kept, that body has to be here or be short."""
        if not self.keep_alive or self._connection.server.draining:
            return False
        if self.received:
            return True
        return not self._continue and self.expected_bytes is not None and self.expected_bytes <= MAX_UNREAD_BYTES

    def _write_body(self, body: bytes, *, more: bool) -> None:
        head, self._head = self._head, b""
        if self._chunked:
            body = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + (b"" if more else b"0\r\n\r\n")
        elif self.scope["method"] == "HEAD":
            body = b""
        elif self._remaining >= 0:
            self._remaining -= len(body)
            if self._remaining < 0 or (self._remaining and not more):
                raise RuntimeError("the response's body is not as long as its Content-Length")
        self.started = True
        transport = self._connection.transport
        if head and len(body) <= _JOIN_BYTES:
            transport.write(head + body)
            return
        if head:
            transport.write(head)
        if body:
            transport.write(body)

    async def _run(self) -> None:
        connection = self._connection
        try:
            # Otherwise a client that goes on asking and reads no answer would have them pile up here.
            await connection.drained()
            await connection.server.app(self.scope, self.receive, self.send)
            if not (self.answered or self.broken):
                connection.application_failed(self)
        except ClientDisconnected:
            connection.abort()
        except asyncio.CancelledError:
            connection.abort()
            raise
        except Exception:
            log.exception("application_failed", extra={"path": self.scope["path"]})
            connection.application_failed(self)
        finally:
            connection.server.exchanges.discard(self)
