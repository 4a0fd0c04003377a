"""What a story is told with: all that a network, a clock and a machine's owner could do, and looking on.

A story is a generator. It yields how many seconds pass until it goes on, and leaves nothing that `clear` cannot undo.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from random import Random
from typing import Protocol

from chaos.simulation.judge import Judge
from chaos.simulation.machine import Doom, Machine
from chaos.simulation.network import Censor, Network
from chaos.simulation.plan import Plan
from chaos.simulation.trace import Trace
from consensus.errors import LogError

_LOOKING_SECONDS = 0.01

Pair = tuple[str, str]  # sender and receiver


class Scene(Protocol):
    """What faults need of the world."""

    plan: Plan
    machines: dict[str, Machine]
    network: Network
    judge: Judge
    trace: Trace
    now: float

    def at(self, pause: float, key: str, call: Callable[[], None]) -> None:
        """Calls back after `pause` seconds."""

    def died(self, name: str, *, power_lost: bool) -> None:
        """Ends a member; it is started again after a while."""


def read(scene: Scene, machine: Machine) -> None:
    """Asks a member for a read index."""
    judge, floor = scene.judge, scene.judge.floor

    def answer(result: int | LogError) -> None:
        if isinstance(result, int):
            judge.reads(machine.name, result, floor)

    machine.ask(lambda member, done: member.read_index(done), answer)


def leader(scene: Scene) -> Machine | None:
    """Who leads, in the highest term if there are several."""
    found = [each for each in scene.machines.values() if each.member and each.member.core.is_leader]
    return max(found, key=term, default=None)


def term(machine: Machine) -> int:
    """The one that it is in; 0 while it does not run."""
    return machine.member.core.term if machine.member else 0


def last(machine: Machine) -> int:
    """Its newest entry on disk; 0 while it does not run."""
    return machine.member.core.journal.wal.commit if machine.member else 0


class Stage:
    """The scene, as far as a story needs it."""

    def __init__(self, scene: Scene, chance: Random) -> None:
        self.scene = scene
        self.chance = chance
        self.timing = scene.plan.timing
        self._cuts: list[Pair] = []
        self._paused: list[Machine] = []

    def until(self, condition: Callable[[], bool], seconds: float) -> Generator[float, None, bool]:
        """Waits for it; whether it came to be."""
        end = self.scene.now + seconds
        while not (found := condition()) and self.scene.now < end:
            yield _LOOKING_SECONDS
        return found

    def find_leader(self) -> Generator[float, None, Machine | None]:
        """Waits for one whose entries everybody has."""

        def settled() -> bool:
            found = leader(self.scene)
            return found is not None and all(last(each) == last(found) for each in self.scene.machines.values())

        yield from self.until(settled, 4 * self.timing.election_most)
        return leader(self.scene)

    def others(self, *but: Machine) -> list[Machine]:
        """All members but these, in any order."""
        found = [each for each in self.scene.machines.values() if each not in but]
        self.chance.shuffle(found)
        return found

    def cut(self, senders: Iterable[Machine], receivers: Iterable[Machine]) -> None:
        """What they send to them is lost from now on."""
        names = [each.name for each in receivers]
        for pair in [(sender.name, name) for sender in senders for name in names if sender.name != name]:
            self.scene.network.cut(*pair, hold=False)
            self._cuts.append(pair)

    def split(self, *sides: Iterable[Machine]) -> None:
        """From now on those of a side reach each other only, whatever was cut before."""
        self.heal()
        groups = [list(side) for side in sides]
        for group in groups:
            self.cut(group, [each for other in groups if other is not group for each in other])

    def heal(self) -> None:
        """Everybody reaches everybody."""
        cuts, self._cuts = self._cuts, []
        for pair in cuts:
            self.scene.network.heal(*pair)

    def lose(self, censor: Censor | None) -> None:
        """These messages, and no others any more."""
        self.scene.network.censor = censor

    def pause(self, machine: Machine) -> None:
        """The process stands still until it is told to go on."""
        machine.paused_until = self.scene.now + 1000.0
        self._paused.append(machine)

    def resume(self, machine: Machine) -> None:
        """It goes on."""
        machine.resume()

    def doom(self, machine: Machine, first: Doom, *others: Doom) -> None:
        """This process and the next ones end soon, each in its way."""
        machine.doom(first)
        machine.dooms.extend(others)

    def any_doom(self) -> Doom:
        """One or another."""
        power_lost = self.chance.random() < 0.6
        kinds = (
            Doom(syncs=self.chance.randint(1, 9), power_lost=power_lost),
            Doom(messages=self.chance.randint(1, 6), power_lost=power_lost),
            Doom(rewrite=True),
        )
        return self.chance.choice((*kinds, kinds[0]))

    def clear(self) -> None:
        """All is as before."""
        self.heal()
        self.lose(None)
        paused, self._paused = self._paused, []
        for machine in paused:
            machine.resume()
