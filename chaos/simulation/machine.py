"""One member: a process of the shipped modules, which can end at any sync, and its disk, which outlives it.

The process is stepped when something has arrived and otherwise at its own cadence. What it shows after a step, its log,
what it committed, whether it leads, goes to the judge.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from random import Random
from typing import Protocol

from chaos.simulation.judge import Broken, Judge
from chaos.simulation.plan import Plan
from chaos.simulation.replica import Replica
from chaos.simulation.trace import Trace
from chaos.simulation.volume import Ended, Volume
from chaos.simulation.watched import Place, WatchedJournal
from consensus.codec import decode
from consensus.commands import Outcome
from consensus.errors import LogError, LogUnavailable
from consensus.log import Entry
from consensus.raft import journal as journals
from consensus.raft.core import Core
from consensus.raft.journal import REGULAR, Journal
from consensus.raft.links import Message
from consensus.raft.member import Member

_REQUESTS = 1_000_000  # an incarnation numbers its own with this much room

_UNLIMITED = nullcontext()

Answer = Callable[[int | LogError], None]


class Surroundings(Protocol):
    """What a machine needs of the world."""

    plan: Plan
    trace: Trace
    judge: Judge
    now: float

    def send(self, sender: str, receiver: str, message: Message, late: float) -> bool:
        """A message leaves, `late` seconds from now."""

    def at(self, pause: float, key: str, call: Callable[[], None]) -> None:
        """Calls back after `pause` seconds."""

    def died(self, name: str, *, power_lost: bool) -> None:
        """The process has ended on its own."""

    def holders(self, index: int, term: int) -> str:
        """The members that hold this entry."""

    def told(self, leader: str, term: int, index: int) -> int | None:
        """The term of the entry that `leader` has at `index`, if it leads in `term`."""


@dataclass(frozen=True, slots=True)
class Doom:
    """How a process ends soon: at a sync or just behind a message that left, counted from its start or from now, or
    when it syncs over what was synced before, or that files are gone."""

    syncs: int = 0
    messages: int = 0
    rewrite: bool = False  # always with the power
    removal: bool = False  # this too
    power_lost: bool = False


class Machine:
    """`member` is None while the process does not run."""

    def __init__(self, name: str, world: Surroundings, volume: Volume, replica: Replica) -> None:
        plan = world.plan
        self.name = name
        self.volume = volume
        self.replica = replica
        self.member: Member | None = None
        self.paused_until = 0.0
        self.outcomes: dict[int, Outcome] = {}  # of this process, by the index of the entry
        self.steps = 0
        self._world = world
        self._cadence = plan.cadence[plan.names.index(name)]
        self._chance = Random(f"machine/{plan.seed}/{name}")
        self.incarnation = 0
        self._calls: deque[Callable[[Member], None]] = deque()
        self._answers: list[tuple[Answer, int | LogError]] = []
        self._waiting: dict[int, Answer] = {}
        self._asked = 0
        self._mirror: list[int] = []  # terms of the log, as the judge knows it, from entry `_mirrored` on
        self._mirrored = 1
        self._commit = 0
        self._next_step = float("inf")
        self._heard: dict[str, float] = {}
        self._arrived: list[tuple[str, Message]] = []
        self._led: tuple[int, float] = (0, 0.0)
        self._followed = float("-inf")  # when it last heard a leader
        self._transfers: dict[str, bool] = {}  # whether who asks for a vote was asked to take over
        self._possible: set[Place] = set()  # entries that may be on disk
        self.dooms: deque[Doom] = deque()  # of the next processes
        self._messages_left = 0
        self._doom = Doom()

    # The process

    def start(self) -> None:
        """A new process on what the disk holds. Raises Broken if it refuses."""
        plan, self.incarnation = self._world.plan, self.incarnation + 1
        try:
            if self.dooms:
                self.doom(self.dooms.popleft())
            self.replica.open()
            folder, applied = self.volume.root / "log", self.replica.applied
            journal = WatchedJournal.open(folder, applied, segment_bytes=plan.segment_bytes)
            try:
                self._possible = self._world.judge.recovers(self.name, journal.found, self._possible)
                journal.possible = self._possible
                self._begin(journal)
            except BaseException:
                journal.wal.close()
                raise
        except Ended as ended:
            self._world.died(self.name, power_lost=ended.power_lost)
            return
        except LogUnavailable:
            self._world.died(self.name, power_lost=bool(self._chance.random() < 0.5))
            return
        except Broken:
            raise
        except Exception as error:
            raise Broken("a member starts again", f"{self.name}: {error!r}") from error
        self._world.trace.add(self._world.now, "starts", self.name, self.replica.applied, self._commit)

    def _begin(self, journal: Journal) -> None:
        plan, applied = self._world.plan, self.replica.applied
        core = Core(
            self.name,
            [name for name in plan.names if name != self.name],
            journal,
            self._send,
            timing=plan.timing,
            chance=self._chance.random,
            applied=applied,
        )
        first, last = journal.first, journal.last
        promised = self._world.judge.promised(self.name)
        self._world.judge.restarted(self.name, first, last, {promised: journal.term(promised)})
        self._world.judge.in_term(self.name, core.term)
        self._mirror, self._mirrored, self._commit = [], first, core.commit
        self.outcomes, self._calls, self._waiting, self._answers = {}, deque(), {}, []
        self._heard, self._arrived, self._led, self.paused_until = {}, [], (0, 0.0), 0.0
        self._followed, self._transfers = float("-inf"), {}
        request = self.incarnation * _REQUESTS
        self.member = Member(core, lambda _: None, first_request=request)
        self._look_at_log(core)
        self._next_step = float("inf")
        self._wake(0.0)

    def doom(self, doom: Doom) -> None:
        """The process ends soon, if it lives to see that; an empty one takes another back."""
        self._doom, self._messages_left = doom, doom.messages
        self.volume.fuse, self.volume.fuse_kills = doom.syncs, not doom.power_lost
        self.volume.rewrite_fuse = doom.rewrite
        self.volume.removal_fuse = doom.removal

    def end(self, *, power_lost: bool) -> None:
        """Now, in the middle of whatever it does."""
        if self.member is not None:
            self._look_at_log(self.member.core)  # what it was cutting when it ended
            self.member.core.journal.wal.close()
        self.member, self._next_step = None, float("inf")
        self.doom(Doom())
        self.volume.bad = 0
        self.replica.end(power_lost=power_lost)
        if power_lost:
            self.volume.lose_power(self._world.plan.torn)
        self._world.trace.add(self._world.now, "ends", self.name, "power lost" if power_lost else "killed")
        waiting, self._waiting = self._waiting, {}
        for answer in waiting.values():
            answer(LogUnavailable("the member has ended"))

    def resume(self) -> None:
        """A process that stood still goes on."""
        self.paused_until = min(self.paused_until, self._world.now)
        if self.member is not None:
            self._wake(0.0)

    # What reaches it

    def receive(self, sender: str, message: Message) -> None:
        """From the network."""
        if self.member is not None:
            self.member.receive(sender, message)
            if message["type"] == "request_vote":
                self._transfers[sender] = self._transfers.get(sender, False) or message["transfer"]
            elif message["type"] == "next_node_idx" and message["reset"]:
                self._world.judge.asks_again(sender, self.name)
            self._arrived.append((sender, message))
            self._wake(self._chance.uniform(0.0002, 0.002))

    def linked(self, peer: str, up: bool) -> None:
        """From the network."""
        if self.member is not None:
            self.member.linked(peer, up)
            self._wake(self._chance.uniform(0.0002, 0.002))

    def ask(self, call: Callable[[Member, Answer], None], answer: Answer) -> None:
        """A call of a client in this process, run before the next step. It is answered, at the latest when the process
        ends."""
        if self.member is None:
            answer(LogUnavailable("the member does not run"))
            return
        self._asked += 1
        number = self._asked
        self._waiting[number] = answer

        def done(result: int | LogError) -> None:
            if taken := self._waiting.pop(number, None):
                self._answers.append((taken, result))

        self._calls.append(lambda member: call(member, done))
        self._wake(self._chance.uniform(0.0002, 0.002))

    def order(self, call: Callable[[Member], None]) -> None:
        """Something for the member's thread."""
        if self.member is not None:
            self._calls.append(call)
            self._wake(0.0001)

    # Its steps

    def _wake(self, pause: float) -> None:
        due = max(self._world.now + pause, self.paused_until)
        if due < self._next_step:
            self._next_step = due
            self._world.at(due - self._world.now, self.name, lambda: self._run(due))

    def _run(self, due: float) -> None:
        if self._next_step != due or self.member is None:
            return
        self._next_step = float("inf")
        if self._world.now < self.paused_until:
            self._wake(0.0)
            return
        self.steps += 1
        try:
            self._step(self.member)
        except Ended as ended:
            self._world.died(self.name, power_lost=ended.power_lost)
        except LogUnavailable as error:
            self._world.trace.add(self._world.now, "fails", self.name, type(error).__name__)
            self._world.died(self.name, power_lost=self._chance.random() < 0.7)
        if self.member is not None:
            busy, self.volume.spent = self.volume.spent, 0.0
            self.paused_until = max(self.paused_until, self._world.now + busy)
            self._wake(0.0001 if self.member.has_work else self._cadence * self._chance.uniform(0.8, 1.2))

    def _step(self, member: Member) -> None:
        arrived, self._arrived = self._arrived, []
        self._go(member)
        self._transfers = {}
        for sender, message in arrived:
            if message["type"] == "next_node_idx" and message["term"] == member.core.term:
                self._heard[sender] = self._world.now
            if message["type"] == "append_entries" and message["term"] == member.core.term:
                self._followed = self._world.now
        self._look_at_log(member.core)
        self._look_at_commit(member.core)
        self._look_at_term(member.core)
        answers, self._answers = self._answers, []
        for answer, result in answers:
            answer(result)

    def _go(self, member: Member) -> None:
        with self.volume.limited() if self.volume.full else _UNLIMITED:
            try:
                while self._calls:
                    self._calls.popleft()(member)
                member.step()
            except (Broken, LogUnavailable):
                raise
            except Exception as error:
                raise Broken("a member ends only for its disk", f"{self.name}: {error!r}") from error

    def _send(self, receiver: str, message: Message) -> bool:
        acknowledged = self._acknowledged(message)
        taken = self._world.send(self.name, receiver, message, self.volume.spent)
        if message["type"] in {"response_vote", "pre_vote_granted"} and not self._transfers.get(receiver):
            patience = self._world.plan.timing.election_least
            self._world.judge.votes(self.name, self._world.now - self._followed, patience)
        if taken:
            self._world.judge.sent(self.name, receiver, message, acknowledged)
            for index, term in acknowledged.items():
                self._world.judge.agrees(self.name, index, term, self._world.told(receiver, message["term"], index))
            self._live_on()
        return taken

    def _acknowledged(self, message: Message) -> dict[int, int]:
        """The term of the entry that is said to be held here, by its index: acknowledged, or committed by a leader."""
        if self.member is None:
            return {}
        if message["type"] == "append_entries":
            index = message["commit_index"]
        elif message["type"] == "next_node_idx" and message["success"]:
            self._look_at_log(self.member.core)  # it may have been cut before it grew to what is acknowledged
            index = message["next_node_idx"] - 1
        else:
            return {}
        term = self.member.core.journal.term(index)
        return {} if term is None else {index: term}

    def _live_on(self) -> None:
        if self._messages_left:
            self._messages_left -= 1
            if not self._messages_left:
                raise Ended(power_lost=self._doom.power_lost)

    # What it shows

    def holds(self, index: int, term: int) -> bool:
        """Whether it has that entry, so far as is known; what is trimmed it had. A process that has ended counts with
        what it had, as what it said that it has is durable."""
        if self.member is not None:
            journal = self.member.core.journal
            return index < journal.first or journal.term(index) == term
        position = index - self._mirrored
        return position < 0 or (position < len(self._mirror) and self._mirror[position] == term)

    def _look_at_log(self, core: Core) -> None:
        journal, mirror, start = core.journal, self._mirror, self._mirrored
        same = min(journal.last, start + len(mirror) - 1)
        while same >= max(start, journal.first) and journal.term(same) != mirror[same - start]:
            same -= 1
        if same < start + len(mirror) - 1:
            self._world.judge.cut(self.name, same, core.term)
            del mirror[same + 1 - start :]
        while same < journal.last:
            entries = journal.range(same + 1, journal.last + 1)
            self._world.judge.holds(self.name, entries, mirror[-1] if mirror else None)
            mirror += [term for _, _, term in entries]
            same += len(entries)

    def _look_at_commit(self, core: Core) -> None:
        if core.commit <= self._commit:
            return
        if core.commit > core.journal.last:
            raise Broken("what is committed is held", f"{self.name}: {core.commit} of {core.journal.last}")
        fresh = _whole_range(core.journal, self._commit + 1, core.commit)
        self._commit = core.commit
        self._world.trace.add(self._world.now, "commits", self.name, self._commit)
        last, term = fresh[-1][1:] if fresh else (0, 0)
        self._world.judge.commits(self.name, core.term, fresh, self._world.holders(last, term))
        missing = [entry for entry in fresh if entry[1] > self.replica.applied]
        if missing and missing[0][1] > self.replica.applied + 1:
            missing = _whole_range(core.journal, self.replica.applied + 1, core.commit)
        entries = [Entry(index, command[1:]) for command, index, _ in missing if command[:1] == REGULAR]
        for entry, outcome in zip(entries, self.replica.apply(entries, core.commit), strict=False):
            envelope = decode(entry.payload)
            self.outcomes[entry.index] = outcome
            self._world.judge.applied(self.name, (envelope.proposer, envelope.sequence), entry.index, outcome)

    def _look_at_term(self, core: Core) -> None:
        self._world.judge.in_term(self.name, core.term)
        if not core.is_leader:
            return
        if self._led[0] != core.term:
            self._led = (core.term, self._world.now)
            self._world.trace.add(self._world.now, "leads", self.name, core.term)
            judge = self._world.judge
            first = core.journal.first
            expected = {index: core.journal.term(index) for index in judge.committed if index >= first}
            judge.leads(self.name, core.term, expected)
        patience = self._world.now - self._world.plan.timing.fallback
        others = [name for name in self._world.plan.names if name != self.name]
        heard = sum(max(self._heard.get(name, 0.0), self._led[1]) > patience for name in others)
        if 2 * (heard + 1) <= len(others) + 1:
            raise Broken("a leader is heard by a majority", f"{self.name} leads term {core.term} alone")


def _whole_range(journal: Journal, start: int, end: int) -> list[journals.RaftEntry]:
    found: list[journals.RaftEntry] = []
    while start <= end and (portion := journal.range(start, end + 1)):
        found += portion
        start = portion[-1][1] + 1
    return found
