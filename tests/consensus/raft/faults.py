"""The faults of stock pysyncobj 0.3.17 as scenarios: what members do and what the network does to them, in steps.

Each is played twice, on the stock release (`stock`, a process of its own) and on ours (`test_stock_faults`), and says
what came of it. The time stands still but for `Lab.wait`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

Flight = tuple[str, str, dict[str, Any]]  # sender, receiver, message
Found = dict[str, Any]

LARGE = 400 * 1024  # three of such entries fill a message
STEP_SECONDS = 0.05


class Lab:
    """Members a, b, c ... and the messages on their way, which stay there until a scenario moves them."""

    def __init__(self, names: str) -> None:
        self.names = list(names)
        self.now = 1000.0
        self.cut: set[str] = set()  # cut off from all others, while connections seem to stand
        self._flights: list[Flight] = []

    # What a member does

    def put(self, name: str, label: str, size: int = 0) -> None:
        """A client hands a command to a member that leads."""
        raise NotImplementedError

    def turn(self, name: str) -> None:
        """The member does what is due, a heartbeat in any case."""
        raise NotImplementedError

    def tick(self, name: str) -> None:
        """The member does what is due."""
        raise NotImplementedError

    def receive(self, name: str, sender: str, message: dict[str, Any]) -> None:
        """The member takes a message, and does what is due."""
        raise NotImplementedError

    def call_election(self, name: str) -> None:
        """The others have been silent for longer than it waits; it takes no turn yet."""
        raise NotImplementedError

    def stop(self, name: str) -> None:
        """It dies, with what it has sent."""
        self.names.remove(name)
        self.drop(self.flying(sender=name))
        self.drop(self.flying(receiver=name))

    # What is seen of it

    def leads(self, name: str) -> bool:
        raise NotImplementedError

    def term(self, name: str) -> int:
        raise NotImplementedError

    def acknowledged(self, name: str) -> list[str]:
        """The commands whose clients have been told that they are done."""
        raise NotImplementedError

    def applied(self, name: str) -> list[str]:
        """The commands it takes for committed, in order."""
        raise NotImplementedError

    # The network

    def send(self, sender: str, receiver: str, message: dict[str, Any]) -> bool:
        if receiver in self.names and not self.cut & {sender, receiver}:
            self._flights.append((sender, receiver, message))
        return True

    def flying(self, sender: str = "", receiver: str = "", kind: str = "") -> list[Flight]:
        """In the order in which they were sent."""
        return [
            flight
            for flight in self._flights
            if sender in {"", flight[0]} and receiver in {"", flight[1]} and kind in {"", flight[2]["type"]}
        ]

    def drop(self, flights: Iterable[Flight]) -> None:
        gone = {id(flight) for flight in flights}
        self._flights = [flight for flight in self._flights if id(flight) not in gone]

    def deliver(self, flights: Iterable[Flight]) -> None:
        """One after the other; they may have been dropped before, and be delivered late or twice."""
        for flight in list(flights):
            self.drop([flight])
            sender, receiver, message = flight
            if receiver in self.names:
                self.receive(receiver, sender, dict(message))

    def settle(self) -> None:
        """Everything arrives and is answered."""
        for _ in range(12):
            for name in list(self.names):
                self.turn(name)
            while self._flights:
                self.deliver(self.flying())

    def elect(self, name: str) -> None:
        """All but those cut off agree on it."""
        self.call_election(name)
        self.settle()
        assert self.leads(name), f"{name} was not elected"

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += STEP_SECONDS
            for name in list(self.names):
                self.tick(name)
            self.deliver(self.flying())


def truncated_by_a_stale_reset(lab: Lab) -> Found:
    """b lost the first of some messages and said so for each of the others. The second of these answers makes the
    leader send the same entries once more, while b's acknowledgements are already on their way."""
    lab.elect("a")
    lab.cut = {"c"}
    for number in range(6):
        lab.put("a", f"v{number}", LARGE)
        lab.turn("a")
    first, *others = lab.flying(receiver="b", kind="append_entries")
    lab.drop([first])
    lab.deliver(others)
    early, stale, *more = lab.flying(sender="b", kind="next_node_idx")
    lab.drop(more)
    lab.drop([stale])
    lab.deliver([early])
    lab.turn("a")
    lab.deliver(lab.flying(receiver="b"))
    acknowledgements = lab.flying(sender="b")
    lab.drop(acknowledgements)
    lab.deliver([stale])
    lab.turn("a")
    again = lab.flying(receiver="b")
    lab.deliver(acknowledgements)
    acknowledged = lab.acknowledged("a")
    lab.deliver(again[:1])
    lab.stop("a")
    lab.cut = set()
    lab.elect("b")
    return {"acknowledged": acknowledged, "kept": lab.applied("c")}


