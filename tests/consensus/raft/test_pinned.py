"""Only the release of pysyncobj whose private parts are known is used, and three of its globals are ours."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pysyncobj
import pysyncobj.syncobj as syncobj
import pytest

from consensus import clock
from consensus.raft.pinned import RELEASE, now, use_clock

ROOT = Path(__file__).parents[3]


def imported(folder: Path) -> subprocess.CompletedProcess[str]:
    """What becomes of `pinned` with the pysyncobj in `folder`."""
    environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-c", "import consensus.raft.pinned, pysyncobj; print(pysyncobj.__file__)"]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(Path(str(pysyncobj.__file__)).parent, tmp_path / "pysyncobj"))


def test_the_known_release_is_taken(copy: Path) -> None:
    done = imported(copy.parent)
    assert done.stdout.strip() == str(copy / "__init__.py"), done.stderr


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [("version.py", RELEASE, "0.3.18"), ("syncobj.py", "votesCount = 1", "votesCount = 2")],
    ids=["version", "source"],
)
def test_another_release_or_another_source_is_refused(copy: Path, file: str, old: str, new: str) -> None:
    text = (copy / file).read_text()
    assert old in text
    (copy / file).write_text(text.replace(old, new))
    done = imported(copy.parent)
    assert done.returncode == 1
    assert f"WrongRelease: pysyncobj {RELEASE} is needed exactly" in done.stderr


def test_the_clock_is_handed_over() -> None:
    try:
        use_clock(lambda: 7)
        assert syncobj.monotonicTime() == now() == 7.0
    finally:
        use_clock(clock.monotonic)


def test_a_journal_is_taken_as_it_is() -> None:
    made = object()
    assert syncobj.createJournal(made) is made
