"""pysyncobj's Raft with its faults guarded, without a fork: what is overridden here, and why.

    fault of release 0.3.17                       guard
    ------------------------------------------    -----------------------------------------------------------------
    entries acknowledged before are truncated     append_entries is handled here: only a conflict truncates, never
                                                  a committed entry, and commit rises to what was compared only
    acknowledgements carry no term                every message has one; an acknowledgement of another is dropped
    stale resets make the leader resend           replication is done here: an answer older than the last reset resets
                                                  nothing, and an acknowledgement never resends what is under way
    votes are counted, not voters                 a voter counts once a term
    an isolated node disrupts when it returns     pre-vote, and votes are refused while a leader is heard
    a cut-off leader stays one for 30 s           it steps down after `fallback_seconds` without a majority
    nothing is synced                             the journal is flushed before an acknowledgement leaves and before
                                                  the leader counts itself; term and vote before a vote leaves
    membership changes are not serialized         kinds other than REGULAR and NO_OP are refused
    pickle                                        never reached (`pinned`)

Relied on as it is: votes go to logs that are up to date, an entry is committed by count only in its own term, the no-op
of an election, pipelining, and the transfer of leadership. No threads, no I/O beside the journal: the caller hands over
messages and time, and takes messages from `send`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from consensus.raft.journal import KINDS, NO_OP, Journal, RaftEntry
from consensus.raft.pinned import Node, SyncObj, SyncObjConf, Transport, now

Message = dict[str, Any]
Send = Callable[[str, Message], bool]

_FOLLOWER, _CANDIDATE, _LEADER = range(3)
_NEVER = 10**9
_BATCH_BYTES = 1024 * 1024
_BATCH_ENTRIES = 4096
_MOST_BATCHES = 16  # to one member before others have their turn
_ROUNDS_KEPT = 1000

_logger = logging.getLogger(__name__)


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
    """Everything that pysyncobj sends passes the core, which stamps it."""

    def __init__(self, core: Core, me: Node, others: Iterable[Node]) -> None:
        super().__init__(core, me, others)
        self._core = core

    def send(self, node: Node, message: Message) -> bool:
        self._core.emit(node.id, message)
        return True


class _NoSnapshots:
    """Stands where pysyncobj's serializer stood: snapshots travel on a stream of their own."""

    def getTransmissionData(self, _: Node) -> None:  # noqa: N802  pysyncobj's name
        return None

    def cancelTransmisstion(self, _: Node) -> None:  # noqa: N802
        return None


class _NoPoller:
    def poll(self, _: float) -> None:
        return None


