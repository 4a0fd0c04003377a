"""The promises of the replicated log, checked on what was observed, in its order. No I/O, no clock: the same
observations end in the same verdict."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from chaos.simulation.watched import Place
from consensus.commands import Outcome, Status
from consensus.raft.journal import RaftEntry
from consensus.raft.links import Message


class Broken(Exception):
    """A promise was not kept."""

    def __init__(self, promise: str, detail: str) -> None:
        super().__init__(f"{promise}: {detail}")
        self.promise = promise
        self.detail = detail


@dataclass(frozen=True, slots=True)
class _Committed:
    command: bytes
    term: int  # of the entry
    seen_in: int  # the term of the member that said so first


@dataclass(slots=True)
class _Promise:
    """What a member has said that it holds: an entry, acknowledged or committed in some term."""

    index: int
    entry_term: int
    said_in: int


class Judge:
    """Raises Broken at the observation that breaks a promise."""

    def __init__(self, names: str) -> None:
        self._names = names
        self.committed: dict[int, _Committed] = {}
        self.highest = 0  # committed
        self.acknowledged: dict[bytes, int] = {}
        self.floor = 0  # the highest index acknowledged
        self.leaders: dict[int, str] = {}
        self._entries: dict[tuple[int, int], tuple[int | None, bytes]] = {}
        self._votes: dict[tuple[str, int], str] = {}
        self._terms: dict[str, int] = {}
        self._promises: dict[str, _Promise] = {}
        self._applied: dict[tuple[int, int], int] = {}
        self._under_way: dict[tuple[str, str], tuple[int, int]] = {}  # to a member: term, highest index sent

    def sent(self, member: str, receiver: str, message: Message, term_of: dict[int, int]) -> None:
        """A message left; `term_of` has the term of the entry that it says is held by the member, if it does."""
        kind, term = message["type"], message["term"]
        if kind == "response_vote":
            self._vote(member, term, receiver)
        elif kind == "request_vote":
            self._vote(member, term, member)
        elif kind == "append_entries" and message.get("entries"):
            self._send(member, receiver, term, message["entries"])
        for index, entry_term in term_of.items():
            self._promise(member, _Promise(index, entry_term, term))
        if kind in {"request_vote", "pre_vote", "append_entries"}:  # the others may speak of a term gone by
            self.in_term(member, term)

    def agrees(self, member: str, index: int, term: int, expected: int | None) -> None:
        """A member acknowledged entry `index`, where it has one of `term`, to a leader that has one of `expected` there
        (None: it does not lead any more)."""
        if expected is not None and term != expected:
            raise Broken(
                "an acknowledgement is true", f"{member} acknowledged {index} of term {expected}, and has {term} there"
            )

    def asks_again(self, member: str, leader: str) -> None:
        """It told a leader that it lacks something."""
        self._under_way.pop((leader, member), None)

    def votes(self, member: str, seconds: float, patience: float) -> None:
        """A member gave a vote or promised one, not to hand leadership over, `seconds` after it heard a leader."""
        if seconds < patience:
            raise Broken("who hears a leader does not vote", f"{member} heard one {seconds:.3f} s ago")

    def in_term(self, member: str, term: int) -> None:
        """The member said or showed that it is in that term."""
        if term < self._terms.get(member, 0):
            raise Broken("terms never go back", f"{member} was in term {self._terms[member]}, now in {term}")
        self._terms[member] = term

    def leads(self, member: str, term: int, log: dict[int, int | None]) -> None:
        """A member leads; `log` is the term of its entry at each index it should have."""
        holder = self.leaders.setdefault(term, member)
        if holder != member:
            raise Broken("one leader a term", f"{holder} and {member} lead term {term}")
        voters = {member, *(name for name in self._names if self._votes.get((name, term)) == member)}
        if 2 * len(voters) <= len(self._names):
            raise Broken("a majority votes for a leader", f"{sorted(voters)} made {member} lead term {term}")
        for index, entry_term in log.items():
            known = self.committed[index]
            if known.seen_in < term and entry_term != known.term:
                raise Broken(
                    "leaders are complete",
                    f"{member} leads term {term} with {entry_term} at {index}, committed in {known.seen_in} was "
                    f"{known.term}",
                )

    def holds(self, member: str, entries: Iterable[RaftEntry], before_term: int | None) -> None:
        """New entries of a member's log, in order, and the term of the one before them (None if it is not kept)."""
        for command, index, term in entries:
            known = self._entries.get((index, term))
            if known is None:
                self._entries[index, term] = (before_term, command)
            elif known[1] != command or (None not in {known[0], before_term} and known[0] != before_term):
                raise Broken("logs match", f"{member} has another entry {index} of term {term} than was seen before")
            before_term = term

    def cut(self, member: str, last: int, term: int) -> None:
        """A running member, in that term, took back what is behind entry `last`."""
        promise = self._promises.get(member)
        if promise and promise.index > last:
            if promise.said_in >= term:
                raise Broken(
                    "what is acknowledged stays",
                    f"{member} cut its log behind {last} in term {term}, having acknowledged {promise.index}",
                )
            promise.index, promise.entry_term = last, -1

    def recovers(self, member: str, found: set[Place], possible: set[Place]) -> set[Place]:
        """A process found these entries on its disk. From now on only they are possible: returns them."""
        if risen := found - possible:
            raise Broken("what is gone stays away", f"{member} starts with {sorted(risen)[0]}, which it had no more")
        return found

    def restarted(self, member: str, first: int, last: int, term_of: dict[int, int | None]) -> None:
        """A member began again with the entries from `first` to `last`; `term_of` has that of what it promised."""
        promise = self._promises.get(member)
        if promise is None:
            return
        if promise.index > last:
            raise Broken(
                "what is acknowledged is durable",
                f"{member} acknowledged entry {promise.index} in term {promise.said_in}, and starts with {last}",
            )
        found = term_of.get(promise.index)
        if promise.index >= first and promise.entry_term >= 0 and found != promise.entry_term:
            raise Broken(
                "what is acknowledged is durable",
                f"{member} acknowledged entry {promise.index} of term {promise.entry_term}, and has {found} there",
            )

    def promised(self, member: str) -> int:
        """The highest index that it said it holds."""
        promise = self._promises.get(member)
        return promise.index if promise else 0

    def commits(self, member: str, term: int, entries: list[RaftEntry], holders: str) -> None:
        """A member, in that term, holds these for committed; `holders` are the members that hold the last of them."""
        if entries and entries[-1][1] > self.highest and 2 * len(holders) <= len(self._names):
            raise Broken("a majority holds what is committed", f"{member} commits {entries[-1][1]}, on {holders} only")
        for command, index, entry_term in entries:
            known = self.committed.get(index)
            if known is None:
                self.committed[index] = _Committed(command, entry_term, term)
                self.highest = max(self.highest, index)
            elif (known.command, known.term) != (command, entry_term):
                raise Broken(
                    "one entry an index",
                    f"{member} committed {entry_term} at {index}, {known.term} was committed there",
                )
            self._promise(member, _Promise(index, entry_term, term))

    def acknowledges(self, member: str, payload: bytes, index: int) -> None:
        """A client was told that its proposal is entry `index`."""
        known = self.committed.get(index)
        if known is None or known.command[1:] != payload:
            found = f"{known.command[1:20]!r}" if known else "nothing"
            raise Broken("acknowledged is committed", f"{member} gave {payload[:19]!r} index {index}; there is {found}")
        self.acknowledged[payload] = index
        self.floor = max(self.floor, index)

    def reads(self, member: str, index: int, floor: int) -> None:
        """A read index was given to a client that began when `floor` was acknowledged."""
        if index < floor:
            raise Broken(
                "reads see what was acknowledged", f"{member} answered {index}, {floor} was acknowledged before"
            )

    def applied(self, member: str, request: tuple[int, int], index: int, outcome: Outcome) -> None:
        """The state of a member applied the entry at `index`, of that request."""
        if outcome.status is not Status.DONE or outcome.index != index or not request[0]:
            return
        first = self._applied.setdefault(request, index)
        if first != index:
            raise Broken("applied once", f"{member} applied request {request} at {first} and at {index}")

    def ends(self, logs: dict[str, dict[int, RaftEntry]], hashes: dict[str, tuple[int, str]]) -> None:
        """The cluster has settled: each member's committed entries, and (applied, hash) of each state."""
        for payload, index in self.acknowledged.items():
            for member, log in logs.items():
                if index >= min(log, default=0) and (index not in log or log[index][0][1:] != payload):
                    raise Broken("acknowledged is kept", f"{member} lacks {payload[:19]!r}, entry {index}")
        by_applied: dict[int, tuple[str, str]] = {}
        for member, (applied, found) in hashes.items():
            other, expected = by_applied.setdefault(applied, (member, found))
            if found != expected:
                raise Broken("states are equal", f"{member} and {other} differ at {applied}")

    def _send(self, leader: str, receiver: str, term: int, entries: list[RaftEntry]) -> None:
        known, upto = self._under_way.get((leader, receiver), (0, 0))
        if known == term and entries[0][1] <= upto:
            detail = f"{leader} sends {entries[0][1]} of {upto} to {receiver} again"
            raise Broken("nothing is sent again unasked", detail)
        self._under_way[leader, receiver] = term, entries[-1][1]

    def _vote(self, member: str, term: int, candidate: str) -> None:
        given = self._votes.setdefault((member, term), candidate)
        if given != candidate:
            raise Broken("one vote a term", f"{member} voted for {given} and {candidate} in term {term}")

    def _promise(self, member: str, promise: _Promise) -> None:
        known = self._promises.get(member)
        if known is None or promise.index >= known.index:
            self._promises[member] = promise
