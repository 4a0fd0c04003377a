"""What the three roles of a member share: pysyncobj without its network, its disk, its snapshots and its apply loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from consensus.raft.journal import Journal
from consensus.raft.links import Message
from consensus.raft.pinned import Node, SyncObj, SyncObjConf, Transport, now

Send = Callable[[str, Message], bool]

FOLLOWER, CANDIDATE, LEADER = range(3)
NEVER = 10**9


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. The election timeout is drawn between the two for each election."""

    heartbeat: float = 0.15
    election_least: float = 1.0
    election_most: float = 2.0

    @classmethod
    def for_round_trip(cls, seconds: float) -> Timing:
        """For members at most that far from each other: an election waits for ten round trips at least."""
        least = max(1.0, 10 * seconds)
        return cls(max(0.1, min(0.2, seconds)), least, 2 * least)

    @property
    def fallback(self) -> float:
        """How long a leader goes on without hearing a majority."""
        return self.election_least


class _Outbox(Transport):  # type: ignore[misc]  # pysyncobj has no types
    """Everything that pysyncobj sends by itself passes the member."""

    def __init__(self, member: Guarded, me: Node, others: Iterable[Node]) -> None:
        super().__init__(member, me, others)
        self._member = member

    def send(self, node: Node, message: Message) -> bool:
        return self._member.emit(node.id, message)


class _NoPoller:
    def poll(self, _: float) -> None:
        return None


class Guarded(SyncObj):  # type: ignore[misc]
    """The part of a member that all roles need. `applied` is the last entry its state has applied, and so committed."""

    def __init__(
        self,
        me: str,
        others: Iterable[str],
        journal: Journal,
        send: Send,
        *,
        timing: Timing,
        chance: Callable[[], float],
        applied: int = 0,
    ) -> None:
        self.journal = journal
        self.send = send
        self._timing = timing
        self._chance = chance
        self._heard = float("-inf")  # from a leader
        super().__init__(
            Node(me),
            [Node(name) for name in others],
            _configuration(journal, timing),
            nodeClass=Node,
            transportClass=_Outbox,
        )
        journal.flush()
        self._poller = _NoPoller()
        self._SyncObj__needLoadDumpFile = False
        if not self.otherNodes:
            self._SyncObj__raftElectionDeadline = float("-inf")  # there is nobody to wait for
        self._SyncObj__raftCommitIndex = self._SyncObj__raftLastApplied = max(1, applied, journal.first)

    @property
    def is_leader(self) -> bool:
        """Whether it believes so."""
        return bool(self._SyncObj__raftState == LEADER)

    @property
    def leader(self) -> str | None:
        """The leader that it knows of."""
        node = self._SyncObj__raftLeader
        return node.id if node is not None else None

    @property
    def term(self) -> int:
        """The current one."""
        return int(self._SyncObj__raftCurrentTerm)

    @property
    def commit(self) -> int:
        """The highest index known to be committed."""
        return int(self._SyncObj__raftCommitIndex)

    @property
    def hears_a_leader(self) -> bool:
        """Whether one was heard within the shortest election timeout; a leader hears itself while a majority does."""
        patience = now() - self._timing.election_least
        if not self.is_leader:
            return self._heard > patience
        heard = sum(at > patience for at in self._SyncObj__lastResponseTime.values())
        return bool(2 * (heard + 1) > len(self.otherNodes) + 1)

    def emit(self, peer: str, message: Message) -> bool:
        """What pysyncobj sends by itself: requests for votes, votes, and the word to take over."""
        return self.send(peer, message)

    def linked(self, peer: str, up: bool) -> None:
        """A connection came or went."""
        (self._SyncObj__onNodeConnected if up else self._SyncObj__onNodeDisconnected)(Node(peer))

    def retime(self, timing: Timing) -> None:
        """From the next timeout on."""
        if timing != self._timing:
            self._timing = timing
            fresh = _configuration(self.journal, timing)
            for name in ("appendEntriesPeriod", "raftMinTimeout", "raftMaxTimeout", "leaderFallbackTimeout"):
                setattr(self.conf, name, getattr(fresh, name))

    def tick(self) -> None:
        """Elections, heartbeats, commits. What this member counts for is on disk before it is counted."""
        self.journal.flush()
        commit = self.commit
        try:
            self.doTick(0.0)
        except BaseException:
            self._SyncObj__raftCommitIndex = commit
            raise

    def step_down(self) -> None:
        """A leader that cannot write, or is not heard, leads no longer in this term, and lets others go first in the
        next."""
        if self.is_leader:
            self._SyncObj__setState(FOLLOWER)
            self._SyncObj__raftLeader = None
            self._SyncObj__raftElectionDeadline = now() + self._timing.election_most

    def _SyncObj__generateRaftTimeout(self) -> float:  # noqa: N802
        least, most = self._timing.election_least, self._timing.election_most
        return least + (most - least) * self._chance()

    def _SyncObj__applyLogEntries(self) -> bool:  # noqa: N802
        # The state is applied elsewhere, in order, from committed entries.
        self._SyncObj__raftLastApplied = self._SyncObj__raftCommitIndex
        return False

    def _SyncObj__getEntries(self, start: int, count: int = 1, _: object = None) -> list[tuple[bytes, int, int]]:  # noqa: N802
        # All that is left in use there looks at terms only, one entry at a time, and need not read the disk for them.
        terms = [(index, self.journal.term(index)) for index in range(start, start + count)]
        return [(b"", index, term) for index, term in terms if term is not None]

    def _SyncObj__tryLogCompaction(self) -> None:  # noqa: N802
        return


def _configuration(journal: Journal, timing: Timing) -> SyncObjConf:
    return SyncObjConf(
        autoTick=False,
        journalFile=journal,
        fullDumpFile=None,
        appendEntriesPeriod=timing.heartbeat,
        raftMinTimeout=timing.election_least,
        raftMaxTimeout=timing.election_most,
        leaderFallbackTimeout=timing.fallback,
        connectionTimeout=3 * timing.election_most,
        commandsWaitLeader=False,
        logCompactionMinEntries=NEVER,
        logCompactionMinTime=NEVER,
        pollerType="select",
    )
