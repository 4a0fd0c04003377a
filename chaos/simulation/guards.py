"""Each guard of the core and of the member, and how to take it away: the simulation has to notice.

What takes a guard away is put in the place of a method of the shipped classes for the length of a run, in the
simulation only. Those of the last group are pysyncobj's own, which the core relies on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from consensus.errors import LogFull
from consensus.raft.core import _HANDLERS, Core
from consensus.raft.following import Following, _checked
from consensus.raft.guarded import Guarded
from consensus.raft.journal import Journal, RaftEntry
from consensus.raft.leading import Leading
from consensus.raft.links import Message
from consensus.raft.member import Member
from consensus.raft.pinned import Node, now
from consensus.raft.voting import Voting

_Patch = tuple[type, str, object]


def _take_as_stock(self: Core, node: Node, message: Message, entries: list[RaftEntry]) -> None:
    """Truncates behind `prevLogIdx` whatever is there."""
    before = message["prevLogIdx"]
    if self.journal.term(before) != message["prevLogTerm"]:
        self._answer(node, message, self._where_to_begin(before), success=False, reset=True)
        return
    if self.journal.last > before:
        self.journal.cut(before)
    for entry in entries:
        self.journal.add(*entry)
    self._answer(node, message, self.journal.last + 1, success=True, reset=False)
    self._known_commit = max(self._known_commit, min(message["commit_index"], self.journal.last))


_shipped_take = Core._take


def _take_commit_unseen(self: Core, node: Node, message: Message, entries: list[RaftEntry]) -> None:
    """Believes the leader's commit index for entries that were not compared."""
    _shipped_take(self, node, message, entries)
    self._known_commit = max(self._known_commit, min(message["commit_index"], self.journal.last))


def _take_uncompared(self: Core, node: Node, message: Message, entries: list[RaftEntry]) -> None:
    """Adds what is new without looking at what is there."""
    if message["prevLogIdx"] > self.journal.last:
        self._answer(node, message, self.journal.last + 1, success=False, reset=True)
        return
    for entry in entries:
        if entry[1] > self.journal.last:
            self.journal.add(*entry)
    compared = message["prevLogIdx"] + len(entries)
    self._answer(node, message, compared + 1, success=True, reset=False)
    self._known_commit = max(self._known_commit, min(message["commit_index"], compared))


_shipped_ack = Core.on_next_node_idx


def _ack_of_any_term(self: Core, node: Node, message: Message) -> None:
    _shipped_ack(self, node, message | {"term": self.term})


def _ack_always_resets(self: Core, node: Node, message: Message) -> None:
    self._reset_at.clear()
    _shipped_ack(self, node, message)


def _ack_that_resends(self: Core, node: Node, message: Message) -> None:
    _shipped_ack(self, node, message)
    if message["success"] and message["term"] == self.term and self.is_leader:
        self._SyncObj__raftNextIndex[node] = message["next_node_idx"]


def _count_votes(self: Core, node: Node, message: Message) -> None:
    if message["term"] == self.term:
        self._SyncObj__onMessageReceived(node, message)


def _count_old_votes(self: Core, node: Node, message: Message) -> None:
    if node.id not in self._voters:
        self._voters.add(node.id)
        self._SyncObj__onMessageReceived(node, message | {"term": self.term})


def _append_of_any_term(self: Core, node: Node, message: Message) -> None:
    if message["term"] == self.term and self.is_leader:
        return
    self._follow(node, max(message["term"], self.term))
    if "prevLogIdx" in message:
        self._take(node, message, _checked(message["entries"]))


def _acknowledge_at_once(self: Core) -> None:
    acks, self._acks = self._acks, []
    for peer, ack in acks:
        if ack["term"] == self.term:
            self.send(peer, ack)
    _flush(self)
    self._raise_commit()


def _flush(core: Core) -> None:
    try:
        core.journal.flush()
    except LogFull:
        core._known_commit = min(core._known_commit, core.journal.last)
        raise


def _acknowledge_old_terms(self: Core) -> None:
    acks, self._acks = self._acks, []
    _flush(self)
    self._raise_commit()
    for peer, ack in acks:
        self.send(peer, ack)


def _commit_unflushed(self: Core) -> None:
    acks, self._acks = self._acks, []
    self._raise_commit()
    _flush(self)
    for peer, ack in acks:
        if ack["term"] == self.term:
            self.send(peer, ack)


def _acknowledge_and_keep(self: Core) -> None:
    acks, self._acks = self._acks, []
    self.journal.flush()
    self._raise_commit()
    for peer, ack in acks:
        if ack["term"] == self.term:
            self.send(peer, ack)


def _step_counting_first(self: Member) -> None:
    """A leader syncs what it has added once it is committed."""
    commit = self.core.commit
    try:
        self._take_messages()
        if not self.core.is_leader:
            self.core.acknowledge()
        if self._grown or self._waits_for_a_round:
            self._grown = False
            self.core.broadcast()
        self.core.tick()
        self._settle()
        if not self.core.is_leader or self.core.commit > commit:
            _flush(self.core)
    except LogFull as error:
        self._run_full(error)


def _vote_for_any_log(self: Core, node: Node, message: Message) -> None:
    _shipped_request(self, node, message | {"last_log_term": 10**9})


def _grant_for_any_log(self: Core, node: Node, message: Message) -> None:
    _shipped_pre_vote(self, node, message | {"last_log_term": 10**9})


_shipped_request = Core.on_request_vote
_shipped_pre_vote = Core.on_pre_vote


