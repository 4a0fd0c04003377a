"""The WAN between the regions of a lab, where there is no C compiler: does what carrier.c beside it does.

    python carrier.py CONTROL SEED PORT=ADDRESS...

The head of carrier.c has the arguments and the orders; for one seed both lose the same packets. This one takes up to
twice the processor time; most of it is the kernel's in both.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence

_SECOND_NS = 1_000_000_000
_MOST_PORTS = 16
_MOST_PACKET = 65536
_BURST = 64
_GRAIN_NS = 50_000
_HEADER, _DESTINATION = 20, 16
_WORD = (1 << 64) - 1


class Way:
    """One direction between two ports. `arriving` holds (nanoseconds, packet), in order."""

    def __init__(self, seed: int) -> None:
        self.delay_ns = self.jitter_ns = self.loss = self.queue_bytes = 0
        self.bytes_per_second = 1
        self.cut = True
        self.arriving: deque[tuple[int, bytes]] = deque()
        self.packets = self.bytes = self.lost = self.dropped = 0
        self._chance = seed & _WORD
        self._free_ns = 0
        self._last_ns = 0

    def take(self, packet: bytes, now: int) -> None:
        """A packet that is sent now."""
        if self.cut:
            self.lost += 1
            return
        starts = max(self._free_ns, now)
        size = len(packet)
        if (starts - now) * self.bytes_per_second // _SECOND_NS + size > self.queue_bytes:
            self.dropped += 1
            return
        self._free_ns = starts + size * _SECOND_NS // self.bytes_per_second
        if self._draw() < self.loss:
            self.lost += 1
            return
        arrives = self._free_ns + self.delay_ns
        if self.jitter_ns:
            arrives += self._draw() * self.jitter_ns >> 32
        self._last_ns = max(self._last_ns, arrives)
        self.arriving.append((self._last_ns, packet))

    def deliver(self, descriptor: int, now: int) -> None:
        """Those that have arrived by now."""
        while self.arriving and self.arriving[0][0] <= now:
            _, packet = self.arriving.popleft()
            if self.cut:
                self.lost += 1
                continue
            try:
                os.write(descriptor, packet)
            except OSError:  # the receiving system has no room for it
                self.dropped += 1
                continue
            self.packets += 1
            self.bytes += len(packet)

    def _draw(self) -> int:
        self._chance = (self._chance + 0x9E3779B97F4A7C15) & _WORD
        z = self._chance
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _WORD
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _WORD
        return (z ^ (z >> 31)) >> 32


class Carrier:
    """The ways between ports, each given by its descriptor and its address."""

    def __init__(self, ports: Sequence[tuple[int, bytes]], seed: int) -> None:
        self._descriptors = [descriptor for descriptor, _ in ports]
        self._ways = {
            (source, sink): Way(seed * 1000003 + source * _MOST_PORTS + sink)
            for source in range(len(ports))
            for sink in range(len(ports))
            if source != sink
        }
        self._routes: dict[int, Mapping[bytes, Way]] = {
            descriptor: {address: self._ways[source, sink] for sink, (_, address) in enumerate(ports) if sink != source}
            for source, (descriptor, _) in enumerate(ports)
        }

    def run(self, control: socket.socket) -> None:
        """Until the orders end."""
        watched = [control.fileno(), *self._descriptors]
        wait: float | None = None
        while True:
            readable, _, _ = select.select(watched, [], [], wait)
            for descriptor in readable:
                if descriptor != control.fileno():
                    self._receive(descriptor)
                elif not (order := control.recv(256)):
                    return
                else:
                    control.send(self.obey(order.decode()).encode())
            wait = self._deliver_due()

    def obey(self, order: str) -> str:
        """The answer to an order."""
        match order.split():
            case ["count"]:
                return "".join(
                    f"{source} {sink} {way.packets} {way.bytes} {way.lost} {way.dropped}\n"
                    for (source, sink), way in self._ways.items()
                )
            case ["set", *words] if len(words) == 8 and all(word.isdecimal() for word in words):
                source, sink, delay_ns, jitter_ns, loss, rate, queue_bytes, cut = map(int, words)
                if (source, sink) in self._ways and rate:
                    way = self._ways[source, sink]
                    way.delay_ns, way.jitter_ns, way.loss = delay_ns, jitter_ns, loss
                    way.bytes_per_second, way.queue_bytes, way.cut = rate, queue_bytes, bool(cut)
                    return "ok"
        return "no such order"

    def _receive(self, descriptor: int) -> None:
        routes = self._routes[descriptor]
        for _ in range(_BURST):
            try:
                packet = os.read(descriptor, _MOST_PACKET)
            except OSError:
                return
            if len(packet) < _HEADER or packet[0] >> 4 != 4:
                continue
            if way := routes.get(packet[_DESTINATION:_HEADER]):
                way.take(packet, time.monotonic_ns())

    def _deliver_due(self) -> float | None:
        """Seconds until the next packet is due, None for never."""
        now = time.monotonic_ns()
        following = 0
        for (_, sink), way in self._ways.items():
            if way.arriving:
                way.deliver(self._descriptors[sink], now)
                if way.arriving and (not following or way.arriving[0][0] < following):
                    following = way.arriving[0][0]
        return max(following - now, _GRAIN_NS) / _SECOND_NS if following else None


def main(arguments: Sequence[str]) -> None:
    """The process."""
    control, seed, *listed = arguments
    ports = []
    for descriptor, _, address in (each.partition("=") for each in listed):
        ports.append((int(descriptor), socket.inet_aton(address)))
    Carrier(ports, int(seed)).run(socket.socket(fileno=int(control)))


if __name__ == "__main__":
    main(sys.argv[1:])
