"""One member of the cluster as a machine without threads: proposals, read indexes and messages in, commits out.

A member that does not lead hands both to the one that does; the answer says at which index and term an entry was put,
and it counts once the entry committed there is of that term. Whatever stays unanswered is LogUnavailable: the entry may
yet be committed. `step` does all the work; between two calls nothing moves but the queue of what was received.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

from consensus.errors import LogError, LogFull, LogUnavailable
from consensus.raft.core import Core
from consensus.raft.journal import REGULAR
from consensus.raft.links import Message
from consensus.raft.pinned import now

ANSWER_SECONDS = 5.0
MAX_INBOX = 10_000
MAX_WAITING = 65_536

_MOST_AT_ONCE = 1000
_logger = logging.getLogger(__name__)

Done = Callable[[int | LogError], None]


@dataclass(slots=True)
class _Waiting:
    done: Done
    deadline: float
    term: int = 0  # of the entry
    leader: str | None = None  # that it was handed to


@dataclass(slots=True)
class _Read:
    done: Done
    deadline: float
    round: int = 0
    index: int | None = None  # None until the leader knows what was committed before its term
    witness: str | None = None  # who asks: that is as good as an answer to the round


class Member:
    """`on_commit` is told each new commit index. Belongs to one thread, but for `receive` and `linked`."""

    def __init__(self, core: Core, on_commit: Callable[[int], None], *, first_request: int) -> None:
        self.core = core
        self._on_commit = on_commit
        self._inbox: deque[tuple[str, Message | bool]] = deque()
        self._entries: dict[int, list[_Waiting]] = {}  # by the index of the entry
        self._forwarded: dict[int, _Waiting] = {}  # by request
        self._asked: dict[int, _Waiting] = {}  # for a read index, by request
        self._reads: list[_Read] = []
        self._request = first_request
        self._commit = core.commit
        self._waiting = 0
        self._grown = False
        self._asked_leader = core.leader
        self._due_at = math.inf  # nobody waits longer than until then, or it is looked at who does

    # From any thread

    def receive(self, peer: str, message: Message) -> None:
        """Takes a message for the next step; dropped while MAX_INBOX wait."""
        if len(self._inbox) < MAX_INBOX:
            self._inbox.append((peer, message))

    def linked(self, peer: str, up: bool) -> None:
        """Takes it for the next step, in order with the messages."""
        self._inbox.append((peer, up))

    # From the member's thread

    @property
    def has_work(self) -> bool:
        """Whether the next step should not wait."""
        return bool(self._inbox) or self._grown or self._waits_for_a_round

    @property
    def under_way(self) -> bool:
        """Whether there are entries that are not known to be committed."""
        return self.core.journal.last > self.core.commit

    def propose(self, payload: bytes, done: Done) -> None:
        """`done` gets the index once the entry is committed, or LogUnavailable."""
        core = self.core
        if self._waiting >= MAX_WAITING:
            done(LogUnavailable(f"{MAX_WAITING} entries are under way already"))
        elif core.is_leader:
            self._put(payload, _Waiting(self._counted(done), self._deadline()))
        elif core.leader is None:
            done(LogUnavailable("no leader is known"))
        else:
            waiting = _Waiting(self._counted(done), self._deadline(), leader=core.leader)
            message = {"type": "propose", "payload": payload}
            self._hand_over(waiting, message, self._forwarded)

    def read_index(self, done: Done) -> None:
        """`done` gets an index at least that of every entry acknowledged anywhere before, or LogUnavailable."""
        core = self.core
        if core.is_leader:
            self._read(done)
        elif core.leader is None:
            done(LogUnavailable("no leader is known"))
        else:
            waiting = _Waiting(done, self._deadline(), leader=core.leader)
            self._hand_over(waiting, {"type": "read"}, self._asked)

    def step(self) -> None:
        """Everything that is due. Raises LogUnavailable when the journal has failed for good, LogCorrupt."""
        try:
            self._take_messages()
            self.core.acknowledge()
            if self._grown or self._waits_for_a_round:
                self._grown = False
                self.core.broadcast()
            self.core.tick()
        except LogFull as error:
            self._run_full(error)
        self._settle()

    def restart(self, base: int, term: int) -> None:
        """See Following; whoever waits for an entry that the snapshot holds gets LogUnavailable, and asks again."""
        self.core.restart(base, term)
        for index in [index for index in self._entries if index <= base]:
            for waiting in self._entries.pop(index):
                waiting.done(LogUnavailable("a snapshot has taken the place of the entry"))
        self._commit = max(self._commit, base)
        self._on_commit(self._commit)

    def close(self) -> None:
        """Whoever waits gets LogUnavailable."""
        self._expire(lambda _: True, "the log is closed")

    # Proposals

    def _put(self, payload: bytes, waiting: _Waiting) -> int:
        index, waiting.term = self.core.add(REGULAR + payload)
        self._entries.setdefault(index, []).append(waiting)
        self._grown = True
        return index

    def _deadline(self) -> float:
        deadline = now() + ANSWER_SECONDS
        self._due_at = min(self._due_at, deadline)
        return deadline

    def _counted(self, done: Done) -> Done:
        self._waiting += 1

        def counted(result: int | LogError) -> None:
            self._waiting -= 1
            done(result)

        return counted

    def _hand_over(self, waiting: _Waiting, message: Message, pending: dict[int, _Waiting]) -> None:
        self._request += 1
        assert waiting.leader is not None
        if self.core.send(waiting.leader, message | {"term": self.core.term, "request": self._request}):
            pending[self._request] = waiting
        else:
            waiting.done(LogUnavailable(f"the leader, {waiting.leader}, cannot be reached"))

    def _read(self, done: Done, witness: str | None = None) -> None:
        core = self.core
        read = _Read(done, now() + ANSWER_SECONDS, core.round + 1, witness=witness)
        if not core.may_read:
            read.round = core.round
        elif core.is_proved(read.round, witness):  # of three members, two are of one mind
            done(core.commit)
            return
        else:
            read.index = core.commit
        self._reads.append(read)

    @property
    def _waits_for_a_round(self) -> bool:
        """Whether a read came since the last one began: it shares the next, and no acknowledgement begins another."""
        return bool(self._reads) and self._reads[-1].round > self.core.round

    # Messages

    def _take_messages(self) -> None:
        for _ in range(min(len(self._inbox), _MOST_AT_ONCE)):
            peer, message = self._inbox.popleft()
            if isinstance(message, bool):
                self.core.linked(peer, message)
                continue
            handler = _HANDLERS.get(str(message.get("type")))
            if handler is None:
                self.core.receive(peer, message)
                continue
            try:
                handler(self, peer, message)
            except (KeyError, TypeError, ValueError) as error:
                _logger.warning("raft_message_dropped", extra={"peer": peer, "reason": repr(error)})

    def _on_propose(self, peer: str, message: Message) -> None:
        request, payload = int(message["request"]), message["payload"]
        answer: Message = {"type": "proposed", "term": self.core.term, "request": request, "index": 0}
        if type(payload) is not bytes:
            raise ValueError("no payload")
        if self.core.is_leader and self._waiting < MAX_WAITING:
            answer["index"], answer["term"] = self.core.add(REGULAR + payload)
            self._grown = True
        self.core.send(peer, answer)

    def _on_proposed(self, peer: str, message: Message) -> None:
        waiting = self._forwarded.get(message["request"])
        if waiting is None or waiting.leader != peer:
            return
        waiting.term, index = int(message["term"]), int(message["index"])
        del self._forwarded[message["request"]]
        if index <= 0:
            waiting.done(LogUnavailable(f"{peer} does not lead any more"))
        elif index > self._commit:
            self._entries.setdefault(index, []).append(waiting)
        else:
            self._conclude(index, [waiting])

    def _on_read(self, peer: str, message: Message) -> None:
        request = int(message["request"])

        def done(result: int | LogError) -> None:
            index = result if isinstance(result, int) else 0
            self.core.send(peer, {"type": "read_at", "term": self.core.term, "request": request, "index": index})

        if self.core.is_leader and len(self._reads) < MAX_WAITING:
            self._read(done, peer if message["term"] == self.core.term else None)
        else:
            done(LogUnavailable("not the leader"))

    def _on_read_at(self, peer: str, message: Message) -> None:
        waiting = self._asked.get(message["request"])
        if waiting is None or waiting.leader != peer:
            return
        index = int(message["index"])
        del self._asked[message["request"]]
        waiting.done(index if index > 0 else LogUnavailable(f"{peer} does not lead any more"))

    # Answers

    def _settle(self) -> None:
        commit = self.core.commit
        if commit > self._commit:
            due = range(self._commit + 1, commit + 1)
            self._commit = commit
            if self.core.is_leader:
                self.core.broadcast()
            self._on_commit(commit)  # first: an answer must not overtake the commit it is about
            for index in due:
                if waiting := self._entries.pop(index, None):
                    self._conclude(index, waiting)
        self._settle_reads()
        self._give_up()

    def _give_up(self) -> None:
        """Those that nobody will answer. It looks at everyone who waits, and so not in every step."""
        leader, at = self.core.leader, now()
        if leader != self._asked_leader:
            self._asked_leader = leader
            self._expire(
                lambda waiting: waiting.leader not in {None, leader} and not waiting.term, "the leader has changed"
            )
        if at >= self._due_at:
            self._expire(lambda waiting: waiting.deadline <= at, "no answer in time")
            entries = (waiting for each in self._entries.values() for waiting in each)
            waits = chain(entries, self._forwarded.values(), self._asked.values())
            self._due_at = min((waiting.deadline for waiting in waits), default=math.inf)

    def _conclude(self, index: int, waiting: list[_Waiting]) -> None:
        term = self.core.journal.term(index)
        for each in waiting:
            lost = LogUnavailable("another leader's entry came in its place")
            each.done(index if each.term == term else lost)

    def _settle_reads(self) -> None:
        core, at = self.core, now()
        left: list[_Read] = []
        for read in self._reads:
            if not core.is_leader or read.deadline <= at:
                read.done(LogUnavailable("this member does not lead any more, or cannot prove it"))
                continue
            if read.index is None and core.may_read:
                read.round, read.index = core.round + 1, core.commit
            if read.index is not None and core.is_proved(read.round, read.witness):
                read.done(read.index)
            else:
                left.append(read)
        self._reads = left

    def _expire(self, due: Callable[[_Waiting], bool], reason: str) -> None:
        pending: tuple[dict[int, _Waiting], ...] = (self._forwarded, self._asked)
        for requests in pending:
            for request in [request for request, waiting in requests.items() if due(waiting)]:
                requests.pop(request).done(LogUnavailable(reason))
        for index in [index for index, waiting in self._entries.items() if any(map(due, waiting))]:
            for waiting in self._entries.pop(index):
                waiting.done(LogUnavailable(reason))

    def _run_full(self, error: LogFull) -> None:
        """Others may hold what was sent and could not be written here: this member leads no more in this term."""
        _logger.error("raft_disk_full", extra={"reason": str(error), "led": self.core.is_leader})
        self.core.step_down()


_HANDLERS: dict[str, Callable[[Member, str, Message], None]] = {
    "propose": Member._on_propose,
    "proposed": Member._on_proposed,
    "read": Member._on_read,
    "read_at": Member._on_read_at,
}
