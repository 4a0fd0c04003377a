"""A node for each test. Its folders are copied from one that was prepared once: making them durable takes a second."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from node.blobs.filesystem import FilesystemStore
from tests.node.gateway.rig import STORE_ID, Rig, running


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with an empty blob store."""
    folder = tmp_path_factory.mktemp("prepared")
    FilesystemStore.at(folder / "blobs", store_id=STORE_ID, free_bytes=0).close()
    return folder


@pytest.fixture
def data(prepared: Path, tmp_path: Path) -> Path:
    """A data folder of the test's own."""
    folder = tmp_path / "data"
    shutil.copytree(prepared, folder)
    (folder / "state").mkdir()
    return folder


@pytest.fixture
async def rig(data: Path) -> AsyncIterator[Rig]:
    """A node with the default configuration."""
    async with running(data) as rig:
        yield rig
