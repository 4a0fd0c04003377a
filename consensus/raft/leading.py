"""A member as the leader: new entries, what each follower lacks, what they acknowledge, and the proof that it leads."""

from __future__ import annotations

from typing import Any

from consensus.raft.guarded import NEVER, Guarded
from consensus.raft.journal import RaftEntry
from consensus.raft.links import Message
from consensus.raft.pinned import Node, now

_BATCH_BYTES = 1024 * 1024
_BATCH_ENTRIES = 4096
_MOST_BATCHES = 16  # to one member before others have their turn


class Leading(Guarded):
    """Sends to everyone in rounds; every acknowledgement says of which round it is, in this term."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.round = 0
        self._acked_round: dict[str, int] = {}
        self._number = 0  # of append_entries, over all members
        self._reset_at: dict[str, int] = {}
        super().__init__(*arguments, **options)

    @property
    def may_read(self) -> bool:
        """Whether `commit` covers everything acknowledged before this term: a leader has to commit an entry of its own
        first."""
        return self.is_leader and self.commit >= (self._SyncObj__noopIDx or NEVER)

    def is_proved(self, round: int, witness: str | None = None) -> bool:
        """Whether a majority has answered this round or a later one in this term: nobody else led when it began.
        `witness` counts as if it had: a member that has said in this term, and since then, that it follows this one."""
        answered = {peer for peer, acked in self._acked_round.items() if acked >= round}
        if witness is not None:
            answered.add(witness)
        return 2 * (1 + len(answered)) > 1 + len(self.otherNodes)

    def add(self, command: bytes) -> tuple[int, int]:
        """A new entry, not yet sent nor synced: (index, term)."""
        index = self.journal.last + 1
        self.journal.add(command, index, self.term)
        return index, self.term

    def broadcast(self) -> None:
        """Sends what each member lacks, or else where it stands; a new round."""
        if self.is_leader:
            self._SyncObj__sendAppendEntries()

    def tick(self) -> None:
        """See Guarded. A leader's part is done here: pysyncobj would look at every entry that is not committed yet."""
        if not self.is_leader:
            super().tick()
            return
        self.journal.flush()
        matching = sorted([*(self._SyncObj__raftMatchIndex[node] for node in self.otherNodes), self.journal.last])
        held = matching[-(len(matching) // 2 + 1)]  # by a majority
        if held > self.commit and self.journal.term(held) == self.term:
            self._SyncObj__raftCommitIndex = self._SyncObj__leaderCommitIndex = held
        heard = sum(at > now() - self._timing.fallback for at in self._SyncObj__lastResponseTime.values())
        if 2 * (heard + 1) <= len(matching):
            self.step_down()
        elif now() > self._SyncObj__newAppendEntriesTime:
            self.broadcast()

    def transfer(self, peer: str | None) -> bool:
        """Asks a member that has everything (None: the nearest to it) to become the leader. False if none can."""
        refused: list[object] = []
        self.transferLeadership(Node(peer) if peer else None, lambda _, error: refused.append(error))
        return not refused[0]

    def on_next_node_idx(self, node: Node, message: Message) -> None:
        """An acknowledgement, or the wish to be sent something else."""
        if message["term"] != self.term or not self.is_leader:
            return
        if not 1 <= message["next_node_idx"] <= self.journal.last + 1:
            raise ValueError("an acknowledgement of what is not there")
        self._acked_round[node.id] = max(self._acked_round.get(node.id, 0), min(message["round"], self.round))
        self._SyncObj__lastResponseTime[node] = now()
        following, matching = self._SyncObj__raftNextIndex, self._SyncObj__raftMatchIndex
        if message["success"]:
            matching[node] = max(matching[node], message["next_node_idx"] - 1)
            following[node] = max(following[node], message["next_node_idx"])
        elif message["reset"] and message["number"] > self._reset_at.get(node.id, 0):
            self._reset_at[node.id] = self._number
            following[node] = max(message["next_node_idx"], matching[node] + 1)

    def _SyncObj__onBecomeLeader(self) -> None:  # noqa: N802
        self._acked_round.clear()
        self._reset_at.clear()
        super()._SyncObj__onBecomeLeader()

    def _SyncObj__sendAppendEntries(self) -> None:  # noqa: N802
        self._SyncObj__newAppendEntriesTime = now() + self._timing.heartbeat
        self.round += 1
        for node in sorted(self._SyncObj__connectedNodes & self.otherNodes, key=lambda node: str(node.id)):
            self._replicate(node)

    def _replicate(self, node: Node) -> None:
        """Sends a member what it lacks as far as there is room on its way, or else where this log ends."""
        following: dict[Node, int] = self._SyncObj__raftNextIndex
        heading = {"type": "append_entries", "term": self.term, "commit_index": self.commit, "round": self.round}
        if following[node] <= self.journal.first:  # it may need a snapshot, and learns so by what is missing here
            self._number += 1
            self.send(node.id, heading | {"first": self.journal.first, "number": self._number})
            return
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
