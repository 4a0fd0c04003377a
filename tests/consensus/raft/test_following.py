"""A member as a follower: what it takes over, what it takes back, and what it says of it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from consensus.raft.journal import NO_OP, REGULAR
from consensus.raft.links import Message
from tests.consensus.raft.rig import Rig, rigged
from tests.consensus.wal_files import no_room


class Follower:
    """Member b of a, b, c; the test speaks for the others. Entry 1, of term 0, is there from the beginning."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.numbers = 0
        for name in "ac":
            rig.stop(name)

    def receive(self, *messages: Message, sender: str = "a") -> list[Message]:
        """All of them in one step; what it answers."""
        for message in messages:
            self.member.receive(sender, message)
        self.member.step()
        flying, self.rig.flying = self.rig.flying, []
        return [message for _, _, message in flying]

    def entries(self, before: tuple[int, int], *entries: tuple[str, int], commit: int = 1, term: int = 1) -> Message:
        """Text and term of each, behind entry `before` (index, term)."""
        self.numbers += 1
        sent = tuple(
            (REGULAR + text.encode(), before[0] + step, of_term)
            for step, (text, of_term) in enumerate(entries, start=1)
        )
        heading = {"type": "append_entries", "term": term, "commit_index": commit, "round": 1, "number": self.numbers}
        return heading | {"prevLogIdx": before[0], "prevLogTerm": before[1], "entries": sent}

    @property
    def member(self) -> Any:
        return self.rig.members["b"]

    @property
    def core(self) -> Any:
        return self.member.core

    @property
    def log(self) -> list[tuple[str, int]]:
        """Behind entry 1."""
        return [(command[1:].decode(), term) for command, _, term in self.core.journal.range(2, 1000)]


@pytest.fixture
def follower(tmp_path: Path) -> Iterator[Follower]:
    with rigged(tmp_path) as rig:
        yield Follower(rig)


def test_it_takes_entries_and_says_so_once_they_are_synced(follower: Follower) -> None:
    synced: list[int] = []

    def look(*_: object) -> bool:
        synced.append(follower.core.journal.wal.commit)
        return True

    follower.rig.filter = look
    first, second = follower.receive(
        follower.entries((1, 0), ("x", 1), ("y", 1)), follower.entries((3, 1), ("z", 1), commit=2)
    )
    assert (first["next_node_idx"], first["success"], first["number"]) == (4, True, 1)
    assert (second["next_node_idx"], second["success"], second["term"]) == (5, True, 1)
    assert synced == [4, 4], "one sync for both"
    assert follower.log == [("x", 1), ("y", 1), ("z", 1)]
    assert follower.core.commit == 2


def test_an_old_range_changes_nothing(follower: Follower) -> None:
    old = follower.entries((1, 0), ("x", 1))
    follower.receive(old, follower.entries((2, 1), ("y", 1)))
    (answer,) = follower.receive(old)
    assert (answer["next_node_idx"], answer["success"]) == (3, True)
    assert follower.log == [("x", 1), ("y", 1)]


def test_a_conflict_takes_back_what_is_behind_it_durably(follower: Follower, tmp_path: Path) -> None:
    follower.receive(follower.entries((1, 0), ("x", 1), ("y", 1), ("z", 1)))
    (answer,) = follower.receive(follower.entries((2, 1), ("new", 2), term=2))
    assert (answer["next_node_idx"], answer["success"]) == (4, True)
    assert follower.log == [("x", 1), ("new", 2)]
    follower.rig.stop("b")
    follower.rig.start("b")
    assert follower.log == [("x", 1), ("new", 2)]


def test_a_conflict_with_what_is_not_synced_yet(follower: Follower) -> None:
    answers = follower.receive(
        follower.entries((1, 0), ("x", 1), ("y", 1)),
        follower.entries((1, 0), ("new", 2), ("newer", 2), term=2),
    )
    assert [answer["term"] for answer in answers] == [2], "the acknowledgement of x and y would be a lie"
    assert follower.log == [("new", 2), ("newer", 2)]


def test_nothing_committed_is_taken_back(follower: Follower) -> None:
    follower.receive(follower.entries((1, 0), ("x", 1), ("y", 1), commit=3))
    assert follower.core.commit == 3
    follower.receive(follower.entries((1, 0), ("other", 2), ("other", 2), ("z", 2), term=2))
    assert follower.log == [("x", 1), ("y", 1), ("z", 2)]


def test_commit_rises_to_what_was_compared_only(follower: Follower) -> None:
    follower.receive(follower.entries((1, 0), ("x", 1), ("y", 1), ("z", 1)))
    follower.receive(follower.entries((2, 1), commit=4, term=2))
    assert follower.core.commit == 2, "y and z may be of a dead leader"
    follower.receive(follower.entries((2, 1), ("new", 2), commit=4, term=2))
    assert follower.core.commit == 3
    assert follower.log == [("x", 1), ("new", 2)]


