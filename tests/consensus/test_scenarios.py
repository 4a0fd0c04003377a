"""Every script in `scenarios/` prints what it says it prints; see `scenario.py` for the language."""

from pathlib import Path

import pytest

from tests.consensus.scenario import FOLDER, replay

SCRIPTS = sorted(FOLDER.glob("*.txt"))


@pytest.mark.parametrize("path", SCRIPTS, ids=[path.stem for path in SCRIPTS])
def test_a_script_prints_what_it_says(path: Path, tmp_path: Path) -> None:
    script = path.read_text()
    assert replay(script, tmp_path / "state") == script


def test_the_scripts_are_found() -> None:
    assert len(SCRIPTS) >= 7
