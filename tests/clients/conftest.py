"""One real node for all client tests, and for each test a home of its own and a repository of its own.

`MERIDIAN_TEST_REGISTRY=host:port` runs the same tests against a registry that already stands there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.servers import meridian
from consensus import entropy
from tests.clients.inspection import Inspection
from tests.clients.layouts import Layout
from tests.clients.workspace import Workspace


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """host:port of the registry under test."""
    if given := os.environ.get("MERIDIAN_TEST_REGISTRY"):
        yield given
        return
    with meridian(tmp_path_factory.mktemp("node")) as server:
        yield server.address


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """A layout with `single` (linux/amd64) and `multi` (linux/amd64 and linux/arm64)."""
    layout = Layout(tmp_path_factory.mktemp("images"))
    layout.tag("single", layout.add_image(seed="single"))
    layout.tag("multi", layout.add_index(seed="multi"))
    return layout


@pytest.fixture
def workspace(tmp_path: Path, registry: str) -> Workspace:
    """A home for the clients of one test."""
    return Workspace(tmp_path / "home", registry)


@pytest.fixture
def inspection(registry: str) -> Inspection:
    """Plain HTTP reads of the registry."""
    return Inspection(registry)


@pytest.fixture
def repository(request: pytest.FixtureRequest) -> str:
    """A repository that no other test uses, in this run or another one."""
    name = re.sub("[^a-z0-9]+", "-", request.node.name.lower()).strip("-")
    return f"clients/{name}-{entropy.token_bytes(4).hex()}"
