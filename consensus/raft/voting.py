"""Elections: nobody stands for one that a majority would refuse, and nobody deserts a leader that is heard."""

from __future__ import annotations

from typing import Any

from consensus.raft.guarded import Guarded
from consensus.raft.links import Message
from consensus.raft.pinned import Node, now


class Voting(Guarded):
    """Pre-votes ask first; votes are counted by voter. A transfer of leadership passes both."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._voters: set[str] = set()
        self._pre_votes: set[str] = set()
        self._pre_vote_key: tuple[int, int, int] | None = None
        self._pre_vote_asked = float("-inf")
        self._transferring = False
        super().__init__(*arguments, **options)

    def emit(self, peer: str, message: Message) -> bool:
        """See Guarded."""
        if message["type"] == "request_vote":
            message["transfer"] = self._transferring
        return super().emit(peer, message)

    def on_pre_vote(self, node: Node, message: Message) -> None:
        """Would this member vote for that one?"""
        theirs = (message["last_log_term"], message["last_log_index"])
        if message["term"] < self.term:
            self.send(node.id, {"type": "stale", "term": self.term})
        elif theirs >= self._newest and not self.hears_a_leader:
            self.send(node.id, {"type": "pre_vote_granted", "term": message["term"], "last_log_index": theirs[1]})

    def on_pre_vote_granted(self, node: Node, message: Message) -> None:
        """That one would vote for this member."""
        if self._pre_vote_key and (message["term"], message["last_log_index"]) == self._pre_vote_key[:2]:
            self._pre_votes.add(node.id)

    def on_request_vote(self, node: Node, message: Message) -> None:
        """Refused while a leader is heard, unless that leader wants it so."""
        if message["transfer"] is True or not self.hears_a_leader:
            self._SyncObj__onMessageReceived(node, message)

    def on_response_vote(self, node: Node, message: Message) -> None:
        """A vote; the second one of a voter is none."""
        if message["term"] == self.term and node.id not in self._voters:
            self._voters.add(node.id)
            self._SyncObj__onMessageReceived(node, message)

    def on_timeout_now(self, node: Node, message: Message) -> None:
        """The leader wants this member to take over."""
        self._SyncObj__onMessageReceived(node, message)

    @property
    def _newest(self) -> tuple[int, int]:
        _, index, term = self.journal[-1]
        return term, index

    def _SyncObj__setCurrentTerm(self, term: int, voted_for: str | None) -> None:  # noqa: N802
        if term > self.term:
            self._voters.clear()
        super()._SyncObj__setCurrentTerm(term, voted_for)

    def _SyncObj__connectedToAnyone(self) -> bool:  # noqa: N802
        """Asked when an election is due: whether a majority would vote for this member. Asks them where that is not
        known."""
        self._transferring = bool(self._SyncObj__transferInProgress)
        if self._transferring or not self.otherNodes:
            return True
        term, index, last_term = key = (self.term, self.journal.last, self.journal[-1][2])
        if key != self._pre_vote_key or now() - self._pre_vote_asked > self._timing.election_least / 2:
            self._pre_vote_key, self._pre_vote_asked = key, now()
            self._pre_votes = set()
            question = {"type": "pre_vote", "term": term, "last_log_index": index, "last_log_term": last_term}
            for node in sorted(self.otherNodes, key=lambda node: str(node.id)):
                self.send(node.id, dict(question))
        return 2 * (len(self._pre_votes) + 1) > len(self.otherNodes) + 1
