"""A member as the leader: what it sends, what counts, and when it gives up."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from consensus.errors import LogUnavailable
from consensus.raft.core import Timing
from consensus.raft.journal import REGULAR
from consensus.raft.links import Message
from tests.consensus.raft.rig import TIMING, Rig, rigged
from tests.consensus.wal_files import no_room


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """a leads, everything has settled."""
    with rigged(tmp_path) as rig:
        rig.elect("a")
        rig.run(1)
        yield rig


def sent(rig: Rig, to: str, kind: str = "append_entries") -> list[Message]:
    """What is on its way there, and will not arrive."""
    found = [message for _, receiver, message in rig.flying if receiver == to and message["type"] == kind]
    rig.flying = [each for each in rig.flying if each[1] != to or each[2]["type"] != kind]
    return found


def test_it_reads_only_once_an_entry_of_its_own_term_is_committed(tmp_path: Path) -> None:
    with rigged(tmp_path) as rig:
        rig.filter = lambda _, __, message: message["type"] != "next_node_idx"
        core = rig.members["a"].core
        core._SyncObj__raftElectionDeadline = 0
        assert rig.run(1, lambda: core.is_leader)
        assert not core.may_read
        rig.filter = lambda *_: True
        assert rig.run(1, lambda: core.may_read)


def test_an_older_term_is_committed_only_with_an_entry_of_the_own(rig: Rig) -> None:
    """A majority holds an entry of term 1; that alone says nothing in term 2."""
    rig.filter = lambda _, __, message: message["type"] != "next_node_idx"
    rig.propose("a", b"x")
    rig.run(0.1)
    before = rig.members["b"].core.commit
    rig.stop("a")
    core = rig.members["b"].core
    core._SyncObj__raftElectionDeadline = 0
    rig.members["c"].core._SyncObj__raftElectionDeadline = 10**9
    rig.now += 2
    assert rig.run(1, lambda: core.is_leader)
    rig.run(0.2)
    index = core.journal.last - 1
    assert core.journal.term(index) == 1
    core.receive("c", acknowledgement(core.term, index + 1))
    core.tick()
    assert core.commit == before
    core.receive("c", acknowledgement(core.term, index + 2))
    core.tick()
    assert core.commit == index + 1


def test_its_own_copy_counts_only_once_it_is_on_disk(rig: Rig) -> None:
    core = rig.members["a"].core
    index, term = core.add(REGULAR + b"x")
    core.receive("b", acknowledgement(term, index + 1))
    core.tick()
    assert core.commit == core.journal.wal.commit == index


def acknowledgement(term: int, following: int, *, number: int = 0, round: int = 0, reset: bool = False) -> Message:  # noqa: A002
    return {
        "type": "next_node_idx",
        "term": term,
        "next_node_idx": following,
        "success": not reset,
        "reset": reset,
        "round": round,
        "number": number,
    }


def test_a_round_is_proved_by_a_majority_that_answered_it(rig: Rig) -> None:
    core = rig.members["a"].core
    rig.cut = {("a", "b"), ("a", "c")}
    core.broadcast()
    begun = core.round
    assert not core.is_proved(begun)
    core.receive("b", acknowledgement(core.term, 2, round=begun - 1))
    assert core.is_proved(begun - 1)
    assert not core.is_proved(begun)
    core.receive("b", acknowledgement(core.term - 1, 2, round=begun))
    assert not core.is_proved(begun), "of another term"
    core.receive("b", acknowledgement(core.term, 2, round=begun + 99))
    assert core.is_proved(begun)
    assert not core.is_proved(begun + 1)
    assert core.is_proved(begun + 1, "c"), "who has just said so"


@pytest.mark.parametrize("following", [0, -1, 10**6, "2", None])
def test_an_acknowledgement_of_what_is_not_there_is_dropped(rig: Rig, following: object) -> None:
    core = rig.members["a"].core
    before = (core.is_proved(core.round), core.commit)
    core.receive("b", acknowledgement(core.term, 2, round=core.round) | {"next_node_idx": following})
    assert (core.is_proved(core.round), core.commit) == before


def test_what_got_lost_is_sent_again_once(rig: Rig) -> None:
    core = rig.members["a"].core
    rig.propose("a", b"x" * 10)
    rig.members["a"].step()
    first, *_ = sent(rig, "b")
    start = first["prevLogIdx"] + 1
    rig.propose("a", b"y" * 10)
    rig.members["a"].step()
    (second, *_) = sent(rig, "b")
    lost = acknowledgement(core.term, start, number=second["number"], reset=True)
    core.receive("b", lost)
    core.broadcast()
    (again,) = sent(rig, "b")
    assert [index for _, index, _ in again["entries"]] == [start, start + 1]
    core.receive("b", lost)
    core.broadcast()
    (heartbeat,) = sent(rig, "b")
    assert heartbeat["entries"] == [], "that answer is older than what was sent again"
    core.receive("b", lost | {"number": again["number"] + 100})
    core.broadcast()
    assert len(sent(rig, "b")[0]["entries"]) == 2


def test_nothing_acknowledged_is_sent_again(rig: Rig) -> None:
    core = rig.members["a"].core
    last = core.journal.last
    core.receive("b", acknowledgement(core.term, 1, number=10**6, reset=True))
    core.broadcast()
    (message,) = sent(rig, "b")
    assert (message["prevLogIdx"], message["entries"]) == (last, [])


def test_a_backlog_goes_in_portions_and_stops_where_there_is_no_room(rig: Rig) -> None:
    core = rig.members["a"].core
    room = [3]

    def send(peer: str, message: Message) -> bool:
        if peer == "b" and message["type"] == "append_entries":
            room[0] -= 1
            if room[0] >= 0:
                rig.flying.append(("a", peer, message))
            return room[0] >= 0
        return True

    core.send = send
    start = core.journal.last + 1
    for _ in range(40):
        core.add(REGULAR + bytes(300_000))
    core.broadcast()
    portions = sent(rig, "b")
    assert [len(message["entries"]) for message in portions] == [4, 4, 4]
    room[0] = 100
    core.broadcast()
    portions += sent(rig, "b")
    assert [index for message in portions for _, index, _ in message["entries"]] == list(range(start, start + 40))


def test_a_full_disk_ends_its_leadership_and_no_index_is_used_twice_in_a_term(rig: Rig) -> None:
    member, term = rig.members["a"], rig.members["a"].core.term
    last = member.core.journal.last
    answers = rig.propose("a", b"too much")
    with no_room():
        member.step()
    assert not member.core.is_leader
    assert member.core.journal.last == last
    assert answers == []
    assert isinstance(rig.propose("a", b"now")[0], LogUnavailable)
    rig.elect()
    assert rig.leader is not None
    assert rig.leader.core.term > term
    assert rig.run(6, lambda: bool(answers))
    later = rig.propose(rig.leader.core.leader or "", b"later")
    assert rig.run(6, lambda: bool(later))
    logs = [list(rig.log(name).items()) for name in "abc"]
    assert rig.run(1, lambda: len({str(rig.log(name)) for name in "abc"}) == 1), logs
    held = {payload for _, payload in rig.log("a").values()}
    assert (b"too much" in held) or isinstance(answers[0], LogUnavailable)
    assert not (isinstance(answers[0], int) and b"too much" not in held)


def test_it_gives_up_without_a_majority_and_not_before(rig: Rig) -> None:
    core = rig.members["a"].core
    rig.cut = {("c", "a")}
    rig.run(3)
    assert core.is_leader, "b answers"
    rig.cut |= {("b", "a")}
    began = rig.now
    assert rig.run(3, lambda: not core.is_leader)
    assert rig.now - began <= TIMING.fallback + 0.3
    assert core.leader is None


def test_whoever_lacks_what_is_gone_knows_so_until_it_has_it(rig: Rig) -> None:
    leader = rig.members["a"]
    rig.isolate("c")
    for number in range(60):
        rig.propose("a", b"%d" % number * 100)
        rig.run(0.1)
    leader.core.journal.wal.trim(leader.core.commit - 5)
    assert leader.core.journal.first > 10
    rig.heal()
    assert rig.run(4, lambda: rig.members["c"].core.snapshot_from == "a")
    base = leader.core.commit
    term = leader.core.journal.term(base)
    assert term is not None
    rig.members["c"].restart(base, term)
    assert rig.members["c"].core.snapshot_from is None
    rig.propose("a", b"after")
    assert rig.run(3, lambda: rig.log("c").get(base + 1) == (term, b"after"))


def test_leadership_goes_to_a_member_that_has_everything(rig: Rig) -> None:
    core = rig.members["a"].core
    term = core.term
    rig.isolate("c")
    rig.propose("a", b"x")
    rig.run(0.3)
    assert not core.transfer("c"), "it lacks an entry"
    assert not core.transfer("a"), "itself"
    assert not core.transfer("z"), "nobody"
    assert not rig.members["b"].core.transfer(None), "it does not lead"
    rig.heal()
    assert core.transfer(None)
    assert rig.run(1, lambda: rig.leader is not None and rig.leader.core.term > term and rig.leader.core.may_read)
    assert rig.leader is not rig.members["a"]
    for name in "bc":
        rig.members["a"].core.linked(name, False)
    assert not core.transfer(None)


def test_timing_follows_the_distance() -> None:
    near, far = Timing.for_round_trip(0.0), Timing.for_round_trip(0.25)
    assert (near.election_least, near.fallback) == (1.0, 1.0)
    assert far.election_least == 10 * 0.25
    assert far.heartbeat == 0.2
    assert far.election_most == 2 * far.election_least


def test_new_timing_holds_from_the_next_timeout_on(rig: Rig) -> None:
    core = rig.members["b"].core
    core.retime(Timing(0.2, 5.0, 10.0))
    assert 5.0 <= core._SyncObj__generateRaftTimeout() <= 10.0
    assert core.conf.leaderFallbackTimeout == 5.0
    core.retime(Timing(0.2, 5.0, 10.0))
