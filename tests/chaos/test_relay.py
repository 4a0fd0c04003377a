"""The wire between regions: late, deaf in one direction, cut and healed, without a byte out of order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from chaos.ways import Shape, Ways

FORTH, BACK = ("a", "b"), ("b", "a")
SOON = 0.4


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(b"you said " + data)
    except ConnectionError:
        pass
    finally:
        writer.close()


@asynccontextmanager
async def _members() -> AsyncIterator[Ways]:
    """b answers; a looks for it through the relay."""
    server = await asyncio.start_server(_echo, "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        with Ways({"a": ["127.0.0.1:9"], "b": [address]}) as ways:
            yield ways


class Caller:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def says(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def hears(self, data: bytes) -> bool:
        """Whether exactly this comes soon."""
        try:
            async with asyncio.timeout(SOON):
                return await self.reader.readexactly(len(data)) == data
        except TimeoutError:
            return False


@asynccontextmanager
async def _call(ways: Ways) -> AsyncIterator[Caller]:
    host, _, port = ways.addresses[FORTH][0].rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield Caller(reader, writer)
    finally:
        writer.close()


async def test_bytes_travel_both_ways() -> None:
    async with _members() as ways, _call(ways) as caller:
        await caller.says(b"hello")
        assert await caller.hears(b"you said hello")
        assert ways.passed_bytes() == len(b"hello" + b"you said hello")


async def test_what_is_far_takes_its_time_and_keeps_its_order() -> None:
    async with _members() as ways, _call(ways) as caller:
        await caller.says(b"x")
        assert await caller.hears(b"you said x")
        ways.distance("a", "b", 0.2, jitter=0.5)
        began = time.monotonic()
        for number in range(20):
            await caller.says(b"%02d" % number)
        heard = b""
        while len(heard.replace(b"you said ", b"")) < 40:
            heard += await caller.reader.read(1000)
        assert heard.replace(b"you said ", b"") == b"".join(b"%02d" % number for number in range(20))
        assert time.monotonic() - began >= 0.2


async def test_a_narrow_way_takes_longer_for_more() -> None:
    async with _members() as ways, _call(ways) as caller:
        ways.shape([BACK], Shape(bytes_per_second=100_000))
        began = time.monotonic()
        await caller.says(b"x" * 50_000)
        await caller.reader.readexactly(50_000)
        assert time.monotonic() - began >= 0.4


@pytest.mark.parametrize("way", [FORTH, BACK])
async def test_what_is_held_comes_late(way: tuple[str, str]) -> None:
    async with _members() as ways, _call(ways) as caller:
        ways.cut([way], "hold")
        await caller.says(b"one")
        assert not await caller.hears(b"you said one")
        ways.heal()
        assert await caller.hears(b"you said one")


async def test_one_direction_is_deaf_while_the_other_hears() -> None:
    async with _members() as ways, _call(ways) as caller:
        await caller.says(b"one")
        assert await caller.hears(b"you said one")
        before = ways.passed_bytes()
        ways.cut([BACK], "drop")
        await caller.says(b"two")
        assert not await caller.hears(b"you said two")
        assert ways.passed_bytes() == before + 3  # it was heard, and its answer was not


async def test_a_stream_with_a_hole_is_aborted_when_the_way_is_healed() -> None:
    async with _members() as ways, _call(ways) as caller:
        ways.cut([FORTH], "drop")
        await caller.says(b"gone")
        assert not await caller.hears(b"you said gone")
        ways.heal()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await caller.reader.readexactly(1)
        async with _call(ways) as again:
            await again.says(b"two")
            assert await again.hears(b"you said two")


async def test_a_reset_ends_connections_and_refuses_new_ones() -> None:
    async with _members() as ways, _call(ways) as caller:
        await caller.says(b"one")
        assert await caller.hears(b"you said one")
        ways.cut([FORTH], "reset")
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await caller.reader.readexactly(1)
        async with _call(ways) as again:
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await again.reader.readexactly(1)
        ways.heal()
        async with _call(ways) as third:
            await third.says(b"two")
            assert await third.hears(b"you said two")


async def test_nobody_at_the_other_end_ends_the_call() -> None:
    with Ways({"a": ["127.0.0.1:9"], "b": ["127.0.0.1:9"]}) as ways:
        async with _call(ways) as caller:
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await caller.reader.readexactly(1)
