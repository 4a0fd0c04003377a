"""What stock pysyncobj gets wrong, ours gets right: each fault is shown on the stock release, then refuted on ours."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pysyncobj.syncobj as syncobj
import pytest

from consensus.errors import LogCorrupt, LogError
from consensus.log import Entry
from consensus.raft import pinned
from consensus.raft.core import Core
from consensus.raft.hardstate import HardState
from consensus.raft.journal import REGULAR, Journal
from consensus.wal import Wal
from tests.consensus.raft.faults import SCENARIOS, Found, Lab
from tests.consensus.raft.hub import Hub
from tests.consensus.raft.rig import TIMING, Rig, rigged
from tests.consensus.raft.test_engine import open_member, until_usable

ROOT = Path(__file__).parents[3]
FAR = 10**9


class OurLab(Lab):
    """Over the shipped modules. Nobody stands for an election but whom the scenario calls, until it waits."""

    def __init__(self, rig: Rig) -> None:
        super().__init__("".join(rig.names))
        self.rig = rig
        self.rig.filter = self._take
        self._told: dict[str, list[str]] = {name: [] for name in rig.names}
        for name in rig.names:
            self._core(name)._SyncObj__raftElectionDeadline = FAR

    def put(self, name: str, label: str, size: int = 0) -> None:
        def done(result: int | LogError) -> None:
            if isinstance(result, int):
                self._told[name].append(label)

        self.rig.members[name].propose(label.ljust(size).encode(), done)

    def turn(self, name: str) -> None:
        self._core(name)._SyncObj__newAppendEntriesTime = 0
        self.tick(name)

    def tick(self, name: str) -> None:
        self.rig.now = self.now
        self.rig.members[name].step()

    def receive(self, name: str, sender: str, message: dict[str, Any]) -> None:
        self.rig.members[name].receive(sender, message)
        self.tick(name)

    def call_election(self, name: str) -> None:
        self.now += TIMING.election_most
        for other in self.names:
            self._core(other)._SyncObj__raftElectionDeadline = 0 if other == name else FAR

    def wait(self, seconds: float) -> None:
        for name in self.names:
            core = self._core(name)
            if core._SyncObj__raftElectionDeadline == FAR:
                core._SyncObj__raftElectionDeadline = self.now + core._SyncObj__generateRaftTimeout()
        super().wait(seconds)

    def leads(self, name: str) -> bool:
        return self._core(name).is_leader

    def term(self, name: str) -> int:
        return self._core(name).term

    def acknowledged(self, name: str) -> list[str]:
        return list(self._told[name])

    def applied(self, name: str) -> list[str]:
        return [payload.decode().rstrip() for _, payload in self.rig.log(name).values()]

    def _core(self, name: str) -> Core:
        return self.rig.members[name].core

    def _take(self, sender: str, receiver: str, message: dict[str, Any]) -> bool:
        self.send(sender, receiver, message)
        return False  # the rig itself delivers nothing


def stock(scenario: str, *arguments: str) -> Found:
    command = [sys.executable, "-m", "tests.consensus.raft.stock", scenario, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found: Found = json.loads(done.stdout)
    return found


@contextmanager
def lab_of(folder: Path, names: str) -> Iterator[OurLab]:
    with rigged(folder, names) as rig:
        yield OurLab(rig)


def ours(folder: Path, scenario: str) -> Found:
    names, play = SCENARIOS[scenario]
    with lab_of(folder, names) as lab:
        return play(lab)


@pytest.mark.parametrize("scenario", ["truncated_by_a_stale_reset", "an_old_range_sent_again"])
def test_what_was_acknowledged_is_never_truncated(tmp_path: Path, scenario: str) -> None:
    found = stock(scenario)
    assert set(found["acknowledged"]) - set(found["kept"]), "the stock release has lost nothing"
    found = ours(tmp_path, scenario)
    assert found["acknowledged"]
    assert found["kept"] == found["acknowledged"]


def test_an_acknowledgement_counts_in_its_own_term_only(tmp_path: Path) -> None:
    assert stock("an_acknowledgement_of_an_older_term") == {
        "acknowledged": ["new0", "new1", "new2"],
        "kept": [],
    }
    assert ours(tmp_path, "an_acknowledgement_of_an_older_term") == {"acknowledged": [], "kept": []}


def test_a_voter_counts_once(tmp_path: Path) -> None:
    assert stock("a_vote_counted_twice") == {"elected": True}
    assert ours(tmp_path, "a_vote_counted_twice") == {"elected": False}


def test_nothing_is_committed_that_was_not_compared_with_the_leaders_log(tmp_path: Path) -> None:
    assert stock("committed_without_being_compared") == {"applied": ["old0", "old1", "old2"]}
    assert ours(tmp_path, "committed_without_being_compared") == {"applied": []}


def test_a_follower_that_was_isolated_disturbs_nobody_when_it_returns(tmp_path: Path) -> None:
    found = stock("an_isolated_follower_comes_back")
    assert found["terms"] > 0
    assert not found["leader stays"]
    assert ours(tmp_path, "an_isolated_follower_comes_back") == {"terms": 0, "leader stays": True}


def test_a_leader_that_is_cut_off_is_none_for_long(tmp_path: Path) -> None:
    assert len(stock("a_leader_is_cut_off")["leaders"]) == 2
    (leader,) = ours(tmp_path, "a_leader_is_cut_off")["leaders"]
    assert leader != "a"


def test_an_exception_of_a_client_leaves_the_log_as_it_is(tmp_path: Path) -> None:
    assert stock("an_exception_in_a_callback") == {"leader": ["once", "once"], "follower": ["once"]}
    with lab_of(tmp_path, "abc") as lab:
        lab.elect("a")

        def fail(_: int | LogError) -> None:
            raise ZeroDivisionError("the client's")

        lab.rig.members["a"].propose(b"once", fail)
        with pytest.raises(ZeroDivisionError):
            lab.settle()
        lab.put("a", "next")
        lab.settle()
        assert lab.acknowledged("a") == ["next"]
        assert lab.applied("a") == lab.applied("b") == ["once", "next"]
        for commits in lab.rig.commits.values():
            assert commits == sorted(set(commits)), "told twice of the same entries"


async def test_an_exception_in_apply_holds_up_nobody_but_whoever_applies(tmp_path: Path) -> None:
    assert stock("an_exception_in_apply") == {"applied": [], "acknowledged": []}
    log = open_member(tmp_path, Hub(), "a", ("a",))
    try:
        await until_usable(log)
        applied = await log.append(b"poison") - 1

        async def apply() -> None:
            async for _ in log.entries(applied):
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await apply()
        assert await log.append(b"next") == applied + 2
        assert [entry.payload for entry in await anext(log.entries(applied))] == [b"poison", b"next"]
    finally:
        await log.close()


def test_members_are_not_changed_by_two_at_once_nor_by_an_entry(tmp_path: Path) -> None:
    assert stock("two_changes_of_members") == {"members": ["b", "c", "d", "e"], "denied": []}
    with lab_of(tmp_path, "abc") as lab:
        lab.elect("a")
        core = lab.rig.members["a"].core
        with pytest.raises(Exception, match="dynamicMembershipChange"):
            core.addNodeToCluster(pinned.Node("d"))
        last = lab.rig.members["b"].core.journal.last
        change = (b"\x02add d", last + 1, 1)
        heading = {"type": "append_entries", "term": 1, "commit_index": last + 1, "round": 9, "number": 99}
        lab.receive("b", "a", heading | {"prevLogIdx": last, "prevLogTerm": 1, "entries": (change,)})
        assert lab.rig.members["b"].core.journal.last == last
        assert {node.id for node in lab.rig.members["b"].core.otherNodes} == {"a", "c"}


def test_a_crash_between_a_snapshot_and_the_log_costs_nothing(tmp_path: Path) -> None:
    """Where the stock release has a dump that does not go with its journal, it forgets the journal."""
    (tmp_path / "stock").mkdir()
    acknowledged = stock("killed_between_snapshot_and_journal", str(tmp_path / "stock"))["acknowledged"]
    assert acknowledged == ["one", "two", "three", "four", "five"]
    assert stock("killed_between_snapshot_and_journal", str(tmp_path / "stock"))["kept"] == ["one", "two", "three"]

    journal = Journal.open(tmp_path / "ours", 0)
    for index in range(1, 6):
        journal.add(REGULAR + b"%d" % index, index, 1)
    journal.flush()
    journal.wal.close()  # the state has a checkpoint at 3, and then the process is killed: nothing has been trimmed
    with closing(Wal.open(tmp_path / "ours")) as wal:
        assert [entry.index for entry in wal.read(3)] == [4, 5]
    journal = Journal.open(tmp_path / "ours", 3)
    assert [index for _, index, _ in journal.range(4, 99)] == [4, 5]
    journal.wal.close()


def pickle_bomb(folder: Path) -> bytes:
    """Makes a folder when it is unpickled."""
    return b"cos\nmkdir\n(V%s\ntR." % str(folder / "exploded").encode()


def test_a_stranger_can_have_the_stock_release_unpickle(tmp_path: Path) -> None:
    assert stock("a_pickle_from_a_stranger", str(tmp_path), pickle_bomb(tmp_path).hex()) == {"exploded": True}


def test_pysyncobj_has_no_pickle_here(tmp_path: Path) -> None:
    for verb in ("loads", "dumps"):
        with pytest.raises(RuntimeError, match="nothing is pickled"):
            getattr(syncobj.pickle, verb)(pickle_bomb(tmp_path))
    assert not (tmp_path / "exploded").exists()


BOMBED: dict[str, Callable[[bytes], dict[str, Any]]] = {
    "a message in parts": lambda bomb: {"type": "append_entries", "transmission": "finish", "data": bomb},
    "a snapshot": lambda bomb: {"type": "append_entries", "serialized": (bomb, True, True)},
    "a command": lambda bomb: {"type": "apply_command", "command": bomb},
    "a change of members": lambda bomb: {"type": "append_entries", "entries": ((b"\x02" + bomb, 3, 1),)},
    "a change of version": lambda bomb: {"type": "append_entries", "entries": ((b"\x03" + bomb, 3, 1),)},
    "a regular entry": lambda bomb: {"type": "append_entries", "entries": ((REGULAR + bomb, 3, 1),)},
    "a vote": lambda bomb: {"type": "request_vote", "last_log_term": bomb, "last_log_index": bomb},
    "a type": lambda bomb: {"type": bomb},
}


@pytest.mark.parametrize("place", BOMBED)
def test_a_pickle_in_a_message_stays_what_it_is(tmp_path: Path, place: str) -> None:
    bomb = pickle_bomb(tmp_path)
    with lab_of(tmp_path, "abc") as lab:
        lab.elect("a")
        last = lab.rig.members["b"].core.journal.last
        assert last == 2
        heading = {"term": 1, "commit_index": 3, "round": 9, "number": 99, "prevLogIdx": last, "prevLogTerm": 1}
        lab.receive("b", "a", heading | {"entries": ()} | BOMBED[place](bomb))
        lab.turn("b")
        assert lab.rig.log("b") == ({3: (1, bomb)} if place == "a regular entry" else {})
        lab.put("a", "after")
        lab.settle()
        assert lab.acknowledged("a") == ["after"]
    assert not (tmp_path / "exploded").exists()


def test_a_pickle_on_disk_is_refused(tmp_path: Path) -> None:
    bomb = pickle_bomb(tmp_path)
    HardState.open(tmp_path).vote(1, "a")
    (tmp_path / "hardstate").write_bytes(bomb)
    with pytest.raises(LogCorrupt):
        HardState.open(tmp_path)
    with closing(Wal.open(tmp_path / "wal")) as wal:
        wal.append([bomb])
        assert wal.read(0) == (Entry(1, bomb),)
    (segment,) = (tmp_path / "wal").glob("*.log")
    segment.write_bytes(bomb)
    with pytest.raises(LogCorrupt):
        Wal.open(tmp_path / "wal")
    assert not (tmp_path / "exploded").exists()
