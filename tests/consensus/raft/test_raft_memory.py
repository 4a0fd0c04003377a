"""A log longer than what is kept in memory."""

from pathlib import Path

import pytest

from consensus import segments
from consensus.raft import journal
from tests.consensus.raft.rig import rigged


def test_a_leader_commits_without_reading_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "_KEPT_BYTES", 4000)
    with rigged(tmp_path) as rig:
        rig.elect("a")
        for number in range(40):
            rig.propose("a", b"%d" % number * 200)
        assert rig.run(5, lambda: len(rig.log("c")) == 40)
        # Whoever looked at the oldest entry for each one that is to be committed would miss this file.
        (tmp_path / "a" / segments.segment_name(1)).unlink()
        answers = rig.propose("a", b"one more")
        assert rig.run(5, lambda: bool(answers))
        assert isinstance(answers[0], int)
