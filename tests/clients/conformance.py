"""`python -m tests.clients.conformance`, or `make conformance`: the OCI conformance program against a node of its own.

Its results are kept in build/conformance. Exits with 0 only when the program ran and reports no failure.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from bench.servers import meridian

PROGRAM = Path(sys.prefix) / "tools/bin/conformance"
RESULTS = Path("build/conformance")
DEADLINE_SECONDS = 300.0


@dataclass(frozen=True)
class Verdict:
    """What the program reports: counts of its tests, the names of those that failed, and its own summary."""

    tests: int
    failures: int
    errors: int
    skipped: int
    failed: tuple[str, ...]
    said: str

    @property
    def passed(self) -> bool:
        """Whether it tested something and found nothing wrong."""
        return self.tests > 0 and self.failures == self.errors == 0


def judge(registry: str, results: Path) -> Verdict:
    """Run the program with its defaults for version 1.1 against host:port, and read what it left in `results`."""
    results.mkdir(parents=True, exist_ok=True)
    junit = results / "junit.xml"
    junit.unlink(missing_ok=True)
    environment = {
        "PATH": os.defpath,
        "HOME": str(results),
        "OCI_REGISTRY": registry,
        "OCI_TLS": "disabled",
        "OCI_VERSION": "1.1",
        "OCI_RESULTS_DIR": str(results.absolute()),
        "OCI_LOG": "error",
    }
    done = subprocess.run(
        [PROGRAM], cwd=results, env=environment, capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False
    )
    said = done.stdout + done.stderr
    if not junit.exists():
        return Verdict(0, 0, 0, 0, (), said)
    suites = ElementTree.parse(junit).getroot().findall("testsuite")
    tests, failures, errors, skipped = (
        sum(int(suite.get(name, "0")) for suite in suites) for name in ("tests", "failures", "errors", "skipped")
    )
    cases = [case for suite in suites for case in suite.findall("testcase")]
    failed = tuple(case.get("name", "") for case in cases if case.find("failure") is not None)
    return Verdict(tests, failures, errors, skipped, failed, said)


def main() -> int:
    """Start a node, judge it, print the verdict."""
    if not PROGRAM.exists():
        print(f"{PROGRAM} is not installed (.ci/install-clients conformance installs it)", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="meridian-") as folder, meridian(Path(folder)) as server:
        verdict = judge(server.address, RESULTS)
    print(verdict.said)
    for name in verdict.failed:
        print(f"failed: {name}")
    print(f"{verdict.tests} tests, {verdict.failures} failures, {verdict.errors} errors, {verdict.skipped} skipped")
    print(f"results are in {RESULTS}/")
    return 0 if verdict.passed else 1


if __name__ == "__main__":
    sys.exit(main())
