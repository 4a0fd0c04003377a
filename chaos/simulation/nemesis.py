"""Faults, drawn one after the other from those that the seed has, and the calm at the end.

In the calm everything heals and restarts: the cluster has to elect a leader and commit within a bounded time, keep that
leader and its term from then on, and not lose them when one member that nobody needs is cut off and comes back.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from random import Random

from chaos.simulation.judge import Broken
from chaos.simulation.machine import Doom, Machine
from chaos.simulation.stage import Scene, Stage, leader, read
from chaos.simulation.stories import STORIES, Story

# In longest election timeouts: until there has to be a leader that commits, how long one member is then cut off, and
# when the leader has to be the same still.
_SETTLING, _CUT, _KEEPING = 5.0, 2.5, 4.0
CALM_TIMEOUTS = _SETTLING + _KEEPING + 0.1


class Nemesis:
    """Starts when made."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._plan = scene.plan
        self._chance = Random(f"nemesis/{scene.plan.seed}")
        self._ended = False
        self.count = 0
        self._cuts: list[tuple[str, str]] = []
        self._stage = Stage(scene, self._chance)
        if scene.plan.story is None:
            self._next()
        else:
            self._go_on(self._again(STORIES[scene.plan.story]))

    # The time of faults

    def _next(self) -> None:
        self._scene.at(self._chance.expovariate(1 / self._plan.fault_seconds), "nemesis", self._strike)

    def _strike(self) -> None:
        if self._ended:
            return
        fault = self._chance.choice(self._plan.faults)
        victim = self._victim()
        self._scene.trace.add(self._scene.now, "fault", fault, victim.name)
        self.count += 1
        _FAULTS[fault](self, victim)
        self._next()

    def _again(self, story: Story) -> Generator[float, None, None]:
        while True:
            yield self._chance.random() * self._plan.timing.election_most
            self._scene.trace.add(self._scene.now, "story", self._plan.story)
            self.count += 1
            yield from story(self._stage)
            self._stage.clear()

    def _go_on(self, telling: Generator[float, None, None]) -> None:
        if not self._ended:
            self._scene.at(next(telling), "nemesis", lambda: self._go_on(telling))

    def _victim(self) -> Machine:
        """Any member, often one that leads."""
        leaders = [each for each in self._scene.machines.values() if each.member and each.member.core.is_leader]
        if leaders and self._chance.random() < 0.5:
            return self._chance.choice(leaders)
        return self._chance.choice(list(self._scene.machines.values()))

    def _kill(self, victim: Machine) -> None:
        self._scene.died(victim.name, power_lost=False)

    def _power(self, victim: Machine) -> None:
        self._scene.died(victim.name, power_lost=True)

    def _power_at_sync(self, victim: Machine) -> None:
        victim.doom(Doom(syncs=self._chance.randint(1, 6), power_lost=True))

    def _kill_at_sync(self, victim: Machine) -> None:
        """The next process finds what was never synced, and then the power goes as well."""
        began = victim.incarnation
        victim.doom(Doom(syncs=self._chance.randint(1, 6)))

        def lose_power() -> None:
            if victim.incarnation > began and victim.member is not None:
                self._scene.died(victim.name, power_lost=True)

        for _ in range(3):
            self._later(self._chance.uniform(0.1, 4.0), lose_power)

    def _crash_loop(self, victim: Machine) -> None:
        """This process and the next ones end soon, each in its way: at a sync or with a message."""
        stage = self._stage
        stage.doom(victim, *(stage.any_doom() for _ in range(self._chance.randint(2, 5))))

    def _rewrite(self, victim: Machine) -> None:
        self._stage.doom(victim, *[Doom(rewrite=True)] * self._chance.randint(1, 3))

    def _all(self, _: Machine) -> None:
        names = list(self._scene.machines)
        if self._chance.random() < 0.5:  # a majority only
            names = self._chance.sample(names, len(names) // 2 + 1)
        for name in names:
            self._scene.died(name, power_lost=True)

    def _isolate(self, victim: Machine) -> None:
        self._cut([*self._from(victim.name), *self._to(victim.name)], self._chance.uniform(0.3, 12.0))

    def _deafen(self, victim: Machine) -> None:
        self._cut(self._to(victim.name), self._chance.uniform(0.3, 8.0))

    def _mute(self, victim: Machine) -> None:
        self._cut(self._from(victim.name), self._chance.uniform(0.3, 8.0))

    def _split(self, _: Machine) -> None:
        names = list(self._plan.names)
        side = set(self._chance.sample(names, len(names) // 2))
        across = [pair for pair in self._scene.network.links if (pair[0] in side) != (pair[1] in side)]
        self._cut(across, self._chance.uniform(0.3, 12.0))

    def _link(self, victim: Machine) -> None:
        pair = self._chance.choice(self._from(victim.name))
        self._cut([pair, (pair[1], pair[0])] if self._chance.random() < 0.5 else [pair], self._chance.uniform(0.3, 8.0))

    def _pause(self, victim: Machine) -> None:
        victim.paused_until = self._scene.now + self._chance.choice((0.3, 1.0, 3.0, 8.0)) * self._chance.random()

    def _slow_link(self, victim: Machine) -> None:
        link = self._scene.network.links[self._chance.choice(self._from(victim.name))]
        link.slow = self._chance.choice((0.1, 0.5, 3.0))
        self._later(self._chance.uniform(0.5, 6.0), lambda: setattr(link, "slow", 0.0))

    def _slow_disk(self, victim: Machine) -> None:
        victim.volume.slow = self._chance.choice((0.02, 0.1, 0.6))
        self._later(self._chance.uniform(0.5, 6.0), lambda: setattr(victim.volume, "slow", 0.0))

    def _full_disk(self, victim: Machine) -> None:
        victim.volume.full = True
        seconds = self._chance.uniform(0.2, 5.0)
        if self._chance.random() < 0.3:
            self._later(seconds * self._chance.random(), lambda: self._scene.died(victim.name, power_lost=True))
        self._later(seconds, lambda: setattr(victim.volume, "full", False))

    def _bad_sync(self, victim: Machine) -> None:
        victim.volume.bad = self._chance.randint(1, 4)

    def _transfer(self, victim: Machine) -> None:
        peer = self._chance.choice([None, *(name for name in self._plan.names if name != victim.name)])
        victim.order(lambda member: None if not member.core.is_leader else _quietly(member.core.transfer, peer))

    def _hand_over(self, victim: Machine) -> None:
        """A leader hands over, does not hear of its successor, and goes on to be asked."""
        leads = leader(self._scene) or victim
        peer = self._chance.choice([name for name in self._plan.names if name != leads.name])
        self._cut(self._to(leads.name), self._chance.uniform(0.5, 3.0))
        leads.order(lambda member: None if not member.core.is_leader else _quietly(member.core.transfer, peer))
        for _ in range(12):
            self._later(self._chance.uniform(0.05, self._plan.timing.election_most), lambda: read(self._scene, leads))

    def _churn(self, victim: Machine) -> None:
        """A leader goes on in a minority, then a follower sees both leaders at once."""
        others = [name for name in self._plan.names if name != victim.name]
        friend = self._chance.choice(others)
        cut = [pair for pair in self._scene.network.links if victim.name in pair and friend not in pair]
        self._cut(cut, self._chance.uniform(1.0, 8.0))
        self._scene.machines[friend].paused_until = self._scene.now + self._chance.uniform(0.5, 6.0)

    def _return(self, victim: Machine) -> None:
        """A member writes what nobody else gets, then loses power and comes back."""
        self._cut(self._from(victim.name), self._chance.uniform(1.0, 5.0))
        self._later(self._chance.uniform(0.3, 4.0), lambda: self._scene.died(victim.name, power_lost=True))

    def _from(self, name: str) -> list[tuple[str, str]]:
        return [pair for pair in self._scene.network.links if pair[0] == name]

    def _to(self, name: str) -> list[tuple[str, str]]:
        return [pair for pair in self._scene.network.links if pair[1] == name]

    def _cut(self, pairs: list[tuple[str, str]], seconds: float) -> None:
        hold = self._chance.random() < 0.4
        for pair in pairs:
            self._scene.network.cut(*pair, hold=hold)
            self._cuts.append(pair)
        self._scene.at(seconds, "nemesis", lambda: self._heal(pairs))

    def _heal(self, pairs: list[tuple[str, str]]) -> None:
        for pair in pairs:
            if pair in self._cuts:
                self._cuts.remove(pair)
                self._scene.network.heal(*pair)

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        """Unless the faults have ended by then."""
        self._scene.at(seconds, "nemesis", lambda: None if self._ended else call())

    # The calm

    def end(self) -> None:
        """No more faults: everything heals, and the cluster has to show that it does."""
        self._ended = True
        scene = self._scene
        scene.trace.add(scene.now, "calm")
        self._heal(list(self._cuts))
        self._stage.clear()
        for machine in scene.machines.values():
            volume = machine.volume
            volume.full, volume.slow, volume.bad = False, 0.0, 0
            machine.doom(Doom())
            machine.dooms.clear()
            machine.resume()
        for link in scene.network.links.values():
            link.slow = 0.0
        scene.network.calm = True
        highest = scene.judge.highest
        self._scene.at(_SETTLING * self._plan.timing.election_most, "nemesis", lambda: self._expect_leader(highest))

    def _expect_leader(self, highest: int) -> None:
        leads = leader(self._scene)
        if leads is None or self._scene.judge.highest <= highest:
            raise Broken("a leader is found when faults end", f"nothing was committed behind {highest}")
        followers = [machine for machine in self._scene.machines.values() if machine is not leads]
        lost = self._chance.choice(followers)
        pairs = self._chance.choice(
            ([*self._from(lost.name), *self._to(lost.name)], self._to(lost.name), self._from(lost.name))
        )
        held = self._state(leads)
        self._scene.trace.add(self._scene.now, "calm cut", lost.name, len(pairs))
        self._cut(pairs, _CUT * self._plan.timing.election_most)
        self._scene.at(_KEEPING * self._plan.timing.election_most, "nemesis", lambda: self._expect_the_same(held))

    def _expect_the_same(self, held: tuple[str, int, int]) -> None:
        name, term, highest = held
        found = leader(self._scene)
        if found is None or self._state(found)[:2] != (name, term):
            now = self._state(found) if found else None
            raise Broken("one member cannot disturb the others", f"{name} led term {term}, now it is {now}")
        if self._scene.judge.highest <= highest:
            raise Broken("one member cannot disturb the others", f"nothing was committed behind {highest}")

    def _state(self, machine: Machine) -> tuple[str, int, int]:
        assert machine.member is not None
        return machine.name, machine.member.core.term, self._scene.judge.highest


def _quietly(call: Callable[[str | None], bool], peer: str | None) -> None:
    call(peer)


_FAULTS: dict[str, Callable[[Nemesis, Machine], None]] = {
    "kill": Nemesis._kill,
    "power": Nemesis._power,
    "power_at_sync": Nemesis._power_at_sync,
    "all": Nemesis._all,
    "isolate": Nemesis._isolate,
    "deafen": Nemesis._deafen,
    "mute": Nemesis._mute,
    "split": Nemesis._split,
    "link": Nemesis._link,
    "pause": Nemesis._pause,
    "slow_link": Nemesis._slow_link,
    "slow_disk": Nemesis._slow_disk,
    "full_disk": Nemesis._full_disk,
    "bad_sync": Nemesis._bad_sync,
    "transfer": Nemesis._transfer,
    "hand_over": Nemesis._hand_over,
    "kill_at_sync": Nemesis._kill_at_sync,
    "churn": Nemesis._churn,
    "return": Nemesis._return,
    "crash_loop": Nemesis._crash_loop,
    "rewrite": Nemesis._rewrite,
}
