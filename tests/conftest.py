"""`MERIDIAN_REQUIRE_CLIENTS=1`, as CI sets it, turns every skip into a failure: there, nothing may be missing. No
example of a property has a deadline: how fast something is, benchmarks say.
"""

from __future__ import annotations

import os
from collections.abc import Generator

import hypothesis
import pytest

hypothesis.settings.register_profile("meridian", deadline=None)
hypothesis.settings.load_profile("meridian")

STRICT = os.environ.get("MERIDIAN_REQUIRE_CLIENTS") == "1"


def _forbid_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if STRICT and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"skipped, although MERIDIAN_REQUIRE_CLIENTS=1: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _forbid_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _forbid_skip(report)
    return report
