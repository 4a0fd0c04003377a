"""Read indexes: one round for all that wait, and no more messages for it than a round has."""

from pathlib import Path

from consensus.raft.links import Message
from tests.consensus.raft.rig import TIMING, Rig, rigged


def rounds_sent(rig: Rig) -> set[int]:
    """Filled with the rounds that are begun from now on."""
    seen: set[int] = set()

    def see(_: str, __: str, message: Message) -> bool:
        if message["type"] == "append_entries":
            seen.add(message["round"])
        return True

    rig.filter = see
    return seen


def test_reads_that_wait_together_share_a_round(tmp_path: Path) -> None:
    with rigged(tmp_path) as rig:
        leader = rig.elect("a")
        rig.run(1)
        commit = leader.core.commit
        rounds = rounds_sent(rig)
        answers = [rig.read_index(name) for name in "abcabc"]
        assert rig.run(TIMING.heartbeat, lambda: all(answers))
        assert answers == [[commit]] * 6
        rig.run(TIMING.heartbeat)
        assert len(rounds) <= 4  # the leader's own, the others', and the heartbeats


def test_a_read_that_nobody_answers_begins_no_rounds_of_its_own(tmp_path: Path) -> None:
    with rigged(tmp_path) as rig:
        rig.elect("a")
        rig.run(1)
        rig.isolate("a")
        rounds = rounds_sent(rig)
        answers = rig.read_index("a")
        rig.run(4 * TIMING.heartbeat)
        assert not answers
        assert len(rounds) <= 6


def test_a_read_covers_what_was_acknowledged_before(tmp_path: Path) -> None:
    with rigged(tmp_path) as rig:
        rig.elect("a")
        for number in range(10):
            (written,) = (rig.propose("abc"[number % 3], b"%d" % number),)
            assert rig.run(2, lambda written=written: bool(written))  # type: ignore[misc]
            read = rig.read_index("abc"[(number + 1) % 3])
            assert rig.run(2, lambda read=read: bool(read))  # type: ignore[misc]
            assert isinstance(read[0], int)
            assert isinstance(written[0], int)
            assert read[0] >= written[0]
