"""Elections: who may stand, who may vote, and what a vote is worth."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from consensus.raft.hardstate import HardState
from consensus.raft.links import Message
from tests.consensus.raft.rig import TIMING, Rig, rigged

FAR = 10**9


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """Nobody stands for an election by itself."""
    with rigged(tmp_path) as rig:
        for member in rig.members.values():
            member.core._SyncObj__raftElectionDeadline = FAR
        yield rig


def tell(rig: Rig, name: str, message: Message, sender: str = "a") -> list[Message]:
    """What the member sends thereupon."""
    rig.members[name].receive(sender, message)
    rig.members[name].step()
    flying, rig.flying = rig.flying, []
    return [message for _, _, message in flying]


def question(kind: str, term: int, index: int = 1, last_term: int = 0, **more: object) -> Message:
    return {"type": kind, "term": term, "last_log_index": index, "last_log_term": last_term, **more}


def test_alone_it_elects_itself_at_once(tmp_path: Path) -> None:
    with rigged(tmp_path, "a") as rig:
        rig.step()
        assert rig.members["a"].core.is_leader
        assert rig.run(0.1, lambda: rig.members["a"].core.may_read)


def test_a_pre_vote_costs_no_term(rig: Rig) -> None:
    (answer,) = tell(rig, "b", question("pre_vote", 7))
    assert answer == {"type": "pre_vote_granted", "term": 7, "last_log_index": 1}
    assert rig.members["b"].core.term == 0


@pytest.mark.parametrize(("index", "last_term", "granted"), [(3, 1, True), (2, 1, False), (9, 0, False), (1, 2, True)])
def test_a_pre_vote_and_a_vote_go_to_logs_that_are_up_to_date(
    rig: Rig, index: int, last_term: int, granted: bool
) -> None:
    core = rig.members["b"].core
    for _ in range(2):
        core.journal.add(b"\x00x", core.journal.last + 1, 1)
    answers = tell(rig, "b", question("pre_vote", 5, index, last_term))
    assert [answer["type"] for answer in answers] == ["pre_vote_granted"] * granted
    answers = tell(rig, "b", question("request_vote", 5, index, last_term, transfer=False))
    assert [answer["type"] for answer in answers] == ["response_vote"] * granted
    assert core.term == 5


def test_who_asks_in_an_older_term_learns_the_newer_one(rig: Rig) -> None:
    tell(rig, "b", question("request_vote", 5, transfer=False))
    assert tell(rig, "b", question("pre_vote", 4), sender="c") == [{"type": "stale", "term": 5}]
    tell(rig, "a", {"type": "stale", "term": 5}, sender="b")
    assert rig.members["a"].core.term == 5
    tell(rig, "a", {"type": "stale", "term": 3}, sender="b")
    assert rig.members["a"].core.term == 5


def test_nobody_deserts_a_leader_that_is_heard(rig: Rig) -> None:
    rig.elect("a")
    term = rig.members["b"].core.term
    rig.run(0.3)
    rig.flying = []
    for kind in ("pre_vote", "request_vote"):
        for name in "ab":  # the leader, who hears itself, and a follower
            assert tell(rig, name, question(kind, term + 5, 99, 99, transfer=False), sender="c") == []
    assert rig.members["b"].core.term == term
    rig.now += TIMING.election_least + 0.1
    (answer,) = tell(rig, "b", question("pre_vote", term + 5, 99, 99), sender="c")
    assert answer["type"] == "pre_vote_granted"


def test_a_transfer_passes_the_loyalty_to_a_leader(rig: Rig) -> None:
    rig.elect("a")
    term = rig.members["b"].core.term
    rig.run(0.3)
    rig.flying = []
    answers = tell(rig, "b", question("request_vote", term + 1, 99, 99, transfer=True), sender="c")
    assert [answer["type"] for answer in answers] == ["response_vote"]


def test_only_the_leader_may_hand_over(rig: Rig) -> None:
    rig.elect("a")
    term = rig.members["b"].core.term
    rig.flying = []
    assert tell(rig, "b", {"type": "timeout_now", "term": term}, sender="c") == []
    answers = tell(rig, "b", {"type": "timeout_now", "term": term}, sender="a")
    assert {answer["type"] for answer in answers} == {"request_vote"}
    assert all(answer["transfer"] is True for answer in answers)


def test_one_vote_a_term_even_after_a_restart(rig: Rig) -> None:
    assert len(tell(rig, "b", question("request_vote", 5, transfer=False), sender="a")) == 1
    assert tell(rig, "b", question("request_vote", 5, transfer=False), sender="c") == []
    rig.stop("b")
    rig.start("b")
    rig.members["b"].core._SyncObj__raftElectionDeadline = FAR
    rig.flying = []
    assert tell(rig, "b", question("request_vote", 5, transfer=False), sender="c") == []
    assert len(tell(rig, "b", question("request_vote", 6, transfer=False), sender="c")) == 1


def test_a_vote_leaves_when_it_is_on_disk(rig: Rig) -> None:
    stored: list[tuple[int, str | None]] = []

    def look(sender: str, _: str, message: Message) -> bool:
        if message["type"] in {"response_vote", "request_vote"}:
            hard = HardState.open(rig.folder / sender).stored
            stored.append((hard.term, hard.voted_for))
        return True

    rig.filter = look
    tell(rig, "b", question("request_vote", 5, transfer=False), sender="a")
    assert stored == [(5, "a")]
    rig.elect("c")
    assert stored[1] == (6, "c")


def test_a_candidate_asks_before_it_raises_the_term(rig: Rig) -> None:
    core = rig.members["a"].core
    rig.isolate("a")
    core._SyncObj__raftElectionDeadline = 0
    rig.run(10)
    assert core.term == 0
    rig.heal()
    assert rig.run(3, lambda: core.is_leader)
    assert core.term == 1


def test_an_answer_to_another_question_is_no_pre_vote(rig: Rig) -> None:
    core = rig.members["a"].core
    core._SyncObj__raftElectionDeadline = 0
    asked = [message for message in tell(rig, "a", {"type": "nothing"}, "b") if message["type"] == "pre_vote"]
    assert len(asked) == 2
    for term, index in ((1, 1), (0, 9)):
        answers = tell(rig, "a", {"type": "pre_vote_granted", "term": term, "last_log_index": index}, sender="b")
        assert answers == []
    answers = tell(rig, "a", {"type": "pre_vote_granted", "term": 0, "last_log_index": 1}, sender="b")
    assert {answer["type"] for answer in answers} == {"request_vote"}
    assert all(answer["transfer"] is False for answer in answers)


def test_a_vote_of_another_term_is_none(rig: Rig) -> None:
    core = rig.members["a"].core
    core._SyncObj__raftElectionDeadline = 0
    tell(rig, "a", {"type": "nothing"}, "b")
    tell(rig, "a", {"type": "pre_vote_granted", "term": 0, "last_log_index": 1}, sender="b")
    assert core.term == 1
    for term in (0, 2):
        tell(rig, "a", {"type": "response_vote", "term": term}, sender="b")
    assert not core.is_leader
    tell(rig, "a", {"type": "response_vote", "term": 1}, sender="b")
    assert core.is_leader


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"type": "append_entries"},
        {"type": "unheard of", "term": 1},
        {"type": "append_entries", "term": 1},
        {"type": "append_entries", "term": "1"},
        {"type": "append_entries", "term": True},
        {"type": "append_entries", "term": -1},
        {"type": "append_entries", "term": 2**64},
        {"type": "pre_vote", "term": 1},
        {"type": "pre_vote", "term": 1, "last_log_term": None, "last_log_index": 3},
        {"type": "request_vote", "term": 1},
        {"type": "response_vote", "term": 10**18},
        {"type": "timeout_now", "term": 1},
        {"type": "status", "term": 1},
    ],
    ids=repr,
)
def test_messages_that_make_no_sense_are_dropped(rig: Rig, message: Message) -> None:
    core = rig.members["b"].core
    answers = [answer for answer in tell(rig, "b", message) if answer["type"] != "next_node_idx"]
    assert answers == []
    assert (core.commit, core.journal.last, core.is_leader) == (1, 1, False)
    rig.elect("a")


def test_a_stranger_is_not_heard(rig: Rig) -> None:
    assert tell(rig, "b", question("request_vote", 5, 99, 99, transfer=True), sender="z") == []
    assert rig.members["b"].core.term == 0
