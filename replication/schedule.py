"""Which part of a blob is to be asked of whom next. Pure: it is told what happens, and when.

A *flow* is one request for the rest of one piece. Pieces that somebody waits for come first. Flows go to the nearest
holder, and beyond some to the next nearest too. A piece that comes too slowly is asked for a second time, elsewhere if
there is an elsewhere, and whoever is first counts: a holder that was overtaken so stands back from then on. One that
fails is left alone for a moment; after two failures with nothing to speak of in between it is given up, but not while
there is patience. Patience is bought by what comes: a drip buys next to none, neither for its flow nor for the whole.
One that answers something else than was asked, gives wrong bytes, or does not have the blob, is not asked again. Where
several gave bytes of a part that is wrong, their piece is in *doubt*: it is asked of one at a time, until that part is
right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from consensus.names import StoreId
from replication.pieces import Pieces

MOST_FLOWS = 16  # fewer fill a long line later, and lose more of it with each packet that is lost
URGENT_FLOWS = 4  # beyond the others, for what somebody waits for; and pieces that are asked for twice at a time
FLOWS_BEFORE_NEXT = 8  # at one holder, before the next nearest gets one

STRIKES = 2
STRIKE_PARDON_BYTES = 64 * 1024  # so much brought since, and a failure is forgotten
REST_SECONDS = 0.1  # after a failure; doubled by each in a row
MOST_REST_SECONDS = 1.0
PATIENCE_SECONDS = 10.0  # the most for which holders are tried again after something has come

SILENCE_SECONDS = 1.0  # then a second flow is begun
WINDOW_SECONDS = 2.0  # over which a flow's rate is looked at
TARDY_SHARE = 0.25  # of the rate that flows have on average
TARDY_SECONDS = 5.0  # that the last pieces may still take, where another holder could be asked for them
LATE_SHARE = 0.5  # of what each flow had when all were busy: with less, one of the last is helped by those that are not
LATE_SECONDS = 1.0  # if it would take so long
ANSWER_SECONDS = 5.0  # without any byte: then a flow is cut
STALL_SECONDS = 10.0  # that the first byte of a flow buys it, and the most that it may have
STALL_RATE = 1024.0  # bytes that buy a second more
MOST_BACKLOG_SECONDS = 30.0  # more of all that, while so much may be waiting on its way


class Window:
    """The rate at which something comes, looked at over windows of so many seconds."""

    __slots__ = ("_began", "_bytes", "_seconds", "rate")

    def __init__(self, seconds: float, now: float) -> None:
        self.rate: float | None = None  # bytes per second over the last window; None before there was one
        self._seconds = seconds
        self._began = now
        self._bytes = 0

    def add(self, count: int, now: float) -> bool:
        """So many bytes have come. Whether that closes a window."""
        self._bytes += count
        return self.look(now)

    def look(self, now: float) -> bool:
        """Closes the window if it is time; whether it was."""
        if now - self._began < self._seconds:
            return False
        self.rate = self._bytes / (now - self._began)
        self._began, self._bytes = now, 0
        return True

    def lately(self, now: float) -> float:
        """The rate, of what there is of the first window too."""
        if self.rate is not None:
            return self.rate
        return self._bytes / (now - self._began) if now > self._began else 0.0


class Trouble(StrEnum):
    """How a flow ended that did not bring what it should."""

    UNREACHABLE = "unreachable"
    WRONG = "wrong"
    STALLED = "stalled"
    NOT_HELD = "not_held"
    OVERTAKEN = "overtaken"  # another brought the rest of its piece


@dataclass(eq=False, slots=True)
class Flow:
    """A request for `piece` from `position` on, at `holder`; `position` moves on as bytes come."""

    piece: int
    holder: StoreId
    start: int
    position: int
    began: float
    heard: float
    patience_until: float
    ahead_bytes: int  # that others were still to bring when it began: its first byte may have to wait for all of them
    window: Window | None = None  # from the first byte on: what waits behind other flows is not slow
    void: bool = False  # what it brings does not count any more

    def brought(self, count: int, now: float) -> None:
        """So many bytes have come."""
        most = now + STALL_SECONDS
        first = self.position == self.start
        self.patience_until = most if first else min(self.patience_until + count / STALL_RATE, most)
        self.position += count
        self.heard = now
        self.window = self.window or Window(WINDOW_SECONDS, now)
        self.window.add(count, now)

    def rate(self, now: float) -> float | None:
        """Bytes per second over the last window; None before there was one."""
        if self.window is None:
            return None
        self.window.look(now)
        return self.window.rate


@dataclass(slots=True)
class _Standing:
    """What became of what a holder was asked for."""

    holder: StoreId
    strikes: int = 0
    struck_at: float = float("-inf")
    rests_until: float = float("-inf")
    brought_since: int = 0
    overtaken: int = 0
    flows: int = 0
    without: bool = False
    wrong: bool = False
    lied: bool = False


class Schedule:
    """Of one blob. `distance` gives the round trip to a holder in seconds, infinity while it is unknown; with `spread`
    false one holder is asked as long as it gives. `most_flows` may change at any time; with 0 none is begun."""

    def __init__(
        self,
        pieces: Pieces,
        holders: Sequence[StoreId],
        *,
        distance: Callable[[StoreId], float],
        spread: bool = True,
        most_flows: int = MOST_FLOWS,
    ) -> None:
        self.most_flows = most_flows
        self.flows: set[Flow] = set()
        self.doubted: set[int] = set()  # pieces
        self._pieces = pieces
        self._standings = {holder: _Standing(holder) for holder in holders}
        self._distance = distance
        self._spread = spread
        self._patience_until: float | None = None  # None before anything has come
        self._window: Window | None = None  # of all flows, since the first byte
        self._best_rate = 0.0

    @property
    def lost(self) -> bool:
        """Whether every holder says that it does not have the blob."""
        return bool(self._standings) and all(standing.without for standing in self._standings.values())

    @property
    def deceived(self) -> bool:
        """Whether everybody who has the blob has given wrong bytes."""
        standings = self._standings.values()
        return any(each.lied for each in standings) and all(each.lied or each.without for each in standings)

    def admit(self, holders: Iterable[StoreId]) -> None:
        """These may be asked too, from now on."""
        for holder in holders:
            self._standings.setdefault(holder, _Standing(holder))

    def next(self, needs: Sequence[int], now: float) -> Flow | None:
        """A flow to begin; None if there is none for now. `needs` are the bytes that somebody waits for, the most
        important first."""
        if not self.most_flows:
            return None
        busy = len(self.flows)
        limit = self.most_flows
        urgent = [piece for piece in map(self._pieces.at, needs) if self._is_open(piece)]
        if urgent and busy < limit + min(URGENT_FLOWS, self.most_flows - 1):
            return self._begin(urgent[0], now)
        if busy >= limit + URGENT_FLOWS:
            return None
        if busy < limit:
            for piece in self._in_order(needs):
                if self._is_open(piece):
                    return self._begin(piece, now)
        return self._second(now)

    def brought(self, flow: Flow, count: int, now: float) -> None:
        """Bytes have come by a flow, new ones or not."""
        flow.brought(count, now)
        standing = self._standings[flow.holder]
        standing.brought_since += count
        if standing.brought_since >= STRIKE_PARDON_BYTES:
            standing.strikes = 0
        self._be_patient(count, now)
        self._window = self._window or Window(WINDOW_SECONDS, now)
        if self._window.add(count, now):
            self._best_rate = max(self._best_rate, self._window.lately(now))

    def ended(self, flow: Flow, trouble: Trouble | None, now: float) -> None:
        """A flow is over; None if it brought all that was asked of it."""
        self.flows.discard(flow)
        standing = self._standings[flow.holder]
        standing.flows -= 1
        if trouble is Trouble.NOT_HELD:
            standing.without = True
        elif trouble is Trouble.WRONG:
            standing.wrong = True
        elif trouble is Trouble.OVERTAKEN:
            standing.overtaken += 1
        elif trouble and flow.began >= standing.struck_at:  # else one failure has ended several flows
            rest = min(REST_SECONDS * 2**standing.strikes, MOST_REST_SECONDS)
            standing.strikes += 1
            standing.struck_at, standing.rests_until, standing.brought_since = now, now + rest, 0

    def expose(self, holder: StoreId) -> None:
        """A holder has given wrong bytes."""
        self._standings[holder].wrong = self._standings[holder].lied = True
        for flow in self.flows:
            flow.void = flow.void or flow.holder == holder

    def drop(self, piece: int) -> None:
        """What was not proven of the piece is gone, and what is under way would not follow on what is left."""
        for flow in self.flows:
            flow.void = flow.void or flow.piece == piece

    def overdue(self, now: float) -> list[Flow]:
        """Flows to be cut: those that are void, that bring next to nothing, or whose piece others have made whole."""
        return [flow for flow in self.flows if flow.void or self._is_overtaken(flow) or self.is_stalled(flow, now)]

    def is_stalled(self, flow: Flow, now: float) -> bool:
        """Whether so little has come for so long that it has to be given up."""
        late = now - flow.patience_until
        return late > 0 and late > self._backlog_seconds(flow, now)

    def hopeless(self, now: float) -> bool:
        """Whether nothing is under way and nobody is left who could be asked."""
        return not self.flows and all(self._is_given_up(standing, now) for standing in self._standings.values())

    def _is_overtaken(self, flow: Flow) -> bool:
        return flow.position < self._pieces.stop(flow.piece) and self._pieces.is_whole(flow.piece)

    def _is_open(self, piece: int) -> bool:
        return not self._pieces.is_whole(piece) and all(flow.piece != piece for flow in self.flows)

    def _in_order(self, needs: Sequence[int]) -> Iterator[int]:
        """All pieces, from the one that is needed first on."""
        first = self._pieces.at(needs[0]) if needs else 0
        yield from range(first, self._pieces.count)
        yield from range(first)

    def _begin(self, piece: int, now: float, *, but: StoreId | None = None) -> Flow | None:
        standing = self._pick(now, but)
        if standing is None:
            return None
        position = self._pieces.reached(piece)
        flow = Flow(
            piece,
            standing.holder,
            position,
            position,
            now,
            now,
            now + ANSWER_SECONDS,
            ahead_bytes=self._missing_bytes(),
        )
        standing.flows += 1
        self.flows.add(flow)
        return flow

    def _pick(self, now: float, but: StoreId | None) -> _Standing | None:
        free = [
            standing
            for standing in self._standings.values()
            if standing.rests_until <= now and not self._is_given_up(standing, now)
        ]
        others = [standing for standing in free if standing.holder != but]

        def rank(standing: _Standing) -> tuple[float, ...]:
            crowd = standing.flows // FLOWS_BEFORE_NEXT if self._spread else 0
            return (standing.strikes, standing.overtaken, crowd, self._distance(standing.holder))

        return min(others or free, key=rank, default=None)

    def _is_given_up(self, standing: _Standing, now: float) -> bool:
        return standing.without or standing.wrong or (standing.strikes >= STRIKES and not self._is_patient(now))

    def _be_patient(self, count: int, now: float) -> None:
        """So many bytes have come. The first ones buy all the patience that there is."""
        until, most = self._patience_until, now + PATIENCE_SECONDS
        self._patience_until = most if until is None else min(max(until, now) + count / STALL_RATE, most)

    def _is_patient(self, now: float) -> bool:
        return self._patience_until is not None and now <= self._patience_until

    def _second(self, now: float) -> Flow | None:
        """Another flow for a piece whose only one is too slow, the earliest first, and for a few at a time: for one,
        before anything has come at all. Where one holder is to give all of it, that one has to be given up first."""
        if not self._spread:
            return None
        pieces = [flow.piece for flow in self.flows]
        if len(pieces) - len({*pieces}) >= (URGENT_FLOWS if self._window else 1):
            return None
        for flow in sorted(self.flows, key=lambda flow: flow.piece):
            if pieces.count(flow.piece) > 1 or self._pieces.is_whole(flow.piece):
                continue
            if flow.piece in self.doubted:
                flow.void = flow.void or (self._is_silent(flow, now) and self._could_be_elsewhere(flow, now))
                continue
            if self._is_tardy(flow, now) or self._is_late(flow, now):
                return self._begin(flow.piece, now, but=flow.holder)
        return None

    def _is_tardy(self, flow: Flow, now: float) -> bool:
        if self._is_silent(flow, now):
            return True
        rate, rates = flow.rate(now), [each for other in self.flows if (each := other.rate(now)) is not None]
        return rate is not None and rate < TARDY_SHARE * sum(rates) / len(rates)

    def _is_silent(self, flow: Flow, now: float) -> bool:
        distance = min(self._distance(flow.holder), SILENCE_SECONDS)
        return now - flow.heard > max(SILENCE_SECONDS, 4 * distance) + self._backlog_seconds(flow, now)

    def _could_be_elsewhere(self, flow: Flow, now: float) -> bool:
        return self._pick(now, flow.holder) not in (None, self._standings[flow.holder])

    def _missing_bytes(self) -> int:
        return sum(self._pieces.stop(flow.piece) - flow.position for flow in self.flows)

    def _backlog_seconds(self, flow: Flow, now: float) -> float:
        """A flow may have to wait on its way for all that was asked for before: twice that is no sign of anything. But
        where next to nothing comes at all, there is nothing that it could be waiting for."""
        rate = self._window.lately(now) if self._window else 0.0
        if rate < STALL_RATE or not self._is_patient(now):
            return 0.0
        backlog = max(self._missing_bytes(), flow.ahead_bytes if flow.position == flow.start else 0)
        return min(2 * backlog / rate, MOST_BACKLOG_SECONDS)

    def _is_late(self, flow: Flow, now: float) -> bool:
        """Of one of the last flows: whether another, or one to another holder, might be much quicker."""
        rate, rest = flow.rate(now), self._pieces.stop(flow.piece) - flow.position
        if rate is None:
            return False
        if rest > rate * TARDY_SECONDS and self._could_be_elsewhere(flow, now):
            return True
        lame = rate < LATE_SHARE * self._best_rate / MOST_FLOWS
        return lame and rest > rate * LATE_SECONDS and 2 * len(self.flows) <= self.most_flows
