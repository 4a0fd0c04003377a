"""For each client test a home and a repository of its own, in two real registries that no client must tell apart: one
node, and three regions of which every request reaches another one than the last.

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
from tests.clients.bouncing import three_bouncing_regions
from tests.clients.containerd import ctr as ctr
from tests.clients.inspection import Inspection
from tests.clients.layouts import Layout
from tests.clients.workspace import Workspace

REGISTRIES = ["given"] if "MERIDIAN_TEST_REGISTRY" in os.environ else ["node", "regions"]


@pytest.fixture(scope="session", params=REGISTRIES)
def registry(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """host:port of the registry under test."""
    if request.param == "given":
        yield os.environ["MERIDIAN_TEST_REGISTRY"]
    elif request.param == "node":
        with meridian(tmp_path_factory.mktemp("node")) as server:
            yield server.address
    else:
        with three_bouncing_regions(tmp_path_factory.mktemp("regions")) as bouncing:
            yield bouncing.address
            assert len(bouncing.requests) == 3
            assert not bouncing.failures


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
