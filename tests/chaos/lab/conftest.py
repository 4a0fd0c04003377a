from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from chaos.lab.laboratory import Lab, lab
from chaos.lab.topology import load


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with lab(load(), tmp_path_factory.mktemp("lab")) as it:
        try:
            asyncio.run(it.start())
            yield it
        finally:
            asyncio.run(it.close())


@pytest.fixture
def restored(world: Lab) -> Iterator[Lab]:
    """As it was, after the test."""
    yield world
    for pair, link in world.topology.links.items():
        world.set(*pair, delay_ms=link.delay_ms, loss=0, rate_mbit=link.rate_mbit, queue_ms=link.queue_ms, cut=False)
