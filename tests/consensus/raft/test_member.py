"""Proposals and reads of a member: handed to the leader, answered once, and never with more certainty than there is."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from consensus.errors import LogError, LogUnavailable
from consensus.raft import member as member_module
from consensus.raft.links import Message
from consensus.raft.member import ANSWER_SECONDS, MAX_INBOX
from tests.consensus.raft.rig import Rig, rigged


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """a leads and everybody knows it."""
    with rigged(tmp_path) as rig:
        rig.elect("a")
        rig.run(0.5)
        yield rig


def settled(rig: Rig, answers: list[int | LogError], seconds: float = ANSWER_SECONDS + 2) -> int | LogError:
    assert rig.run(seconds, lambda: bool(answers)), "no answer"
    (answer,) = answers
    return answer


def refused(rig: Rig, answers: list[int | LogError], match: str) -> None:
    answer = settled(rig, answers)
    assert isinstance(answer, LogUnavailable)
    assert match in str(answer)


def drop(rig: Rig, *kinds: str) -> None:
    rig.filter = lambda _, __, message: message["type"] not in kinds


def hold(rig: Rig, *kinds: str) -> list[Message]:
    """Fills with messages of these kinds instead of their receivers."""
    held: list[Message] = []

    def keep(_: str, __: str, message: Message) -> bool:
        if message["type"] in kinds:
            held.append(message)
        return message["type"] not in kinds

    rig.filter = keep
    return held


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_a_proposal_is_answered_with_its_index_wherever_it_is_made(rig: Rig, name: str) -> None:
    for text in (b"one", b"two"):
        index = settled(rig, rig.propose(name, text))
        assert isinstance(index, int)
        assert rig.commits[name][-1] >= index, "the commit is told before the answer"
        assert rig.log(name)[index][1] == text


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_read_index_covers_what_was_acknowledged_before(rig: Rig, name: str) -> None:
    index = settled(rig, rig.propose("c", b"x"))
    read = settled(rig, rig.read_index(name))
    assert isinstance(index, int)
    assert isinstance(read, int)
    assert read >= index


def test_who_asks_counts_among_those_who_confirm(rig: Rig) -> None:
    drop(rig, "append_entries")
    assert isinstance(settled(rig, rig.read_index("b"), seconds=0.1), int), "a question and its answer, and no round"
    asked = rig.read_index("a")
    assert not rig.run(0.3, lambda: bool(asked)), "who leads asks the others"


def test_who_asks_from_another_term_confirms_nothing(rig: Rig) -> None:
    held = hold(rig, "read_at", "append_entries")
    rig.members["a"].receive("b", {"type": "read", "term": rig.members["a"].core.term + 1, "request": 5})
    rig.run(0.2)
    assert "read_at" not in {message["type"] for message in held}


def test_of_five_the_one_who_asks_and_another_confirm(tmp_path: Path) -> None:
    with rigged(tmp_path, "abcde") as rig:
        rig.elect("a")
        rig.run(0.5)
        drop(rig, "append_entries")
        asked = rig.read_index("b")
        assert not rig.run(0.3, lambda: bool(asked)), "two of five"
        rig.filter = lambda _, receiver, message: message["type"] != "append_entries" or receiver == "c"
        assert isinstance(settled(rig, asked, seconds=0.3), int)


def test_without_a_leader_nothing_is_taken(tmp_path: Path) -> None:
    with rigged(tmp_path) as rig:
        assert isinstance(rig.propose("a", b"x")[0], LogUnavailable)
        assert isinstance(rig.read_index("a")[0], LogUnavailable)


def test_a_forward_that_gets_lost_is_answered_in_time(rig: Rig) -> None:
    drop(rig, "propose", "read")
    began = rig.now
    asked = rig.read_index("b")
    refused(rig, rig.propose("b", b"x"), "no answer in time")
    refused(rig, asked, "no answer in time")
    assert rig.now - began <= ANSWER_SECONDS + 0.1


def test_an_answer_that_gets_lost_leaves_the_outcome_open(rig: Rig) -> None:
    drop(rig, "proposed")
    refused(rig, rig.propose("b", b"x"), "no answer in time")
    assert [payload for _, payload in rig.log("b").values()] == [b"x"], "it happened all the same"


def test_an_answer_that_comes_behind_the_commit_is_still_right(rig: Rig) -> None:
    held = hold(rig, "proposed")
    answers = rig.propose("b", b"x")
    rig.run(1)
    assert answers == []
    (answer,) = held
    assert rig.commits["b"][-1] >= answer["index"]
    rig.members["b"].receive("a", answer)
    assert settled(rig, answers) == answer["index"]


def test_an_entry_that_another_one_took_the_place_of_is_not_acknowledged(rig: Rig) -> None:
    rig.isolate("a")
    own = rig.propose("a", b"lost")
    rig.members["a"].step()
    rig.run(0.1)
    rig.members["b"].core._SyncObj__raftElectionDeadline = 0
    assert rig.run(10, lambda: rig.leader is not rig.members["a"] and rig.leader is not None)
    leader = next(name for name in "bc" if rig.members[name] is rig.leader)
    rig.propose(leader, b"kept")
    rig.heal()
    refused(rig, own, "")
    rig.run(2)
    assert [payload for _, payload in rig.log("a").values()] == [b"kept"]


def test_a_leader_that_cannot_prove_it_answers_no_read(rig: Rig) -> None:
    rig.isolate("a")
    refused(rig, rig.read_index("a"), "does not lead any more")


def test_a_change_of_leader_ends_what_was_handed_to_the_old_one(rig: Rig) -> None:
    drop(rig, "propose", "read")
    proposed, asked = rig.propose("b", b"x"), rig.read_index("b")
    assert rig.members["a"].core.transfer("c")
    refused(rig, proposed, "the leader has changed")
    refused(rig, asked, "the leader has changed")


def test_who_does_not_lead_says_so(rig: Rig) -> None:
    """b thinks that c leads."""
    rig.filter = lambda sender, receiver, message: (sender, receiver) != ("a", "b")
    rig.members["b"].core._SyncObj__raftLeader = next(
        node for node in rig.members["b"].core.otherNodes if node.id == "c"
    )
    proposed, asked = rig.propose("b", b"x"), rig.read_index("b")
    refused(rig, proposed, "c does not lead any more")
    refused(rig, asked, "c does not lead any more")


def test_a_leader_that_cannot_be_reached_is_said_at_once(rig: Rig) -> None:
    rig.members["b"].core.send = lambda *_: False
    for answers in (rig.propose("b", b"x"), rig.read_index("b")):
        assert "cannot be reached" in str(answers[0])


def test_a_read_waits_for_an_entry_of_the_leaders_own_term(tmp_path: Path) -> None:
    with rigged(tmp_path) as rig:
        drop(rig, "next_node_idx")
        core = rig.members["a"].core
        core._SyncObj__raftElectionDeadline = 0
        assert rig.run(1, lambda: core.is_leader)
        answers = rig.read_index("a")
        rig.run(0.1)
        assert answers == []
        rig.filter = lambda *_: True
        assert settled(rig, answers) == core.journal.last


def test_answers_of_others_than_the_leader_that_was_asked_do_not_count(rig: Rig) -> None:
    held = hold(rig, "proposed", "read_at")
    proposed, asked = rig.propose("b", b"x"), rig.read_index("b")
    rig.run(1)
    for message in held:
        rig.members["b"].receive("c", message)
    rig.run(0.2)
    assert proposed == asked == []
    for message in held:
        rig.members["b"].receive("a", message)
        rig.members["b"].receive("a", message)
    assert isinstance(settled(rig, proposed), int)
    assert isinstance(settled(rig, asked), int)


@pytest.mark.parametrize("kind", ["proposed", "read_at"])
@pytest.mark.parametrize("damage", [{"index": None}, {"index": "x"}, {}], ids=repr)
def test_an_answer_that_makes_no_sense_keeps_nobody_waiting_for_ever(rig: Rig, kind: str, damage: Message) -> None:
    def spoil(_: str, __: str, message: Message) -> bool:
        if message["type"] == kind:
            message.pop("index")
            message.update(damage)
        return True

    rig.filter = spoil
    refused(rig, rig.propose("b", b"x") if kind == "proposed" else rig.read_index("b"), "no answer in time")


@pytest.mark.parametrize(
    "message",
    [
        {"type": "propose"},
        {"type": "propose", "request": 1, "payload": "text"},
        {"type": "propose", "request": 1, "payload": bytes(17 * 1024 * 1024)},
        {"type": "propose", "request": "x", "payload": b"x"},
        {"type": "proposed"},
        {"type": "proposed", "request": (), "term": 1, "index": 1},
        {"type": "proposed", "request": {}, "term": 1, "index": 1},
        {"type": "read"},
        {"type": "read", "request": None},
        {"type": "read_at", "request": 5},
    ],
    ids=lambda message: str(message)[:60],
)
def test_requests_that_make_no_sense_are_dropped(rig: Rig, message: Message) -> None:
    last = rig.members["a"].core.journal.last
    rig.members["a"].receive("b", message | {"term": 1})
    rig.run(0.2)
    assert rig.members["a"].core.journal.last == last
    assert isinstance(settled(rig, rig.propose("b", b"x")), int)


def test_what_is_under_way_is_bounded(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(member_module, "MAX_WAITING", 3)
    rig.isolate("a")
    answers = [rig.propose("a", b"%d" % number) for number in range(5)]
    assert [bool(answer) for answer in answers] == [False, False, False, True, True]
    assert "under way already" in str(answers[3][0])
    rig.run(ANSWER_SECONDS + 1)
    assert all(isinstance(answer[0], LogUnavailable) for answer in answers)
    rig.heal()
    rig.elect()
    assert rig.run(2, lambda: rig.members["a"].core.leader is not None)
    assert isinstance(settled(rig, rig.propose("a", b"again")), int), "room again"


def test_what_was_received_is_bounded(rig: Rig) -> None:
    member = rig.members["a"]
    for _ in range(MAX_INBOX + 5):
        member.receive("b", {"type": "unheard of", "term": 0})
    steps = 0
    while member.has_work:
        member.step()
        steps += 1
    assert steps == MAX_INBOX // 1000


def test_closing_answers_whoever_waits(rig: Rig) -> None:
    drop(rig, "propose", "read", "append_entries")
    waiting = [rig.propose("a", b"x"), rig.propose("b", b"y"), rig.read_index("b")]
    rig.members["a"].close()
    rig.members["b"].close()
    assert ["the log is closed" in str(answers[0]) for answers in waiting] == [True] * 3


def test_a_snapshot_in_the_place_of_an_entry_leaves_its_outcome_open(rig: Rig) -> None:
    answers = rig.propose("a", b"x")
    member = rig.members["a"]
    member.restart(member.core.journal.last, member.core.term)
    assert "snapshot" in str(answers[0])
    assert rig.commits["a"][-1] == member.core.journal.last


def test_links_come_and_go_in_order_with_messages(rig: Rig) -> None:
    member = rig.members["a"]
    rig.flying = []
    member.linked("b", False)
    member.step()
    member.core.broadcast()
    assert {receiver for _, receiver, _ in rig.flying} == {"c"}
    member.linked("b", True)
    member.step()
    rig.flying = []
    member.core.broadcast()
    assert {receiver for _, receiver, _ in rig.flying} == {"b", "c"}
