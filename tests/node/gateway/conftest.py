"""A node for each test. Only the store of blobs is shared: making its folders durable takes a second, and blobs that
another test left are in nobody's repository."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from node.blobs.filesystem import FilesystemStore
from tests.node.gateway.regions import Cluster
from tests.node.gateway.rig import STORE_ID, Rig, running
from tests.node.member_certificates import CertificateAuthority


@pytest.fixture(scope="session")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a blob store."""
    folder = tmp_path_factory.mktemp("store") / "blobs"
    FilesystemStore.at(folder, store_id=STORE_ID, free_bytes=0).close()
    return folder


@pytest.fixture
def data(blobs: Path, tmp_path: Path) -> Path:
    """A data folder of the test's own, but for the blobs."""
    folder = tmp_path / "data"
    (folder / "state").mkdir(parents=True)
    (folder / "blobs").symlink_to(blobs)
    return folder


@pytest.fixture
async def rig(data: Path) -> AsyncIterator[Rig]:
    """A node with the default configuration."""
    async with running(data) as rig:
        yield rig


@pytest.fixture(scope="session")
def shared_stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Identities and stores of the members of clusters."""
    return tmp_path_factory.mktemp("stores")


@pytest.fixture
def cluster(shared_stores: Path, tmp_path: Path) -> Iterator[Cluster]:
    """A cluster without members so far."""
    made = Cluster(tmp_path / "nodes", CertificateAuthority(tmp_path / "ca"), shared_stores)
    yield made
    for place in made.places.values():
        place.listener.close()
