"""A few members in one process, over a network and a clock that the test moves by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from random import Random

from consensus import clock
from consensus.errors import LogError
from consensus.raft.core import Core, Timing
from consensus.raft.journal import REGULAR, Journal
from consensus.raft.links import Message
from consensus.raft.member import Member
from consensus.raft.pinned import use_clock

TIMING = Timing()
STEP_SECONDS = 0.02


class Rig:
    """Members by name; messages in flight, in order; who is cut off from whom."""

    def __init__(self, folder: Path, names: str, seed: int = 1) -> None:
        self.folder = folder
        self.names = list(names)
        self.now = 1000.0
        self.chance = Random(seed)
        self.flying: list[tuple[str, str, Message]] = []
        self.cut: set[tuple[str, str]] = set()  # (from, to)
        self.members: dict[str, Member] = {}
        self.commits: dict[str, list[int]] = {}
        self.filter: Callable[[str, str, Message], bool] = lambda *_: True
        self._requests = count(1, 1_000_000)

    def start(self, name: str, applied: int = 0) -> Member:
        """Begins, or begins again from its folder."""
        journal = Journal.open(self._data(name), applied, segment_bytes=4096)
        others = [each for each in self.names if each != name]
        core = Core(
            name, others, journal, self._sender(name), timing=TIMING, chance=self.chance.random, applied=applied
        )
        self.commits[name] = []
        member = Member(core, self.commits[name].append, first_request=next(self._requests))
        self.members[name] = member
        for other in self.members:
            if other != name:
                member.linked(other, True)
                self.members[other].linked(name, True)
        return member

    def stop(self, name: str) -> None:
        """Ends it; its files stay as they are."""
        member = self.members.pop(name)
        member.close()
        member.core.journal.wal.close()
        self.flying = [each for each in self.flying if name not in each[:2]]
        for other in self.members.values():
            other.linked(name, False)

    def isolate(self, name: str) -> None:
        for other in self.names:
            self.cut |= {(name, other), (other, name)}

    def heal(self) -> None:
        self.cut.clear()

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Time goes on in steps; whether `until` came true."""
        end = self.now + seconds
        while self.now < end:
            self.step()
            if until():
                return True
        return until()

    def step(self) -> None:
        self.deliver()
        for member in list(self.members.values()):
            member.step()
        self.now += STEP_SECONDS

    def deliver(self) -> None:
        flying, self.flying = self.flying, []
        for sender, receiver, message in flying:
            if (sender, receiver) not in self.cut and receiver in self.members:
                self.members[receiver].receive(sender, message)

    def elect(self, name: str | None = None) -> Member:
        """Until there is a leader that has committed in its term."""
        if name:
            self.members[name].core._SyncObj__raftElectionDeadline = 0
        assert self.run(20, lambda: self.leader is not None and self.leader.core.may_read), "nobody was elected"
        assert self.leader is not None
        return self.leader

    @property
    def leader(self) -> Member | None:
        """The one with the highest term."""
        leaders = [member for member in self.members.values() if member.core.is_leader]
        return max(leaders, key=lambda member: member.core.term, default=None)

    def propose(self, name: str, payload: bytes) -> list[int | LogError]:
        """Fills with the answer."""
        answers: list[int | LogError] = []
        self.members[name].propose(payload, answers.append)
        return answers

    def read_index(self, name: str) -> list[int | LogError]:
        answers: list[int | LogError] = []
        self.members[name].read_index(answers.append)
        return answers

    def log(self, name: str) -> dict[int, tuple[int, bytes]]:
        """The regular entries committed there, so far as kept: term and payload."""
        core = self.members[name].core
        found = {}
        for index in range(core.journal.first, core.commit + 1):
            command, _, term = core.journal[index - core.journal.first]
            if command[:1] == REGULAR:
                found[index] = (term, command[1:])
        return found

    def _data(self, name: str) -> Path:
        return self.folder / name

    def _sender(self, name: str) -> Callable[[str, Message], bool]:
        def send(peer: str, message: Message) -> bool:
            if self.filter(name, peer, message):
                self.flying.append((name, peer, message))
            return True

        return send


@contextmanager
def rigged(folder: Path, names: str = "abc", seed: int = 1) -> Iterator[Rig]:
    """Started, with nobody elected yet."""
    rig = Rig(folder, names, seed)
    use_clock(lambda: rig.now)
    try:
        for name in rig.names:
            rig.start(name)
        yield rig
    finally:
        for name in list(rig.members):
            rig.stop(name)
        use_clock(clock.monotonic)