def an_old_range_sent_again(lab: Lab) -> Found:
    """The network delivers an old message to b a second time."""
    lab.elect("a")
    lab.cut = {"c"}
    lab.put("a", "first")
    lab.turn("a")
    old = lab.flying(receiver="b", kind="append_entries")
    lab.settle()
    lab.put("a", "second")
    lab.settle()
    acknowledged = lab.acknowledged("a")
    lab.deliver(old[:1])
    lab.stop("a")
    lab.cut = set()
    lab.elect("b")
    return {"acknowledged": acknowledged, "kept": lab.applied("c")}


def an_acknowledgement_of_an_older_term(lab: Lab) -> Found:
    """b acknowledged entries of term 1 and lost them to the leader of term 2. The leader of term 3 gets that
    acknowledgement when it has entries of its own there."""
    lab.elect("a")
    lab.cut = {"c", "d", "e"}
    for number in range(5):
        lab.put("a", f"old{number}")
    lab.turn("a")
    lab.deliver(lab.flying(receiver="b"))
    late = lab.flying(sender="b")
    lab.drop(lab.flying())
    lab.cut = {"a", "b"}
    lab.elect("c")
    lab.cut = set()
    lab.settle()
    lab.elect("a")
    lab.cut = {"b", "c", "e"}
    for number in range(5):  # so many that the acknowledgement is of an entry that is there
        lab.put("a", f"new{number}")
    lab.settle()
    lab.deliver(late)
    lab.settle()
    acknowledged = lab.acknowledged("a")
    lab.stop("a")
    lab.stop("d")
    lab.cut = set()
    lab.elect("c")
    return {"acknowledged": acknowledged, "kept": lab.applied("c")}


def a_vote_counted_twice(lab: Lab) -> Found:
    """The vote of one of five arrives twice."""
    lab.call_election("a")
    for _ in range(3):
        lab.turn("a")
        lab.deliver(lab.flying(kind="pre_vote"))
        lab.deliver(lab.flying(kind="pre_vote_granted"))
    lab.deliver(lab.flying(receiver="b", kind="request_vote"))
    (vote,) = lab.flying(sender="b", kind="response_vote")
    lab.deliver([vote])
    assert not lab.leads("a"), "with two votes of five"
    lab.deliver([vote])
    return {"elected": lab.leads("a")}


def committed_without_being_compared(lab: Lab) -> Found:
    """b holds entries of a dead leader that nobody else has. The new one has no snapshot ready yet for b, and says only
    how far its log is committed."""
    lab.elect("a")
    lab.cut = {"c"}
    for number in range(3):
        lab.put("a", f"old{number}")
    lab.turn("a")
    lab.deliver(lab.flying(receiver="b"))
    lab.drop(lab.flying())
    lab.receive(
        "b",
        "c",
        {"type": "append_entries", "term": 2, "commit_index": 5, "serialized": None, "first": 5}
        | {"round": 1, "number": 1},
    )
    lab.turn("b")
    return {"applied": lab.applied("b")}


def an_isolated_follower_comes_back(lab: Lab) -> Found:
    """For a few election timeouts it hears nobody."""
    lab.elect("a")
    lab.wait(1)
    before = lab.term("a")
    lab.cut = {"c"}
    lab.wait(8)
    assert lab.leads("a")
    lab.cut = set()
    led = True
    for _ in range(40):
        lab.wait(STEP_SECONDS)
        led &= lab.leads("a")
    return {"terms": max(map(lab.term, "abc")) - before, "leader stays": led}


def a_leader_is_cut_off(lab: Lab) -> Found:
    """The others elect another one."""
    lab.elect("a")
    lab.wait(1)
    lab.cut = {"a"}
    lab.wait(8)
    return {"leaders": [name for name in "abc" if lab.leads(name)]}


SCENARIOS: dict[str, tuple[str, Callable[[Lab], Found]]] = {
    scenario.__name__: (names, scenario)
    for names, scenario in (
        ("abc", truncated_by_a_stale_reset),
        ("abc", an_old_range_sent_again),
        ("abcde", an_acknowledgement_of_an_older_term),
        ("abcde", a_vote_counted_twice),
        ("abc", committed_without_being_compared),
        ("abc", an_isolated_follower_comes_back),
        ("abc", a_leader_is_cut_off),
    )
}
