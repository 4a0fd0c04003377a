"""A TCP relay on loopback: the wire between two members, which a test can cut, freeze and look at."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self


class Relay:
    """Listens at `address`, an address of its own, and passes bytes on to `target` both ways.

    `cut` breaks every connection and refuses new ones, `freeze` stops passing bytes on and leaves everything open, as a
    stopped process does; `mend` ends both. `bytes_per_second` is that of each direction of each connection.
    """

    def __init__(self, target: str = "") -> None:
        self.target = target
        self.accepted = 0
        self.bytes_per_second: int | None = None
        self._never = threading.Event()
        self._moving = threading.Event()
        self._moving.set()
        self._cut = False
        self._closed = False
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._spawn(self._accept)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._closed = True
        self._moving.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._break()
        for thread in self._threads:
            thread.join(5)

    def freeze(self) -> None:
        self._moving.clear()

    def cut(self) -> None:
        self._cut = True
        self._break()

    def mend(self) -> None:
        self._cut = False
        self._moving.set()

    def _break(self) -> None:
        with self._lock:
            sockets = list(self._sockets)
        for each in sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _spawn(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, name="relay", daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            if self._cut:
                client.close()
                continue
            self._spawn(self._connect, client)

    def _connect(self, client: socket.socket) -> None:
        host, _, port = self.target.rpartition(":")
        try:
            server = socket.create_connection((host, int(port or 0)), timeout=5)
        except OSError:
            client.close()
            return
        server.settimeout(None)
        with self._lock:
            self._sockets |= {client, server}
        back = threading.Thread(target=self._pass, args=(server, client), name="relay", daemon=True)
        back.start()
        self._pass(client, server)
        back.join(5)
        with self._lock:
            self._sockets -= {client, server}
        client.close()
        server.close()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                while not self._moving.wait(0.5) and not self._closed:
                    pass
                if self.bytes_per_second:
                    self._never.wait(len(data) / self.bytes_per_second)
                sink.sendall(data)
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