class Core(SyncObj):  # type: ignore[misc]
    """One member. `applied` is the last entry its state has applied: committed, whatever else is not known.

    `tick` and `receive` raise LogFull and LogUnavailable when the journal does: after LogUnavailable the member must not
    go on, after LogFull `step_down` is called for.
    """

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
        self._chance = chance
        self._timing = timing
        self.round = 0  # of append_entries to all; acknowledgements bring it back
        self.rounds_begun: dict[int, float] = {}
        self._acked_round: dict[str, int] = {}
        self._number = 0  # of append_entries, over all members
        self._reset_at: dict[str, int] = {}
        self._voters: set[str] = set()
        self._acks: list[tuple[str, Message]] = []
        self._known_commit = 0  # of what has been received, which may not be on disk yet
        self._heard = float("-inf")  # from a leader
        self._pre_votes: set[str] = set()
        self._pre_vote_key: tuple[int, int, int] | None = None
        self._pre_vote_asked = float("-inf")
        self._transferring = False
        self.lagging: set[str] = set()  # members that need what the journal no longer has
        self.snapshot_from: str | None = None  # the leader that no longer has what this member needs
        super().__init__(
            Node(me),
            [Node(name) for name in others],
            _configuration(journal, timing),
            nodeClass=Node,
            transportClass=_Outbox,
        )
        journal.flush()
        self._poller = _NoPoller()
        self._SyncObj__serializer = _NoSnapshots()
        self._SyncObj__needLoadDumpFile = False
        self._SyncObj__raftCommitIndex = self._SyncObj__raftLastApplied = max(1, applied, journal.first)

    # What the member asks

    @property
    def is_leader(self) -> bool:
        """Whether it believes so; `proved` tells since when it is known."""
        return bool(self._SyncObj__raftState == _LEADER)

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
    def may_read(self) -> bool:
        """Whether `commit` covers everything acknowledged before this term: a leader has to commit an entry of its own
        first."""
        return self.is_leader and self.commit >= (self._SyncObj__noopIDx or _NEVER)

    @property
    def proved(self) -> int:
        """The newest round that a majority has answered in this term. What was committed when it began is covered."""
        others = len(self.otherNodes)
        rounds = sorted([*self._acked_round.values(), *[0] * (others - len(self._acked_round)), self.round])
        return rounds[-(len(rounds) // 2 + 1)]

    def add(self, command: bytes) -> tuple[int, int]:
        """A leader's new entry, not yet sent nor synced: (index, term)."""
        index = self.journal.last + 1
        self.journal.add(command, index, self.term)
        return index, self.term

    # What the member does

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

    def broadcast(self) -> None:
        """A leader sends what each member lacks, or else where it stands; a new round."""
        if self.is_leader:
            self._SyncObj__sendAppendEntries()

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
        """A leader that cannot write leads no longer in this term; without a majority, or a successor, nobody does."""
        if self.is_leader:
            self._SyncObj__setState(_FOLLOWER)
            self._SyncObj__raftLeader = None
            self._SyncObj__raftElectionDeadline = self._now() + 2 * self._timing.election_most

    def acknowledge(self) -> None:
        """Syncs what has been received and says so; one sync for all messages since the last call."""
        acks, self._acks = self._acks, []  # none is sent if the sync fails
        self.journal.flush()
        self._raise_commit()
        for peer, ack in acks:
            # One of an older term would speak of entries that may have been cut since.
            if ack["term"] == self.term:
                self.send(peer, ack)

    def transfer(self, peer: str | None) -> bool:
        """Asks a member that has everything (None: the nearest to it) to become the leader. False if none can."""
        refused: list[object] = []
        self.transferLeadership(Node(peer) if peer else None, lambda _, error: refused.append(error))
        return not refused[0]

    def receive(self, peer: str, message: Message) -> None:
        """A message of an authenticated member; one that makes no sense is dropped and logged."""
        node = Node(peer)
        if node not in self.otherNodes:
            return
        handler = _HANDLERS.get(message.get("type", ""))
        try:
            term = message["term"]
            if handler is None or type(term) is not int or term < 0:
                raise ValueError("not a message of this version")
            handler(self, node, message)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            _logger.warning("raft_message_dropped", extra={"peer": peer, "reason": repr(error)})

    # Messages out

    def emit(self, peer: str, message: Message) -> None:
        """What pysyncobj sends: requests for votes, votes, and the word to take over."""
        if message["type"] == "request_vote":
            message["transfer"] = self._transferring
        self.send(peer, message)

    def _SyncObj__sendAppendEntries(self) -> None:  # noqa: N802
        began = self._now()
        self._SyncObj__newAppendEntriesTime = began + self._timing.heartbeat
        self.round += 1
        self.rounds_begun[self.round] = began
        while len(self.rounds_begun) > _ROUNDS_KEPT:
            del self.rounds_begun[next(iter(self.rounds_begun))]
        for node in sorted(self._SyncObj__connectedNodes & self.otherNodes, key=lambda node: str(node.id)):
            self._replicate(node)

    def _replicate(self, node: Node) -> None:
        """Sends a member what it lacks as far as there is room on its way, or else where this log ends."""
        following: dict[Node, int] = self._SyncObj__raftNextIndex
        heading = {"type": "append_entries", "term": self.term, "commit_index": self.commit, "round": self.round}
        if following[node] <= self.journal.first:
            self.lagging.add(node.id)
            self._number += 1
            self.send(node.id, heading | {"number": self._number})
            return
        self.lagging.discard(node.id)
        for _ in range(_MOST_BATCHES):
            before = following[node] - 1
            entries = self._portion(following[node])
            self._number += 1
            compared = {"prevLogIdx": before, "prevLogTerm": self.journal.term(before), "entries": entries}
            if not self.send(node.id, heading | compared | {"number": self._number}):
                return
            following[node] += len(entries)
            if following[node] > self.journal.last:
                return

    def _portion(self, start: int) -> list[RaftEntry]:
        size = 0
        found = self.journal.range(start, start + _BATCH_ENTRIES)
        for count, (command, _, _) in enumerate(found, start=1):
            size += len(command)
            if size >= _BATCH_BYTES:
                return found[:count]
        return found

    def _SyncObj__onBecomeLeader(self) -> None:  # noqa: N802
        self._acked_round.clear()
        self._reset_at.clear()
        self.lagging.clear()
        super()._SyncObj__onBecomeLeader()

    def _SyncObj__setCurrentTerm(self, term: int, voted_for: str | None) -> None:  # noqa: N802
        if term > self.term:
            self._voters.clear()
        super()._SyncObj__setCurrentTerm(term, voted_for)

    def _SyncObj__generateRaftTimeout(self) -> float:  # noqa: N802
        least, most = self._timing.election_least, self._timing.election_most
        return least + (most - least) * self._chance()

    def _SyncObj__applyLogEntries(self) -> bool:  # noqa: N802
        # The state is applied elsewhere, in order, from committed entries.
        self._SyncObj__raftLastApplied = self._SyncObj__raftCommitIndex
        return False

    def _SyncObj__tryLogCompaction(self) -> None:  # noqa: N802
        return

    def _SyncObj__connectedToAnyone(self) -> bool:  # noqa: N802
        """Asked when an election is due: whether a majority would vote for this member. Asks them if it is not known."""
        self._transferring = bool(self._SyncObj__transferInProgress)
        if self._transferring or not self.otherNodes:
            return True
        key = (self.term, self.journal.last, self.journal[-1][2])
        if key != self._pre_vote_key or self._now() - self._pre_vote_asked > self._timing.election_least / 2:
            self._pre_vote_key, self._pre_vote_asked = key, self._now()
            self._pre_votes = set()
            term, index, last_term = key
            question = {"type": "pre_vote", "term": term, "last_log_index": index, "last_log_term": last_term}
            for node in self.otherNodes:
                self.send(node.id, dict(question))
        return 2 * (len(self._pre_votes) + 1) > len(self.otherNodes) + 1

    # Messages in

    def _on_pre_vote(self, node: Node, message: Message) -> None:
        theirs = (message["last_log_term"], message["last_log_index"])
        if message["term"] < self.term:
            self.send(node.id, {"type": "stale", "term": self.term})
        elif theirs >= self._newest and not self._hears_a_leader:
            self.send(node.id, {"type": "pre_vote_granted", "term": message["term"], "last_log_index": theirs[1]})

    def _on_pre_vote_granted(self, node: Node, message: Message) -> None:
        if self._pre_vote_key and (message["term"], message["last_log_index"]) == self._pre_vote_key[:2]:
            self._pre_votes.add(node.id)

    def _on_request_vote(self, node: Node, message: Message) -> None:
        if message["transfer"] is not True and self._hears_a_leader:
            return
        self._SyncObj__forward(node, message)

    def _on_response_vote(self, node: Node, message: Message) -> None:
        if message["term"] == self.term and node.id not in self._voters:
            self._voters.add(node.id)
            self._SyncObj__forward(node, message)

    def _on_timeout_now(self, node: Node, message: Message) -> None:
        self._SyncObj__forward(node, message)

    def _on_stale(self, _: Node, message: Message) -> None:
        """A message of ours met a higher term."""
        if message["term"] > self.term:
            self._SyncObj__setCurrentTerm(message["term"], None)
            self._SyncObj__setState(_FOLLOWER)
            self._SyncObj__raftLeader = None

    def _on_next_node_idx(self, node: Node, message: Message) -> None:
        if message["term"] != self.term or not self.is_leader:
            return
        if not 1 <= message["next_node_idx"] <= self.journal.last + 1:
            raise ValueError("an acknowledgement of what is not there")
        self._acked_round[node.id] = max(self._acked_round.get(node.id, 0), min(message["round"], self.round))
        self._SyncObj__lastResponseTime[node] = self._now()
        following, matching = self._SyncObj__raftNextIndex, self._SyncObj__raftMatchIndex
        if message["success"]:
            matching[node] = max(matching[node], message["next_node_idx"] - 1)
            following[node] = max(following[node], message["next_node_idx"])
        elif message["reset"] and message["number"] > self._reset_at.get(node.id, 0):
            self._reset_at[node.id] = self._number
            following[node] = max(message["next_node_idx"], matching[node] + 1)

    def _on_append_entries(self, node: Node, message: Message) -> None:
        if message["term"] < self.term:
            self.send(node.id, {"type": "stale", "term": self.term})
            return
        if message["term"] == self.term and self.is_leader:
            raise ValueError("another leader in this term")
        self._follow(node, message["term"])
        if "prevLogIdx" not in message:
            self.snapshot_from = node.id
            self._answer(node, message, self.journal.last + 1, success=False, reset=False)
            return
        self.snapshot_from = None
        entries = _checked(message["entries"])
        self._take(node, message, entries)

    def _follow(self, node: Node, term: int) -> None:
        self._heard = self._now()
        if term > self.term:
            self._SyncObj__transferInProgress = False
            self._SyncObj__setCurrentTerm(term, None)
        if not self._SyncObj__transferInProgress:
            self._SyncObj__raftElectionDeadline = self._now() + self._SyncObj__generateRaftTimeout()
        self._SyncObj__raftLeader = node
        self._SyncObj__setState(_FOLLOWER)

    def _take(self, node: Node, message: Message, entries: list[RaftEntry]) -> None:
        before, before_term = message["prevLogIdx"], message["prevLogTerm"]
        if any(index != before + step for step, (_, index, _) in enumerate(entries, start=1)):
            raise ValueError("entries that do not follow each other")
        if before > self.commit and self.journal.term(before) != before_term:
            self._answer(node, message, self._where_to_begin(before), success=False, reset=True)
            return
        # Up to `commit` every leader's log is like this one: what was compared now ends here.
        compared = max(before, min(self.commit, before + len(entries)))
        for command, index, term in entries:
            if index <= self.commit:
                continue
            if self.journal.term(index) not in {None, term}:
                self.journal.cut(index - 1)
            if index > self.journal.last:
                self.journal.add(command, index, term)
            compared = index
        self._answer(node, message, compared + 1, success=True, reset=False)
        self._known_commit = max(self._known_commit, min(message["commit_index"], compared))

    def _raise_commit(self) -> None:
        if self._known_commit > self.commit:
            self._SyncObj__leaderCommitIndex = self._SyncObj__raftCommitIndex = self._known_commit

    def _where_to_begin(self, before: int) -> int:
        """The next entry a leader should send to a member whose log does not match at `before`."""
        if before > self.journal.last:
            return self.journal.last + 1
        term = self.journal.term(before)
        while before > self.commit + 1 and self.journal.term(before - 1) == term:
            before -= 1
        return before

    def _answer(self, node: Node, message: Message, following: int, *, success: bool, reset: bool) -> None:
        ack = {
            "type": "next_node_idx",
            "term": self.term,
            "next_node_idx": following,
            "success": success,
            "reset": reset,
            "round": message["round"],
            "number": message["number"],
        }
        self._acks.append((node.id, ack))

    @property
    def _newest(self) -> tuple[int, int]:
        _, index, term = self.journal[-1]
        return term, index

    @property
    def _hears_a_leader(self) -> bool:
        """A leader hears itself as long as a majority hears it."""
        patience = self._now() - self._timing.election_least
        if not self.is_leader:
            return self._heard > patience
        heard = sum(at > patience for at in self._SyncObj__lastResponseTime.values())
        return 2 * (heard + 1) > len(self.otherNodes) + 1

    def _SyncObj__forward(self, node: Node, message: Message) -> None:  # noqa: N802
        self._SyncObj__onMessageReceived(node, message)

    def _now(self) -> float:
        return now()


_HANDLERS: dict[str, Callable[[Core, Node, Message], None]] = {
    "append_entries": Core._on_append_entries,
    "next_node_idx": Core._on_next_node_idx,
    "request_vote": Core._on_request_vote,
    "response_vote": Core._on_response_vote,
    "pre_vote": Core._on_pre_vote,
    "pre_vote_granted": Core._on_pre_vote_granted,
    "timeout_now": Core._on_timeout_now,
    "stale": Core._on_stale,
}


def _checked(entries: object) -> list[RaftEntry]:
    """Raises ValueError, TypeError."""
    found: list[RaftEntry] = []
    for command, index, term in entries:  # type: ignore[attr-defined]
        if type(command) is not bytes or command[:1] not in KINDS or type(index) is not int or type(term) is not int:
            raise ValueError("not an entry of this version")
        if command[:1] == NO_OP and len(command) > 1:
            raise ValueError("a no-op that says something")
        found.append((command, index, term))
    return found


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
        logCompactionMinEntries=_NEVER,
        logCompactionMinTime=_NEVER,
        pollerType="select",
    )
