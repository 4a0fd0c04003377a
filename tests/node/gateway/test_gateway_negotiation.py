from __future__ import annotations

import pytest

from node.gateway.negotiation import is_acceptable
from tests.node.gateway.rig import DOCKER, INDEX, MANIFEST


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["*/*"],
        ["application/*"],
        [MANIFEST],
        [MANIFEST.upper()],
        [f"{DOCKER}, {MANIFEST}"],
        [DOCKER, INDEX, MANIFEST],
        [f"{DOCKER};q=0.5,{MANIFEST} ; q=0.001"],
        [f"{DOCKER}, */*;q=0.1"],
        [f'{MANIFEST};charset="utf-8"'],
        [f"{MANIFEST};q=nonsense"],
        [f"{MANIFEST};q=0", MANIFEST],
        # These do not negotiate manifests, and get what there is.
        ["application/json"],
        ["text/html,application/xhtml+xml;q=0.9"],
        ["application/vnd.example.custom+json"],
        ["", ","],
        [";;;,=,q=0"],
    ],
)
def test_accepted(lines: list[str]) -> None:
    assert is_acceptable(lines, MANIFEST)


@pytest.mark.parametrize(
    "lines",
    [
        [DOCKER],
        [DOCKER, INDEX],
        [f"{DOCKER},{INDEX},application/json"],
        [f"{MANIFEST};q=0"],
        [f"{MANIFEST};q=0.000, */*"],
        ["*/*;q=0"],
        ["application/*;q=0, */*"],
        ["application/vnd.docker.distribution.manifest.v1+prettyjws"],
    ],
)
def test_not_accepted(lines: list[str]) -> None:
    assert not is_acceptable(lines, MANIFEST)


def test_the_most_specific_range_decides() -> None:
    lines = [f"*/*;q=0, application/*;q=0, {MANIFEST}"]
    assert is_acceptable(lines, MANIFEST)
    assert not is_acceptable(lines, INDEX)
