from pathlib import Path

import pytest

from tests.clients.conformance import PROGRAM, judge


def test_the_oci_conformance_program_reports_no_failure(registry: str, tmp_path: Path) -> None:
    if not PROGRAM.exists():
        pytest.skip("the OCI conformance program is not installed")
    verdict = judge(registry, tmp_path)
    assert verdict.passed, "\n".join([*verdict.failed, verdict.said])