def _vote_while_led(self: Core, node: Node, message: Message) -> None:
    self._SyncObj__onMessageReceived(node, message)


def _grant_while_led(self: Core, node: Node, message: Message) -> None:
    if message["term"] >= self.term and (message["last_log_term"], message["last_log_index"]) >= self._newest:
        answer = {"type": "pre_vote_granted", "term": message["term"], "last_log_index": message["last_log_index"]}
        self.send(node.id, answer)


def _tick_counting_any_term(self: Leading) -> None:
    if self.is_leader:
        matching = sorted([*(self._SyncObj__raftMatchIndex[node] for node in self.otherNodes), self.journal.last])
        held = matching[-(len(matching) // 2 + 1)]
        if held > self.commit:
            self.journal.flush()
            self._SyncObj__raftCommitIndex = self._SyncObj__leaderCommitIndex = held
    _shipped_tick(self)


def _tick_for_ever(self: Leading) -> None:
    if self.is_leader:
        self._SyncObj__lastResponseTime = dict.fromkeys(self.otherNodes, now())
    _shipped_tick(self)


def _tick_unflushed(self: Leading) -> None:
    """A leader counts, and says that it is committed, what it has not synced."""
    flush, self.journal.flush = self.journal.flush, _nothing  # type: ignore[method-assign]
    try:
        _shipped_tick(self)
    finally:
        self.journal.flush = flush  # type: ignore[method-assign]


_shipped_tick = Leading.tick


def _conclude_any_term(_: Member, index: int, waiting: list[Any]) -> None:
    for each in waiting:
        each.done(index)


def _forget_votes(self: Journal, term: int, voted_for: str | None) -> None:
    """In memory only."""
    from dataclasses import replace

    self._hard.stored = replace(self._hard.stored, term=term, voted_for=voted_for)


def _round_before(self: Member, done: Any, witness: str | None = None) -> None:
    self.core.round -= 1
    try:
        _shipped_read(self, done, witness)
    finally:
        self.core.round += 1


_shipped_read = Member._read


def _nothing(*_: object) -> None:
    return None


def _is_leader(core: Core) -> bool:
    return core.is_leader


GUARDS: dict[str, tuple[_Patch, ...]] = {
    "only a conflict truncates": ((Following, "_take", _take_as_stock),),
    "commit rises to what was compared": ((Following, "_take", _take_commit_unseen),),
    "entries are compared": ((Following, "_take", _take_uncompared),),
    "acknowledgements of other terms are dropped": ((Leading, "on_next_node_idx", _ack_of_any_term),),
    "old resets do nothing": ((Leading, "on_next_node_idx", _ack_always_resets),),
    "acknowledgements resend nothing": ((Leading, "on_next_node_idx", _ack_that_resends),),
    "a voter counts once": ((Voting, "on_response_vote", _count_votes),),
    "votes of older terms do not count": ((Voting, "on_response_vote", _count_old_votes),),
    "leaders of older terms are refused": ((Following, "on_append_entries", _append_of_any_term),),
    "synced before acknowledged": ((Following, "acknowledge", _acknowledge_at_once),),
    "no acknowledgement from an older term": ((Following, "acknowledge", _acknowledge_old_terms),),
    "synced before committed": ((Following, "acknowledge", _commit_unflushed),),
    "forgotten entries are not committed": ((Following, "acknowledge", _acknowledge_and_keep),),
    "synced before a leader counts itself": (
        (Member, "step", _step_counting_first),
        (Leading, "tick", _tick_unflushed),
        (Journal, "setRaftCommitIndex", _nothing),
    ),
    "term and vote are kept": ((Journal, "setCurrentTerm", _forget_votes),),
    "pre-vote": ((Voting, "_SyncObj__connectedToAnyone", lambda _: True),),
    "no pre-vote while a leader is heard": ((Voting, "on_pre_vote", _grant_while_led),),
    "no vote while a leader is heard": ((Voting, "on_request_vote", _vote_while_led),),
    "neither while a leader is heard": ((Guarded, "hears_a_leader", property(lambda _: False)),),
    "a leader without majority steps down": ((Leading, "tick", _tick_for_ever),),
    "a leader with a full disk steps down": ((Member, "_run_full", _nothing),),
    "reads wait for an entry of the term": ((Leading, "may_read", property(_is_leader)),),
    "reads wait for a round": ((Leading, "is_proved", lambda *_: True),),
    "the round begins after the read": ((Member, "_read", _round_before),),
    "an answer counts in its term": ((Member, "_conclude", _conclude_any_term),),
    "pysyncobj: votes go to logs that are up to date": (
        (Voting, "on_request_vote", _vote_for_any_log),
        (Voting, "on_pre_vote", _grant_for_any_log),
    ),
    "only entries of the term are counted": ((Leading, "tick", _tick_counting_any_term),),
}


@contextmanager
def without(guard: str) -> Iterator[None]:
    """The shipped classes lack the guard. Raises KeyError for one that is not in GUARDS."""
    shipped = [(place, name, place.__dict__[name]) for place, name, _ in GUARDS[guard]]
    handlers: dict[str, Callable[..., None]] = dict(_HANDLERS)
    for place, name, patch in GUARDS[guard]:
        setattr(place, name, patch)
        for kind, handler in handlers.items():
            if handler.__name__ == name:
                _HANDLERS[kind] = patch  # type: ignore[assignment]
    try:
        yield
    finally:
        _HANDLERS.update(handlers)
        for place, name, original in shipped:
            setattr(place, name, original)
