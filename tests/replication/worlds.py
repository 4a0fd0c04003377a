"""Holders that a test invents for a schedule: each quarter of a second is a loop's round, no clock is waited for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from consensus.names import StoreId
from replication.pieces import Pieces
from replication.schedule import Flow, Schedule, Trouble

PIECE = 1000
NEAR, FAR = StoreId("near"), StoreId("far")
STEP = 0.25
LINK = 125_000
MIB = 1024 * 1024


@dataclass
class World:
    """Holders by how many bytes a second they give to each flow; what raises is said by `fails`."""

    schedule: Schedule
    pieces: Pieces
    rates: dict[StoreId, float]
    fails: Callable[[Flow], Trouble | None] = lambda flow: None
    needs: list[int] = field(default_factory=list)
    now: float = 100.0
    asked: list[tuple[StoreId, int, int]] = field(default_factory=list)
    received: int = 0
    cut: list[Flow] = field(default_factory=list)
    most: int = 0

    def step(self) -> None:
        self.now += STEP
        for flow in self.schedule.overdue(self.now):
            stalled = self.schedule.is_stalled(flow, self.now)
            self.cut.append(flow)
            self.schedule.ended(flow, Trouble.STALLED if stalled else Trouble.OVERTAKEN, self.now)
        while begun := self.schedule.next(self.needs, self.now):
            self.asked.append((begun.holder, begun.piece, begun.position))
        self.most = max(self.most, len(self.schedule.flows))
        for flow in sorted(self.schedule.flows, key=lambda flow: (flow.began, flow.piece, flow.holder)):
            if trouble := self.fails(flow):
                self.schedule.ended(flow, trouble, self.now)
            else:
                self._give(flow)

    def _give(self, flow: Flow) -> None:
        stop = self.pieces.stop(flow.piece)
        count = min(self.due(flow), stop - flow.position)
        if count:
            self.schedule.brought(flow, count, self.now)
            self.received += count
            fresh = flow.position - self.pieces.reached(flow.piece)
            if fresh > 0:
                self.pieces.add(flow.piece, fresh)
        if flow.position == stop:
            self.schedule.ended(flow, None, self.now)

    def due(self, flow: Flow) -> int:
        """How many bytes it gives in this step."""
        return int(self.rates[flow.holder] * STEP)

    def run(self, seconds: float = 600.0) -> bool:
        """Whether all came; False if the schedule gave up."""
        end = self.now + seconds
        while not self.pieces.whole:
            assert self.now < end, "it neither ends nor gives up"
            self.step()
            if self.schedule.hopeless(self.now):
                return False
        return True


@dataclass
class Bursts(World):
    """Each flow gives `burst` bytes, at once and then `every` so many seconds."""

    burst: int = 512
    every: float = 1.0

    def due(self, flow: Flow) -> int:
        return self.burst if (self.now - flow.began) % self.every == 0 else 0


@dataclass
class Narrow(World):
    """A link of LINK bytes a second for all flows: gives `turn` bytes to one after another; 0: a little to all."""

    turn: int = 0
    _served: Flow | None = None
    _left: int = 0
    _at: float = 0.0

    def due(self, flow: Flow) -> int:
        if not self.turn:
            return int(LINK * STEP / len(self.schedule.flows))
        if self._at < self.now and (self._served not in self.schedule.flows or not self._left):
            waiting = sorted(self.schedule.flows, key=lambda each: (each.heard, each.began, each.piece))
            self._served, self._left = waiting[0], self.turn
        self._at = self.now
        if flow is not self._served:
            return 0
        count = min(self._left, int(LINK * STEP))
        self._left -= count
        return count


@dataclass
class Behind(World):
    """What is asked for last comes behind all that was asked for before."""

    def due(self, flow: Flow) -> int:
        waits = flow.piece == self.pieces.count - 1 and len(self.schedule.flows) > 1
        return 0 if waits else super().due(flow)


@dataclass
class Uneven(World):
    """The flow that was begun first gives `lame` bytes a second."""

    lame: int = 400

    def due(self, flow: Flow) -> int:
        is_first = flow.piece == 0 and flow.began == 100 + STEP
        return int(self.lame * STEP) if is_first else super().due(flow)


def world(count: int, distances: dict[StoreId, float] | None = None, *, spread: bool = True, **rates: float) -> World:
    pieces = Pieces(count * PIECE, PIECE)
    stores = {StoreId(name): rate for name, rate in rates.items()}
    far = distances or {NEAR: 0.01, FAR: 0.1}
    schedule = Schedule(pieces, [*stores], distance=lambda store: far[store], spread=spread)
    return World(schedule, pieces, stores)
