"""What a member forgets because its disk was full has not been compared, and nothing says that it is committed here."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.consensus.raft.rig import STEP_SECONDS, rigged


@contextmanager
def full_disk() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_follower_commits_nothing_that_it_could_not_write(tmp_path: Path) -> None:
    with rigged(tmp_path) as rig:
        rig.elect("a")
        rig.run(1)
        late = rig.members["b"]
        answers = rig.propose("a", b"one")
        for _ in range(20):  # the entry, and that it is committed, wait for b's next step
            rig.deliver()
            rig.members["a"].step()
            rig.members["c"].step()
            rig.now += STEP_SECONDS
        assert answers == [late.core.journal.last + 1]
        with full_disk():
            late.step()
        late.step()
        assert late.core.commit <= late.core.journal.last
        assert rig.run(5, lambda: rig.log("b") == rig.log("a"))
