"""One client connection: HTTP/1.1 within bounds, whatever the client sends. llhttp (by httptools) does the parsing.

Requests that come before their predecessor is answered wait in line. No timer belongs to a connection: the server calls
`check` for all of them now and then, which is what makes ten thousand idle ones cheap.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, cast

import httptools

from consensus import entropy
from node.gateway.exchange import READ_AHEAD_BYTES, Exchange
from node.gateway.head import (
    BODY_SLOW,
    FAILED,
    HEAD_SLOW,
    HEADERS_LARGE,
    MALFORMED,
    NO_TUNNELS,
    TOO_MANY_CONNECTIONS,
    Head,
    Refusal,
    Refused,
)

if TYPE_CHECKING:
    from node.gateway.server import HttpServer

MAX_PIPELINED = 64
LINGER_SECONDS = 5.0
LINGER_BYTES = 16 * 1024 * 1024
IDLE_GRACE_SECONDS = 1.0  # when draining: a request may be on its way

log = logging.getLogger(__name__)


class Connection(asyncio.Protocol):
    """See the module."""

    __slots__ = (
        "_client",
        "_deaf",
        "_discarded_bytes",
        "_drain_waiter",
        "_exchanges",
        "_head",
        "_heard_at",
        "_lingering_until",
        "_moved",
        "_parser",
        "_reading_paused",
        "_silent_bytes",
        "_unsent_bytes",
        "_unsent_since",
        "_upgrade",
        "loop",
        "server",
        "transport",
        "write_paused",
    )

    transport: asyncio.Transport

    def __init__(self, server: HttpServer, loop: asyncio.AbstractEventLoop) -> None:
        self.server = server
        self.loop = loop
        self.write_paused = False
        self._parser: Any = None
        self._client: tuple[str, int] | None = None
        self._exchanges: list[Exchange] = []  # [0] is being answered, [-1] may still be arriving
        self._drain_waiter: asyncio.Future[None] | None = None
        self._reading_paused = False
        self._deaf = False  # nothing that comes is parsed any more
        self._lingering_until = 0.0
        self._discarded_bytes = 0
        self._heard_at = loop.time()
        self._unsent_bytes = 0
        self._unsent_since = 0.0
        self._head: Head | None = None
        self._upgrade = False
        self._moved = False
        self._silent_bytes = 0

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        self.transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self._client = (peer[0], peer[1]) if isinstance(peer, tuple) else None
        admit = self.server.admit
        if admit and not admit(transport.get_extra_info("peercert") or {}):
            self._deaf = True
            self.abort()
            return
        self.server.connections.add(self)
        if len(self.server.connections) > self.server.limits.connections:
            self._deaf = True
            self._write_refusal(TOO_MANY_CONNECTIONS)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self.server.connections.discard(self)
        self._deaf = True
        for exchange in self._exchanges:
            exchange.fail()
        self._exchanges.clear()
        self.resume_writing()
        self._parser = None

    def eof_received(self) -> bool:
        """The client will send no more. One that has sent its whole request may still read the answer."""
        self._deaf = True
        if not self._exchanges or self._lingering_until:
            return False
        last = self._exchanges[-1]
        last.keep_alive = False
        if not last.received:
            last.fail()
            return False
        return True

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        if self._deaf:
            self._discarded_bytes += len(data)
            if self._discarded_bytes > LINGER_BYTES:
                self.abort()
            return
        self._heard_at = self.loop.time()
        self._moved = False
        self._parse(data)
        if self._moved:
            self._silent_bytes = 0
        elif not self._deaf:
            self._bound_silence(len(data))

    def pause_writing(self) -> None:
        """See asyncio."""
        self.write_paused = True

    def resume_writing(self) -> None:
        """See asyncio."""
        self.write_paused = False
        waiter, self._drain_waiter = self._drain_waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # What exchanges call.

    async def drained(self) -> None:
        """Returns once the client has taken most of what waits for it, or is gone."""
        if self.write_paused:
            self._drain_waiter = self._drain_waiter or self.loop.create_future()
            await asyncio.shield(self._drain_waiter)

    def want_more(self) -> None:
        """The application has room for more of the body."""
        if self._reading_paused and len(self._exchanges) == 1 and not self.transport.is_closing():
            self._reading_paused = False
            self._heard_at = self.loop.time()
            self.transport.resume_reading()

    def write_continue(self) -> None:
        """The application wants the body that the client holds back."""
        self._heard_at = self.loop.time()
        self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def abort(self) -> None:
        """Ends the connection at once; what is unsent is dropped."""
        self.transport.abort()

    def application_failed(self, exchange: Exchange) -> None:
        """An answer that has not begun is 500; one that has is cut short, for the client to see."""
        if exchange.broken or exchange.answered:
            return
        if exchange.started:
            self.abort()
            return
        exchange.fail()
        self._exchanges.clear()
        self._deaf = True
        self._write_refusal(FAILED)

    def answered(self, exchange: Exchange) -> None:
        """The first exchange's response is written."""
        if self.transport.is_closing() or not self._exchanges:
            return
        if exchange.received:
            self._next()
        elif exchange.keep_alive and not self._deaf:
            self.want_more()  # the rest of the body is read and dropped
        else:
            self._linger()

    # From bytes to requests.

    def _parse(self, data: bytes) -> None:
        if self._parser is None:
            self._parser = httptools.HttpRequestParser(self)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._parse_without_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            if not self._deaf:
                reason = error.__context__
                self._refuse(reason.refusal if isinstance(reason, Refused) else MALFORMED)

    def _parse_without_upgrade(self, rest: bytes) -> None:
        """Nothing is upgraded to: the same request is parsed again without that wish, and then what follows it."""
        assert self._head
        head = self._head.without_upgrade(self._parser.get_method(), self._parser.get_http_version())
        self._upgrade = False
        self._parse(head + rest)

    def on_message_begin(self) -> None:
        """See httptools."""
        self._moved = True
        self._head = Head(self.server.limits, self._heard_at)

    def on_url(self, url: bytes) -> None:
        """See httptools; may come in pieces."""
        assert self._head
        self._head.add_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """See httptools; also called for trailers."""
        assert self._head
        self._head.add_header(name, value)

    def on_headers_complete(self) -> None:
        """See httptools."""
        assert self._head
        self._moved = True
        head, parser = self._head, self._parser
        method = parser.get_method()
        if parser.should_upgrade():
            if method == b"CONNECT":
                raise Refused(NO_TUNNELS)
            self._upgrade = True
            return
        version = parser.get_http_version()
        scope = head.close(method, version)
        scope.update(server=self.server.address, client=self._client, scheme=self.server.scheme)
        keep_alive = version == "1.1" and parser.should_keep_alive()
        self._enqueue(Exchange(self, scope, keep_alive=keep_alive, waits=head.waits, expected_bytes=head.body_bytes))

    def on_body(self, body: bytes) -> None:
        """See httptools."""
        self._moved = True
        exchange = self._exchanges[-1]
        exchange.feed(body)
        if exchange.buffered_bytes > READ_AHEAD_BYTES:
            self._pause()

    def on_message_complete(self) -> None:
        """See httptools."""
        self._moved = True
        if self._upgrade:
            return
        self._head = None
        exchange = self._exchanges[-1]
        exchange.feed_end()
        if not self._parser.should_keep_alive():
            self._deaf = True  # what follows the last request is no request
        if exchange.answered:
            self._next()

    def _enqueue(self, exchange: Exchange) -> None:
        self._exchanges.append(exchange)
        if len(self._exchanges) == 1:
            exchange.begin()
        elif len(self._exchanges) > MAX_PIPELINED:
            raise Refused(MALFORMED)
        else:
            self._pause()

    def _pause(self) -> None:
        if not self._reading_paused:
            self._reading_paused = True
            self.transport.pause_reading()

    def _next(self) -> None:
        """The first exchange is over, both ways."""
        keep_alive = self._exchanges.pop(0).keep_alive
        if keep_alive and self._exchanges:
            self._exchanges[0].begin()
        elif self._deaf or not keep_alive:
            self._exchanges.clear()
            self._linger() if self._in_head else self.transport.close()
        else:
            self._heard_at = self.loop.time()
        self.want_more()

    @property
    def _in_head(self) -> bool:
        return self._head is not None and self._head.is_open

    # Refusing and ending.

    def _bound_silence(self, size_bytes: int) -> None:
        """A header, chunk extension or trailer that goes on and on is kept by the parser until it is whole."""
        self._silent_bytes += size_bytes
        if self._silent_bytes > self.server.limits.header_bytes:
            self._refuse(HEADERS_LARGE if self._in_head else MALFORMED)

    def _refuse(self, refusal: Refusal) -> None:
        """The request that is arriving cannot be served; those before it are answered."""
        self._deaf = True
        arriving = self._exchanges.pop() if self._exchanges and not self._exchanges[-1].received else None
        if self._exchanges:
            self._exchanges[-1].keep_alive = False
            return
        if arriving is None or not arriving.started:
            self._write_refusal(refusal)
        elif arriving.answered:
            self._linger()
        else:
            self.abort()
        if arriving is not None:
            arriving.fail()

    def _write_refusal(self, refusal: Refusal) -> None:
        request_id = entropy.token_bytes(16).hex()
        client = self._client[0] if self._client else ""
        fields = {"status": refusal.status, "reason": refusal.message, "client": client, "refused_id": request_id}
        log.info("request_refused", extra=fields)
        self.transport.write(refusal.response(request_id))
        self._linger()

    def _linger(self) -> None:
        """Closing with bytes unread resets the connection, and the client might never see the answer: so the end is
        announced, and for a while whatever still comes is read and dropped."""
        self._deaf = True
        if not self.transport.can_write_eof():
            self.transport.close()
            return
        self._lingering_until = self.loop.time() + LINGER_SECONDS
        self.transport.write_eof()
        if self._reading_paused:
            self._reading_paused = False
            self.transport.resume_reading()

    def check(self, now: float) -> None:
        """Ends the connection if its client is slower than allowed."""
        limits = self.server.limits
        unsent = self.transport.get_write_buffer_size()
        if unsent != self._unsent_bytes or not unsent:
            self._unsent_bytes, self._unsent_since = unsent, now
        elif now - self._unsent_since > limits.body_stall_seconds:
            self.abort()
            return
        if self.transport.is_closing():
            return
        if self._lingering_until:
            if now > self._lingering_until:
                self.abort()
        elif self._exchanges:
            last = self._exchanges[-1]
            stalled = last.waits_for_client and not self._reading_paused
            if stalled and now - self._heard_at > limits.body_stall_seconds:
                self._refuse(BODY_SLOW)
        elif self._head and self._head.is_open:
            if now - self._head.begun_at > limits.header_seconds:
                self._refuse(HEAD_SLOW)
        elif not unsent and now - self._heard_at > self._idle_seconds(now):
            self.transport.close()

    def _idle_seconds(self, now: float) -> float:
        draining = self.server.draining_since
        if draining is None:
            return self.server.limits.idle_seconds
        return 0.0 if now - draining > IDLE_GRACE_SECONDS else IDLE_GRACE_SECONDS
