"""Replicas of three members over real links: what one lacks and nobody keeps any more, it gets as a snapshot."""

import asyncio
import itertools
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import cast

import pytest

from consensus.bridge import Bridge
from consensus.commands import Status
from consensus.errors import LogUnavailable
from consensus.log import Bridged
from consensus.proposer import Proposer
from consensus.raft.engine import RaftLog
from consensus.raft.relayed import RelayedHandlers
from consensus.raft.transport import GrpcTransport
from consensus.replica import Replica
from consensus.state import State
from tests.consensus.commands_made import record
from tests.consensus.raft.members import CALM, CLUSTER_ID, credentials_of
from tests.consensus.raft.relay import Relay

NAMES = ("a", "b", "c")
DEADLINE_SECONDS = 30.0
_incarnations = itertools.count(1)


class Members:
    """Replicas by name, each on a folder of its own, behind a relay whose address stays."""

    def __init__(self, folder: Path, relays: dict[str, Relay]) -> None:
        self.folder = folder
        self.relays = relays
        self.replicas: dict[str, Replica] = {}
        self._stacks: dict[str, AsyncExitStack] = {}

    async def begin(self, name: str) -> None:
        async with AsyncExitStack() as stack:
            self.replicas[name] = await stack.enter_async_context(self._replica(name))
            self._stacks[name] = stack.pop_all()

    async def end(self, name: str) -> None:
        del self.replicas[name]
        await self._stacks.pop(name).aclose()

    @asynccontextmanager
    async def _replica(self, name: str) -> AsyncIterator[Replica]:
        handlers = RelayedHandlers()
        peers = {other: relay.address for other, relay in self.relays.items() if other != name}
        transport = GrpcTransport(
            name,
            "127.0.0.1:0",
            peers,
            CLUSTER_ID,
            credentials_of(name),
            incarnation=next(_incarnations),
            heartbeat_seconds=CALM,
            handlers=[handlers],
        )
        self.relays[name].target = transport.address
        folder = self.folder / name
        state = State.open(folder / "state", CLUSTER_ID)
        log = RaftLog.open(
            folder / "wal", me=name, peers=tuple(peers), transport=transport, applied=state.applied, segment_bytes=16384
        )
        bridge = Bridge.open(log, folder / "snapshots", CLUSTER_ID, transport.channel)
        handlers.add(bridge.service().handler())
        try:
            async with Replica.open(log, state, keep_bytes=16384, checkpoint_seconds=0.2, bridge=bridge) as replica:
                yield replica
        finally:
            await log.close()
            bridge.close()
            state.close()

    async def settled(self, *names: str) -> None:
        """All of them have applied what was acknowledged before."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            for name in names:
                while True:
                    try:
                        await self.replicas[name].wait_applied(await self.replicas[name].barrier())
                        break
                    except LogUnavailable:
                        await asyncio.sleep(0.05)

    async def hashes(self) -> set[str]:
        """Of the states of all, which have ended."""
        for name in list(self.replicas):
            await self.end(name)
        found = set()
        for name in NAMES:
            state = State.open(self.folder / name / "state", CLUSTER_ID)
            found.add(state.hash())
            state.close()
        return found


@pytest.fixture
async def members(tmp_path: Path) -> AsyncIterator[Members]:
    async with AsyncExitStack() as stack:
        relays = {name: stack.enter_context(Relay()) for name in NAMES}
        members = Members(tmp_path, relays)
        try:
            for name in NAMES:
                await members.begin(name)
            await members.settled(*NAMES)
            yield members
        finally:
            for name in list(members.replicas):
                await members.end(name)


async def fill(members: Members, name: str, start: int, count: int) -> None:
    proposer = Proposer(members.replicas[name], "test", deadline_seconds=DEADLINE_SECONDS)
    for begin in range(start, start + count, 50):
        outcomes = await asyncio.gather(*(proposer.propose(record(number)) for number in range(begin, begin + 50)))
        assert {outcome.status for outcome in outcomes} == {Status.DONE}


async def until_trimmed(members: Members, *names: str) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not all(members.replicas[name].status.first > 100 for name in names):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_all_apply_the_same(members: Members) -> None:
    await fill(members, "a", 0, 100)
    await fill(members, "b", 100, 100)
    await members.settled(*NAMES)
    assert len(await members.hashes()) == 1


@pytest.mark.parametrize("wiped", [False, True])
async def test_one_that_was_away_for_too_long_gets_a_snapshot(members: Members, wiped: bool) -> None:
    await fill(members, "a", 0, 50)
    await members.settled(*NAMES)
    await members.end("c")
    if wiped:
        shutil.rmtree(members.folder / "c")
    await fill(members, "a", 50, 600)
    await until_trimmed(members, "a", "b")
    await members.begin("c")
    await members.settled("c")
    await until_trimmed(members, "c")
    await fill(members, "c", 650, 50)
    await members.settled(*NAMES)
    await members.end("c")
    await members.begin("c")  # also from what it has on disk now
    await members.settled(*NAMES)
    assert len(await members.hashes()) == 1


class _Lonely:
    """A log of which only terms are asked."""

    async def term_at(self, _: int) -> int:
        return 1


async def test_who_asks_while_a_snapshot_is_taken_gets_that_one(tmp_path: Path) -> None:
    state = State.open(tmp_path / "state", CLUSTER_ID)
    bridge = Bridge.open(cast(Bridged, _Lonely()), tmp_path / "snapshots", CLUSTER_ID, pytest.fail)
    steps = 0

    async def asked_for_again(step: Callable[[], object]) -> object:
        nonlocal steps
        steps += 1
        bridge._want(0)
        return step()

    taking = asyncio.create_task(bridge.take_when_wanted(state, asked_for_again))
    bridge._want(0)
    async with asyncio.timeout(DEADLINE_SECONDS):
        while bridge._archive.newest is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    taken_after = steps
    await asyncio.sleep(0.1)
    assert steps == taken_after
    bridge._want(0)
    async with asyncio.timeout(DEADLINE_SECONDS):
        while steps == taken_after:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    taking.cancel()
    await asyncio.wait([taking])
    bridge.close()
    state.close()