def test_a_gap_is_answered_with_where_to_begin(follower: Follower) -> None:
    (answer,) = follower.receive(follower.entries((9, 1), ("x", 1)))
    assert (answer["reset"], answer["success"], answer["next_node_idx"]) == (True, False, 2)
    follower.receive(follower.entries((1, 0), ("x", 1), ("y", 2), ("z", 2), commit=2, term=2))
    (answer,) = follower.receive(follower.entries((4, 3), term=3))
    assert (answer["reset"], answer["next_node_idx"]) == (True, 3), "the first entry of the term that does not match"
    (answer,) = follower.receive(follower.entries((3, 3), term=3))
    assert answer["next_node_idx"] == 3
    follower.receive(follower.entries((4, 2), commit=3, term=3))
    (answer,) = follower.receive(follower.entries((4, 3), term=3))
    assert answer["next_node_idx"] == 4, "never what is committed"


def test_an_older_leader_is_told_so(follower: Follower) -> None:
    follower.receive(follower.entries((1, 0), ("x", 2), term=2))
    assert follower.receive(follower.entries((1, 0), ("old", 1)), sender="c") == [{"type": "stale", "term": 2}]
    assert follower.log == [("x", 2)]
    assert follower.core.leader == "a"


@pytest.mark.parametrize(
    "entries",
    [
        ((REGULAR + b"x", 3, 1),),
        ((REGULAR + b"x", 2, 1), (REGULAR + b"y", 4, 1)),
        (("x", 2, 1),),
        ((b"\x02x", 2, 1),),
        ((b"", 2, 1),),
        ((NO_OP + b"x", 2, 1),),
        ((REGULAR + b"x", 2, True),),
        ((REGULAR + b"x", 2.0, 1),),
        ((REGULAR + b"x", 2),),
        (7,),
        7,
        None,
    ],
    ids=repr,
)
def test_entries_that_make_no_sense_are_dropped(follower: Follower, entries: object) -> None:
    assert follower.receive(follower.entries((1, 0)) | {"entries": entries}) == []
    assert follower.log == []
    (answer,) = follower.receive(follower.entries((1, 0), ("x", 1)))
    assert answer["success"]


def test_an_acknowledgement_of_an_older_term_is_kept_back(follower: Follower) -> None:
    vote = {"type": "request_vote", "term": 2, "last_log_index": 9, "last_log_term": 1, "transfer": True}
    answers = follower.receive(follower.entries((1, 0), ("x", 1)), vote)
    assert [answer["type"] for answer in answers] == ["response_vote"]


def test_what_could_not_be_written_is_neither_acknowledged_nor_committed_later(follower: Follower) -> None:
    """The commit index had come with the entries: it must not outlive them."""
    follower.receive(follower.entries((1, 0)))
    with no_room():
        assert follower.receive(follower.entries((1, 0), ("x", 1), ("y", 1), commit=3)) == []
    assert follower.log == []
    (answer,) = follower.receive(follower.entries((3, 1), commit=3))
    assert (answer["reset"], answer["next_node_idx"]) == (True, 2)
    assert follower.core.commit == 1
    assert follower.rig.commits["b"] == []
    follower.receive(follower.entries((1, 0), ("x", 1), ("y", 1), commit=3))
    assert follower.core.commit == 3
    assert follower.rig.commits["b"] == [3]


def test_a_leader_without_its_entries_learns_how_far_it_agrees_for_certain(follower: Follower) -> None:
    """Its newest entries may be more than that leader has: it could not make sense of them."""
    follower.receive(follower.entries((1, 0), ("x", 1), ("y", 1), ("z", 1), commit=2))
    heading = {"type": "append_entries", "term": 2, "commit_index": 90, "first": 80, "round": 1, "number": 9}
    (answer,) = follower.receive(heading, sender="c")
    assert follower.core.snapshot_from == "c"
    assert (answer["success"], answer["reset"], answer["next_node_idx"]) == (False, True, 3)
    assert follower.core.commit == 2
    follower.receive(follower.entries((2, 1), ("new", 2), term=2), sender="c")
    assert follower.core.snapshot_from is None


def test_what_was_on_its_way_while_a_snapshot_came_in_force_asks_for_no_other(follower: Follower) -> None:
    heading = {"type": "append_entries", "term": 1, "commit_index": 90, "first": 30, "round": 1, "number": 9}
    follower.receive(heading)
    assert follower.core.snapshot_from == "a"
    follower.member.restart(30, 1)
    (answer,) = follower.receive(heading | {"number": 10})
    assert follower.core.snapshot_from is None, "entry 31 is still there"
    assert (answer["success"], answer["reset"], answer["next_node_idx"]) == (False, True, 31)
    follower.receive(heading | {"first": 31, "number": 11})
    assert follower.core.snapshot_from == "a"


def test_a_snapshot_in_force_takes_the_place_of_a_log_that_differs(follower: Follower) -> None:
    follower.receive(follower.entries((1, 0), ("x", 1), ("y", 1)))
    follower.member.restart(2, 1)
    assert follower.log == [("x", 1), ("y", 1)], "it agrees with the snapshot"
    assert follower.core.commit == 2
    follower.member.restart(30, 4)
    assert (follower.core.journal.first, follower.core.journal.last, follower.core.commit) == (30, 30, 30)
    (answer,) = follower.receive(follower.entries((30, 4), ("z", 4), commit=31, term=4))
    assert answer["success"]
    assert follower.rig.commits["b"] == [2, 30, 31]
