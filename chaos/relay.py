"""TCP between members, made slow, narrow or deaf: a process of its own, listeners for each ordered pair of members.

Delays, bandwidth and cuts belong to a way, that is one direction between two members, and hold for every connection:
what a sends to b travels on those that a opened and on those that b opened. How a way can be cut:

hold     nothing arrives; what was sent arrives late, once the way is healed, as TCP repeats what got lost
drop     nothing arrives, ever; the connections concerned are aborted when the way is healed
reset    connections over it are aborted at once, and new ones are too

Orders come as lines of JSON on standard input, each is answered by one; `chaos.ways` is the other end.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Literal, Protocol, cast

import uvloop

CutKind = Literal["", "hold", "drop", "reset"]
UNDER_WAY_BYTES = 16 * 1024 * 1024  # of one connection, one way; then the sender's own buffers fill
CONNECT_SECONDS = 5.0


class Lane(Protocol):
    """One direction of one connection, as its way knows it."""

    def go_on(self) -> None:
        """The way has changed."""

    def abort(self) -> None:
        """Ends the connection, both ways, at once."""


@dataclass(eq=False)
class Way:
    """All that travels from one member to another."""

    chance: Random
    delay_seconds: float = 0.0
    jitter_seconds: float = 0.0
    bytes_per_second: float = 0.0  # 0: without bound
    cut: CutKind = ""
    passed_bytes: int = 0
    lanes: set[Lane] = field(default_factory=set)
    _free_at: float = 0.0  # when what was sent so far has left

    def arrival(self, now: float, size_bytes: int) -> float:
        """When bytes that are sent now arrive."""
        if self.bytes_per_second:
            self._free_at = max(self._free_at, now) + size_bytes / self.bytes_per_second
            now = self._free_at
        return now + self.delay_seconds + self.chance.random() * self.jitter_seconds

    def change(self, cut: CutKind, **shape: float) -> None:
        """From now on it is so."""
        healed, self.cut = self.cut and not cut, cut
        for name, value in shape.items():
            setattr(self, name, value)
        for lane in list(self.lanes):
            if cut == "reset":
                lane.abort()
            elif healed:
                lane.go_on()


class _Lane:
    """Bytes from `source` to `sink`, each chunk at its time. `None` in the queue is the end of the stream."""

    def __init__(self, way: Way, source: asyncio.Transport, sink: asyncio.Transport) -> None:
        self._loop = asyncio.get_running_loop()
        self._way = way
        self._source = source
        self._sink = sink
        self._queue: deque[tuple[float, bytes | None]] = deque()
        self._queued_bytes = 0
        self._last_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._full = False  # the sink's own buffer
        self._broken = False  # something has been swallowed
        way.lanes.add(self)

    def push(self, data: bytes | None) -> None:
        if self._way.cut == "drop":
            self._broken = True
            return
        size = len(data or b"")
        self._last_at = max(self._last_at, self._way.arrival(self._loop.time(), size))
        self._queue.append((self._last_at, data))
        self._queued_bytes += size
        if self._queued_bytes > UNDER_WAY_BYTES:
            self._source.pause_reading()
        self._arm()

    def set_full(self, full: bool) -> None:
        self._full = full
        self._arm()

    def go_on(self) -> None:
        if self._broken:
            self.abort()
        else:
            self._arm()

    def abort(self) -> None:
        self.close()
        self._source.abort()
        self._sink.abort()

    def close(self) -> None:
        self._way.lanes.discard(self)
        self._queue.clear()
        if self._timer:
            self._timer.cancel()

    def _arm(self) -> None:
        if self._queue and self._timer is None and not self._full and not self._way.cut:
            self._timer = self._loop.call_at(self._queue[0][0], self._arrive)

    def _arrive(self) -> None:
        self._timer = None
        if self._sink.is_closing():  # what was under way to it is lost
            self.abort()
            return
        now = self._loop.time() + 0.0005  # the clock of timers is that coarse
        while self._queue and self._queue[0][0] <= now and not self._full:
            if self._way.cut:
                if self._way.cut == "drop":  # it was on its way
                    self._queue.clear()
                    self._broken = True
                return
            _, data = self._queue.popleft()
            if data is None:
                self.abort()
                return
            self._queued_bytes -= len(data)
            self._way.passed_bytes += len(data)
            self._sink.write(data)
        if self._queued_bytes <= UNDER_WAY_BYTES // 2 and not self._source.is_closing():
            self._source.resume_reading()
        self._arm()


class _End(asyncio.Protocol):
    """One end of a connection through the relay: what comes in here leaves by `out`."""

    def __init__(self) -> None:
        self.out: _Lane | None = None
        self.into: _Lane | None = None
        self.transport: asyncio.Transport | None = None
        self._early: list[bytes] = []  # what came before there was a way out

    def leads(self, out: _Lane) -> None:
        """From now on there is."""
        self.out = out
        for data in self._early:
            out.push(data)
        self._early.clear()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.out:
            self.out.push(data)
        else:
            self._early.append(data)

    def connection_lost(self, _: Exception | None) -> None:
        if self.out:
            self.out.push(None)  # the other end learns of it as of everything else: later, or never

    def pause_writing(self) -> None:
        if self.into:
            self.into.set_full(True)

    def resume_writing(self) -> None:
        if self.into:
            self.into.set_full(False)


class _Caller(_End):
    """The end at which a member calls another. A connection takes a round trip before it carries anything."""

    def __init__(self, forth: Way, back: Way, target: str) -> None:
        super().__init__()
        self._forth, self._back, self._target = forth, back, target
        self._dialling: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert self.transport is not None
        if "reset" in {self._forth.cut, self._back.cut}:
            self.transport.abort()
            return
        self._dialling = asyncio.create_task(self._dial(self.transport))

    async def _dial(self, near: asyncio.Transport) -> None:
        await asyncio.sleep(self._forth.delay_seconds + self._back.delay_seconds)
        host, _, port = self._target.rpartition(":")
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                far_end: _End
                far, far_end = await asyncio.get_running_loop().create_connection(_End, host, int(port))
        except (OSError, TimeoutError):
            near.abort()
            return
        forth = far_end.into = _Lane(self._forth, near, far)
        back = self.into = _Lane(self._back, far, near)
        self.leads(forth)
        far_end.leads(back)
        if near.is_closing():
            forth.abort()


class _Relay:
    def __init__(self, members: dict[str, list[str]], seed: int) -> None:
        self._members = members
        pairs = [(source, sink) for source in members for sink in members if source != sink]
        self._ways = {(a, b): Way(Random(f"{seed} {a} {b}")) for a, b in pairs}

    async def listen(self) -> dict[str, list[str]]:
        """The addresses at which a reaches those of b, by "a>b"."""
        found: dict[str, list[str]] = {}
        for (source, sink), way in self._ways.items():
            for target in self._members[sink]:
                made = partial(_Caller, way, self._ways[sink, source], target)
                server = await asyncio.get_running_loop().create_server(made, "127.0.0.1", 0)
                address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
                found.setdefault(f"{source}>{sink}", []).append(address)
        return found

    def obey(self, order: dict[str, object]) -> object:
        if "from" in order:
            way = self._ways[str(order["from"]), str(order["to"])]
            shape = cast(dict[str, float], order["shape"])
            way.change(cast(CutKind, order["cut"]), **shape)
        return {f"{source}>{sink}": way.passed_bytes for (source, sink), way in self._ways.items()}


async def _serve(members: dict[str, list[str]], seed: int) -> None:
    relay = _Relay(members, seed)
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(partial(asyncio.StreamReaderProtocol, lines), sys.stdin)
    print(json.dumps(await relay.listen()), flush=True)
    while line := await lines.readline():
        print(json.dumps(relay.obey(json.loads(line))), flush=True)


if __name__ == "__main__":
    uvloop.run(_serve(json.loads(sys.argv[1]), int(sys.argv[2])))
