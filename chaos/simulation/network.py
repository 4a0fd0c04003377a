"""The network: a link for each direction between two members.

By default it keeps the transport's contract: at most once, in order; a loss takes the connection down and what was on
its way with it, the sender learns it later, and the connection comes back. A cut holds everything back until it heals,
or loses it. A wild network keeps no contract: it loses, duplicates, reorders, and replays what was sent long ago.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random

from chaos.simulation.plan import Plan, Whim
from consensus.raft.links import Message

_KEPT = 200  # messages of a link that may be replayed
_LOST, _REPLAYED, _LATE = 0.02, 0.02, 0.05
_NO_WHIM = Whim(_LOST, 0.0, 0.0)

_FREQUENT = {"append_entries", "next_node_idx", "propose", "proposed", "read", "read_at"}

At = Callable[[float, str, Callable[[], None]], None]  # calls back after so many seconds; the text orders equal times
Deliver = Callable[[str, str, Message], None]
Linked = Callable[[str, str, bool], None]
Censor = Callable[[str, str, Message], bool]  # whether it is to be lost


class _Link:
    __slots__ = ("chance", "connected", "cuts", "epoch", "held", "holding", "latest", "name", "old", "rare", "slow")

    def __init__(self, seed: int, name: str) -> None:
        self.name = name
        self.chance = Random(f"link/{seed}/{name}")
        self.connected = False
        self.epoch = 0  # messages of an earlier one never arrive
        self.cuts = 0
        self.holding = False  # what is sent during the cut, instead of losing it
        self.held: list[Message] = []
        self.latest = 0.0  # arrival
        self.slow = 0.0  # seconds more, at most
        self.old: deque[Message] = deque(maxlen=_KEPT)
        self.rare: deque[Message] = deque(maxlen=_KEPT)  # those of elections


class Network:
    """Links between all members; messages must not be changed after they were sent."""

    def __init__(self, plan: Plan, at: At, deliver: Deliver, linked: Linked, now: Callable[[], float]) -> None:
        self._plan = plan
        self._at = at
        self._deliver = deliver
        self._linked = linked
        self._now = now
        self._alive: set[str] = set()
        self.calm = False
        self.censor: Censor | None = None
        self.links = {
            (sender, receiver): _Link(plan.seed, f"{sender}>{receiver}")
            for sender in plan.names
            for receiver in plan.names
            if sender != receiver
        }

    def send(self, sender: str, receiver: str, message: Message) -> bool:
        """Whether it was taken: only a link that is known to be down refuses."""
        link = self.links[sender, receiver]
        if not link.connected:
            return False
        if self.censor and self.censor(sender, receiver, message):
            self.disconnect(sender, receiver, keep=True)
        elif self._plan.wild and not self.calm:
            self._send_wildly(link, sender, receiver, message)
        elif link.cuts:
            if link.holding:
                link.held.append(message)
        elif not self.calm and link.chance.random() < self._plan.loss:
            self.disconnect(sender, receiver, keep=link.chance.random() < 0.5)
        else:
            self._fly(link, sender, receiver, message)
        return True

    def start(self, name: str) -> None:
        """A member has begun: connections to and from it come up."""
        self._alive.add(name)
        for pair in self._of(name):
            self._connect(pair)

    def stop(self, name: str) -> None:
        """It has ended: what was on its way to or from it is lost, its peers notice after a while."""
        self._alive.discard(name)
        for sender, receiver in self._of(name):
            self.disconnect(sender, receiver, keep=self._plan.wild)

    def cut(self, sender: str, receiver: str, *, hold: bool) -> None:
        """Nothing passes in this direction until it is healed as often."""
        link = self.links[sender, receiver]
        link.cuts += 1
        link.holding = hold
        if not hold:
            pause = link.chance.uniform(0.3, 2.0)
            self._at(pause, link.name, lambda: self._notice(sender, receiver))

    def heal(self, sender: str, receiver: str) -> None:
        """Takes one cut back; what was held goes on its way."""
        link = self.links[sender, receiver]
        link.cuts -= 1
        if link.cuts:
            return
        if link.holding and link.connected:
            for message in link.held:
                self._fly(link, sender, receiver, message)
        elif not link.holding and not self._plan.wild:
            self.disconnect(sender, receiver, keep=True)
        link.held = []
        if not link.connected:
            self._connect((sender, receiver))

    def disconnect(self, sender: str, receiver: str, *, keep: bool) -> None:
        """The connection of one direction goes; `keep`: what was on its way arrives. It comes back if it can."""
        link = self.links[sender, receiver]
        if not keep:
            link.epoch += 1
            link.held = []
        if link.connected:
            link.connected = False
            self._linked(sender, receiver, False)
            self._connect((sender, receiver))

    def _of(self, name: str) -> list[tuple[str, str]]:
        return [pair for pair in self.links if name in pair]

    def _notice(self, sender: str, receiver: str) -> None:
        link = self.links[sender, receiver]
        if link.cuts and not link.holding and not self._plan.wild:
            self.disconnect(sender, receiver, keep=True)

    def _connect(self, pair: tuple[str, str]) -> None:
        link = self.links[pair]
        pause = link.chance.uniform(0.02, 0.6)

        def connect() -> None:
            if not link.connected and self._alive.issuperset(pair) and (not link.cuts or self._plan.wild):
                link.connected = True
                self._linked(*pair, True)

        self._at(pause, link.name, connect)

    def _delay(self, link: _Link) -> float:
        return self._plan.delay + (self._plan.jitter + link.slow) * link.chance.random()

    def _fly(self, link: _Link, sender: str, receiver: str, message: Message) -> None:
        now = self._now()
        link.latest = max(link.latest, now + self._delay(link))
        self._arrive(link, sender, receiver, message, link.latest - now)

    def _send_wildly(self, link: _Link, sender: str, receiver: str, message: Message) -> None:
        chance = link.chance
        if link.cuts:
            if link.holding:
                link.old.append(message)
            return
        (link.old if message["type"] in _FREQUENT else link.rare).append(message)
        whim = self._plan.whims.get(message["type"], _NO_WHIM)
        if chance.random() >= whim.lost:
            late = chance.expovariate(1 / 2.0) if chance.random() < _LATE else whim.late * chance.random()
            self._arrive(link, sender, receiver, message, self._delay(link) + late)
        if chance.random() < max(whim.duplicated, self._plan.duplicated):
            late = chance.expovariate(1 / 0.5) if chance.random() < 0.5 else 0.0
            self._arrive(link, sender, receiver, message, self._delay(link) + late)
        if chance.random() < _REPLAYED:
            self._arrive(link, sender, receiver, chance.choice(link.old or link.rare), self._delay(link))
        if link.rare and chance.random() < _REPLAYED:
            self._arrive(link, sender, receiver, chance.choice(link.rare), self._delay(link))

    def _arrive(self, link: _Link, sender: str, receiver: str, message: Message, pause: float) -> None:
        epoch = link.epoch

        def arrive() -> None:
            if epoch == link.epoch and receiver in self._alive:
                self._deliver(sender, receiver, message)

        self._at(pause, link.name, arrive)
