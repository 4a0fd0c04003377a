"""Courses of events that chance would not find in a thousand runs, each known to be what one of the guards is for.

They steer the network and the processes only; what is proposed and read meanwhile, who is elected where several can be,
and how long things take is left to chance. A story whose conditions do not come about breaks off, and is begun anew.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

from chaos.simulation.machine import Doom, Machine
from chaos.simulation.stage import Stage, last, leader, read, term
from consensus.raft.links import Message

Story = Callable[[Stage], Generator[float, None, None]]


def figure_eight(stage: Stage) -> Generator[float, None, None]:
    """Figure 8 of the paper on Raft: an entry of an old term is on a majority, and yet the next leader may lack it."""
    timing = stage.timing
    old = yield from stage.find_leader()
    if old is None:
        return
    others = stage.others(old)
    known, old_term = last(old), term(old)
    stage.cut([old], others)  # it writes what nobody else gets
    if not (yield from stage.until(lambda: last(old) > known and term(old) == old_term, timing.fallback)):
        return
    entry = last(old)
    stage.scene.died(old.name, power_lost=bool(stage.chance.random() < 0.5))
    stage.split([old], others)
    stage.lose(_entries_behind(0))
    new = yield from _elected(stage, others, old_term)
    if new is None:
        return
    friends = [each for each in others if each is not new][: len(others) // 2]
    stage.split([old, *friends], [each for each in others if each not in friends])
    stage.lose(_entries_behind(old_term))
    yield from stage.until(lambda: all(last(each) >= entry for each in friends), 6 * timing.election_most)
    yield 4 * timing.heartbeat * stage.chance.random() + 0.2
    stage.split([new, *friends], [each for each in stage.others() if each is not new and each not in friends])
    stage.lose(None)
    yield from _elected(stage, [new], term(new))
    yield timing.election_most * stage.chance.random()


def two_leaders(stage: Stage) -> Generator[float, None, None]:
    """A member gets what two leaders sent in one and the same step."""
    timing = stage.timing
    first = yield from stage.find_leader()
    if first is None:
        return
    slow, *others = stage.others(first)
    known, first_term = last(first), term(first)
    stage.pause(slow)
    stage.cut([first], others)
    yield from stage.until(lambda: last(first) > known, timing.fallback * 0.8)
    yield timing.heartbeat * stage.chance.random()
    stage.pause(first)
    second = yield from _elected(stage, others, first_term)
    if second is None:
        return
    yield timing.election_least * stage.chance.random()
    stage.resume(slow)
    yield timing.election_least * stage.chance.random()
    stage.resume(first)
    yield timing.election_least * stage.chance.random()


def stale_round(stage: Stage) -> Generator[float, None, None]:
    """A leader that slept while another one led wakes up with the answers to its last round, and is asked."""
    timing = stage.timing
    first = yield from stage.find_leader()
    if first is None or first.member is None:
        return
    core, others, known = first.member.core, stage.others(first), term(first)
    began = core.round
    yield from stage.until(lambda: core.round > began, 2 * timing.heartbeat)
    stage.pause(first)
    yield timing.election_least * stage.chance.uniform(0.2, 0.7)
    stage.cut(others, [first])
    floor = stage.scene.judge.floor
    if (yield from _elected(stage, others, known)) is None:
        return
    yield from stage.until(lambda: stage.scene.judge.floor > floor, 2 * timing.election_most)
    for _ in range(stage.chance.randint(1, 3)):
        read(stage.scene, first)
    stage.resume(first)
    yield timing.election_least * stage.chance.random()


def elections(stage: Stage) -> Generator[float, None, None]:
    """One after the other, while the network loses, repeats and delays the votes."""
    yield from stage.until(lambda: leader(stage.scene) is not None, 2 * stage.timing.election_most)
    if (leads := leader(stage.scene)) is None:
        return
    stage.split([leads], stage.others(leads))
    yield from _elected(stage, stage.others(leads), term(leads))
    yield stage.timing.election_least * stage.chance.random()


def crash_loop(stage: Stage) -> Generator[float, None, None]:
    """A member whose processes end one after the other, each soon after it began, beside others that go on."""
    (victim, *_) = stage.others()
    victim.volume.slow = stage.chance.choice((0.0, 0.0, stage.timing.election_least / 4))
    stage.doom(victim, *(stage.any_doom() for _ in range(stage.chance.randint(2, 5))))
    yield from stage.until(lambda: not victim.dooms, 2 * stage.timing.election_most)
    victim.volume.slow = 0.0


def torn_twice(stage: Stage) -> Generator[float, None, None]:
    """Power fails while several entries are written, and again when the next process writes over what it cut off."""
    victim = yield from _lagging(stage)
    if victim is None:
        return
    stage.doom(victim, Doom(syncs=1, power_lost=True), *[Doom(rewrite=True)] * stage.chance.randint(1, 3))
    stage.resume(victim)
    yield from stage.until(lambda: not victim.dooms, stage.timing.election_most)
    yield stage.timing.election_most * stage.chance.random()


def cut_short(stage: Stage) -> Generator[float, None, None]:
    """Power fails while a member takes back what only it has, and perhaps again when the next process ends that."""
    timing = stage.timing
    old = yield from stage.find_leader()
    if old is None:
        return
    others, known, old_term = stage.others(old), last(old), term(old)
    stage.cut([old], others)
    upto = known + stage.chance.randint(1, 12)
    yield from stage.until(lambda: last(old) >= upto, timing.fallback)
    stage.split([old], others)
    if (yield from _elected(stage, others, old_term)) is None:
        return
    dooms = (Doom(rewrite=True), Doom(rewrite=True), Doom(removal=True), stage.any_doom())
    stage.doom(old, stage.chance.choice(dooms[:3]), *stage.chance.choices(dooms, k=2))
    stage.heal()
    yield from stage.until(lambda: not old.dooms, 2 * timing.election_most)
    yield timing.election_most * stage.chance.random()


def full_disk(stage: Stage) -> Generator[float, None, None]:
    """A disk refuses entries, perhaps behind others that it had taken; then power fails."""
    victim = yield from _lagging(stage)
    if victim is None:
        return
    volume = victim.volume
    refused = volume.truncations + stage.chance.randint(1, 2)
    volume.full = True
    stage.resume(victim)
    if (yield from stage.until(lambda: volume.truncations >= refused, stage.timing.election_most)):
        stage.scene.died(victim.name, power_lost=True)
    volume.full = False
    yield stage.timing.election_most * stage.chance.random()


def _lagging(stage: Stage) -> Generator[float, None, Machine | None]:
    """A follower that stands still, and by now gets several entries in its next step."""
    leads = yield from stage.find_leader()
    if leads is None:
        return None
    (victim, *_) = stage.others(leads)
    stage.pause(victim)
    upto = last(leads) + stage.chance.randint(2, 6)
    yield from stage.until(lambda: last(leads) >= upto, stage.timing.election_most)
    return victim


def _elected(stage: Stage, among: list[Machine], known: int) -> Generator[float, None, Machine | None]:
    """Waits for one of them to lead in a later term than the known one, with an entry of that term on its disk."""

    def found() -> bool:
        new = leader(stage.scene)
        if new is None or new.member is None or new not in among or term(new) <= known:
            return False
        journal = new.member.core.journal
        return journal.wal.commit == journal.last and journal.term(journal.last) == term(new)

    yield from stage.until(found, 6 * stage.timing.election_most)
    return leader(stage.scene) if found() else None


def _entries_behind(old: int) -> Callable[[str, str, Message], bool]:
    def censor(_: str, __: str, message: Message) -> bool:
        return any(entry[2] > old for entry in message.get("entries", ()))

    return censor


_ALL: tuple[Story, ...] = (
    figure_eight,
    two_leaders,
    stale_round,
    elections,
    crash_loop,
    torn_twice,
    cut_short,
    full_disk,
)
STORIES = {story.__name__: story for story in _ALL}
