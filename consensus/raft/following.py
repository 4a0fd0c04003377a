"""A member as a follower: entries taken over, compared before anything is believed, synced before anything is said."""

from __future__ import annotations

from typing import Any

from consensus.errors import LogFull
from consensus.raft.guarded import FOLLOWER, Guarded
from consensus.raft.journal import KINDS, NO_OP, RaftEntry
from consensus.raft.links import Message
from consensus.raft.pinned import Node, now


class Following(Guarded):
    """Acknowledgements are collected and leave together, behind one sync."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.snapshot_from: str | None = None  # the leader that no longer has what this member needs
        self._acks: list[tuple[str, Message]] = []
        self._known_commit = 0  # of what has been received, which may not be on disk yet
        super().__init__(*arguments, **options)

    def restart(self, base: int, term: int) -> None:
        """A snapshot up to entry `base` is in force. What this log has is kept if it agrees with that."""
        self._acks = []
        # A log that has been trimmed beyond it has all that the snapshot holds.
        if base >= self.journal.first and self.journal.term(base) != term:
            self.journal.restart(base, term)
        self._known_commit = max(self._known_commit, base)
        self.snapshot_from = None
        self._raise_commit()

    def acknowledge(self) -> None:
        """Syncs what has been received and says so; one sync for all messages since the last call."""
        acks, self._acks = self._acks, []  # none is sent if the sync fails
        try:
            self.journal.flush()
        except LogFull:
            # What was compared and is forgotten again is not here: it will come once more.
            self._known_commit = min(self._known_commit, self.journal.last)
            raise
        self._raise_commit()
        for peer, ack in acks:
            # One of an older term would speak of entries that may have been cut since.
            if ack["term"] == self.term:
                self.send(peer, ack)

    def on_append_entries(self, node: Node, message: Message) -> None:
        """Entries, or just where the leader stands."""
        if message["term"] < self.term:
            self.send(node.id, {"type": "stale", "term": self.term})
            return
        if message["term"] == self.term and self.is_leader:
            raise ValueError("another leader in this term")
        self._follow(node, message["term"])
        if "prevLogIdx" not in message:
            # It may have been on its way while a snapshot came in force here.
            self.snapshot_from = node.id if self.commit < int(message["first"]) else None
            # The rest may be of a dead leader, and more than this one has.
            self._answer(node, message, self.commit + 1, success=False, reset=True)
            return
        self.snapshot_from = None
        self._take(node, message, _checked(message["entries"]))

    def on_stale(self, _: Node, message: Message) -> None:
        """A message of ours met a higher term."""
        if message["term"] > self.term:
            self._SyncObj__setCurrentTerm(message["term"], None)
            self._SyncObj__setState(FOLLOWER)
            self._SyncObj__raftLeader = None

    def _follow(self, node: Node, term: int) -> None:
        self._heard = now()
        if term > self.term:
            self._SyncObj__transferInProgress = False
            self._SyncObj__setCurrentTerm(term, None)
        if not self._SyncObj__transferInProgress:
            self._SyncObj__raftElectionDeadline = now() + self._SyncObj__generateRaftTimeout()
        self._SyncObj__raftLeader = node
        self._SyncObj__setState(FOLLOWER)

    def _take(self, node: Node, message: Message, entries: list[RaftEntry]) -> None:
        before, before_term = message["prevLogIdx"], message["prevLogTerm"]
        if any(index != before + step for step, (_, index, _) in enumerate(entries, start=1)):
            raise ValueError("entries that do not follow each other")
        if before > self.commit and self.journal.term(before) != before_term:
            self._answer(node, message, self._where_to_begin(before), success=False, reset=True)
            return
        # Up to `commit` every leader's log is like this one.
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
