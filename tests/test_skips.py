"""CI must not pass because something is missing: there, a skip of any kind fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SUITE = """
import pytest

def test_passes():
    pass

def test_skips():
    pytest.skip("crane is not installed")

@pytest.mark.skipif(True, reason="FUSE is missing")
def test_is_marked():
    pass

@pytest.mark.xfail(reason="known")
def test_is_expected_to_fail():
    raise AssertionError
"""


@pytest.mark.parametrize(
    ("strict", "outcome"), [("0", "1 passed, 3 skipped, 1 xfailed"), ("1", "1 failed, 1 passed, 1 xfailed, 2 errors")]
)
def test_a_skip(strict: str, outcome: str, tmp_path: Path) -> None:
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    (tmp_path / "test_suite.py").write_text(SUITE)
    (tmp_path / "test_module.py").write_text("import pytest\npytest.importorskip('no_such_module')\n")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
        "-ra",
        str(tmp_path),
    ]
    answer = subprocess.run(
        [*command, "--continue-on-collection-errors"],
        env={**os.environ, "MERIDIAN_REQUIRE_CLIENTS": strict},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome in answer.stdout
    assert answer.returncode == (0 if strict == "0" else 1)
    if strict == "1":
        assert "skipped, although MERIDIAN_REQUIRE_CLIENTS=1" in answer.stdout
