"""Transports between members of one process: what is sent arrives, unless a link is cut."""

from __future__ import annotations

import threading

from consensus.raft.links import Linked, Message, Receive


class Hub:
    """The network. Every pair is linked while both have begun and neither direction is cut."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.ports: dict[str, HubTransport] = {}
        self.cut: set[tuple[str, str]] = set()

    def transport(self, me: str) -> HubTransport:
        return HubTransport(self, me)


class HubTransport:
    """One member's Transport."""

    def __init__(self, hub: Hub, me: str) -> None:
        self._hub = hub
        self._me = me
        self.receive: Receive = lambda *_: None
        self.linked: Linked = lambda *_: None

    def start(self, receive: Receive, linked: Linked) -> None:
        self.receive, self.linked = receive, linked
        with self._hub.lock:
            self._hub.ports[self._me] = self
            for name, port in self._hub.ports.items():
                if name != self._me:
                    port.linked(self._me, True)
                    linked(name, True)

    def send(self, peer: str, message: Message) -> bool:
        with self._hub.lock:
            port = self._hub.ports.get(peer)
            if port is None or (self._me, peer) in self._hub.cut:
                return False
            port.receive(self._me, message)
            return True

    def round_trip_seconds(self, peer: str) -> float | None:
        return 0.0001

    def close(self) -> None:
        with self._hub.lock:
            if self._hub.ports.pop(self._me, None):
                for port in self._hub.ports.values():
                    port.linked(self._me, False)
