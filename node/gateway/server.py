"""An HTTP server on a listening socket that is inherited: bounds, TLS, and an end that drops no request."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable, Mapping
from email.utils import formatdate
from functools import partial
from socket import AF_INET, AF_INET6, IPPROTO_TCP, TCP_NODELAY, socket
from typing import Any

from consensus import clock
from node.config import Limits
from node.gateway.connection import Connection
from node.gateway.exchange import Exchange
from node.gateway.requests import Receive, Scope, Send

App = Callable[[Scope, Receive, Send], Awaitable[None]]
Admit = Callable[[Mapping[str, Any]], bool]

MAX_OPENING = 512
MAX_SWEEP_SECONDS = 1.0
DRAIN_SWEEP_SECONDS = 0.05
TLS_SHUTDOWN_SECONDS = 5.0

log = logging.getLogger(__name__)


class HttpServer:
    """Serves `app` to everyone who connects. Connections share one timer, which looks at all of them."""

    def __init__(
        self, app: App, limits: Limits, *, tls: ssl.SSLContext | None = None, admit: Admit | None = None
    ) -> None:
        """`admit` says of a client's certificate, as ssl has it, whether the connection may stay."""
        self.app = app
        self.admit = admit
        self.limits = limits
        self.scheme = "https" if tls else "http"
        self.address: tuple[str, int] | None = None
        self.connections: set[Connection] = set()
        self.exchanges: set[Exchange] = set()
        self.draining_since: float | None = None
        self.date_line = b""
        self._tls = tls
        self._listener: socket | None = None
        self._accepting = False
        self._opening: set[asyncio.Task[None]] = set()  # of TLS: handshakes
        self._timer: asyncio.TimerHandle | None = None
        times = (limits.header_seconds, limits.idle_seconds, limits.body_stall_seconds)
        self._sweep_seconds = min(MAX_SWEEP_SECONDS, min(times) / 4)

    @property
    def draining(self) -> bool:
        """Whether every answer is the last one of its connection."""
        return self.draining_since is not None

    async def start(self, listener: socket) -> None:
        """Accepts connections on the socket, which belongs to the server from now on. Raises OSError."""
        name = listener.getsockname()
        self.address = (name[0], name[1]) if isinstance(name, tuple) else None
        listener.setblocking(False)
        self._listener = listener
        self._sweep()

    async def drain(self, seconds: float) -> bool:
        """Stops accepting, lets what is under way end, closes idle connections after a moment in which a request may
        still arrive. Returns whether all ended within `seconds`; the others are cut off."""
        loop = asyncio.get_running_loop()
        self.draining_since = loop.time()
        self.stop_accepting()
        if self._timer:
            self._timer.cancel()
        while (self.connections or self.exchanges or self._opening) and loop.time() - self.draining_since < seconds:
            self._look()
            await asyncio.sleep(DRAIN_SWEEP_SECONDS)
        clean = not (self.connections or self.exchanges or self._opening)
        for task in list(self._opening):
            task.cancel()
        for exchange in list(self.exchanges):
            exchange.cancel()
        for connection in list(self.connections):
            connection.abort()
        await asyncio.sleep(0)
        return clean

    def stop_accepting(self) -> None:
        """Leaves new connections to the others that have the socket; goes on with those that are open. Idempotent."""
        self._stop_accepting()
        if self._listener:
            self._listener.close()
            self._listener = None

    # One connection a wake-up: the gateways that share the socket wake together, and each gets its share. (A loop's own
    # server takes all that wait, and with them all the work of a benchmark, or of one busy client.)

    def _start_accepting(self) -> None:
        if self._listener and not self._accepting:
            self._accepting = True
            asyncio.get_running_loop().add_reader(self._listener, self._accept, self._listener)

    def _stop_accepting(self) -> None:
        if self._listener and self._accepting:
            self._accepting = False
            asyncio.get_running_loop().remove_reader(self._listener)

    def _accept(self, listener: socket) -> None:
        try:
            accepted, _ = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            log.warning("accept_failed", extra={"reason": str(error)})
            self._stop_accepting()  # until the next sweep
            return
        accepted.setblocking(False)
        task = asyncio.get_running_loop().create_task(self._open(accepted))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)
        if len(self._opening) >= MAX_OPENING:
            self._stop_accepting()

    async def _open(self, accepted: socket) -> None:
        times: dict[str, Any] = {}
        if self._tls:
            times["ssl_handshake_timeout"] = self.limits.header_seconds
            times["ssl_shutdown_timeout"] = TLS_SHUTDOWN_SECONDS
        loop = asyncio.get_running_loop()
        try:
            if accepted.family in (AF_INET, AF_INET6):
                accepted.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
            await loop.connect_accepted_socket(partial(Connection, self, loop), accepted, ssl=self._tls, **times)
        except (OSError, TimeoutError) as error:
            log.debug("connection_not_opened", extra={"reason": str(error)})
            accepted.close()

    def _sweep(self) -> None:
        self._look()
        if len(self._opening) < MAX_OPENING:
            self._start_accepting()
        self._timer = asyncio.get_running_loop().call_later(self._sweep_seconds, self._sweep)

    def _look(self) -> None:
        self.date_line = b"date: %b\r\n" % formatdate(clock.wall_ms() // 1000, usegmt=True).encode()
        now = asyncio.get_running_loop().time()
        for connection in list(self.connections):
            connection.check(now)
