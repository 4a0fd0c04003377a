"""The engine passes the suite of every log, alone and as one of three; what only it promises comes below."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from consensus.errors import LogUnavailable, StateRefused
from consensus.log import Entry, Log
from consensus.raft.engine import RaftLog
from tests.consensus.log_suite import DEADLINE_SECONDS, LogSuite, OpenLog, read
from tests.consensus.raft.hub import Hub

SEGMENT_BYTES = 32 * 1024
NAMES = ("a", "b", "c")


def open_member(folder: Path, hub: Hub, me: str, names: tuple[str, ...] = NAMES, applied: int = 0) -> RaftLog:
    return RaftLog.open(
        folder / me,
        me=me,
        peers=tuple(name for name in names if name != me),
        transport=hub.transport(me),
        applied=applied,
        segment_bytes=SEGMENT_BYTES,
    )


async def until(condition: Callable[[], Awaitable[bool]] | Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            found = condition()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0.01)


async def until_usable(log: Log) -> None:
    async def usable() -> bool:
        with suppress(LogUnavailable):
            await log.barrier()
            return True
        return False

    await until(usable)


class TestAlone(LogSuite):
    @pytest.fixture
    def open_log(self, tmp_path: Path) -> OpenLog:
        async def open_log() -> Log:
            log = open_member(tmp_path, Hub(), "a", ("a",))
            await until_usable(log)
            return log

        return open_log


class ThreeAsOne(RaftLog):
    """A member that closes the two others with it."""

    others: tuple[RaftLog, ...] = ()

    async def close(self) -> None:
        await super().close()
        for other in self.others:
            await other.close()


class TestOneOfThree(LogSuite):
    """Whichever of them leads, the suite talks to the first."""

    @pytest.fixture
    def open_log(self, tmp_path: Path) -> OpenLog:
        async def open_log() -> Log:
            hub = Hub()
            log = ThreeAsOne.open(
                tmp_path / "a",
                me="a",
                peers=("b", "c"),
                transport=hub.transport("a"),
                applied=0,
                segment_bytes=SEGMENT_BYTES,
            )
            log.others = tuple(open_member(tmp_path, hub, name) for name in "bc")
            await until_usable(log)
            return log

        return open_log


@asynccontextmanager
async def cluster(folder: Path, hub: Hub | None = None) -> AsyncIterator[dict[str, RaftLog]]:
    hub = hub or Hub()
    logs = {name: open_member(folder, hub, name) for name in NAMES}
    try:
        for log in logs.values():
            await until_usable(log)
        yield logs
    finally:
        for log in logs.values():
            await log.close()


async def test_every_member_takes_appends_and_shows_the_same(tmp_path: Path) -> None:
    async with cluster(tmp_path) as logs:
        payloads = [f"{name} {number}".encode() for name in NAMES for number in range(100)]
        indexes = await asyncio.gather(*(logs[payload[:1].decode()].append(payload) for payload in payloads))
        assert len(set(indexes)) == len(indexes)
        shown = [await read(log, 0, len(payloads)) for log in logs.values()]
        assert shown[0] == shown[1] == shown[2]
        assert {entry.index: entry.payload for entry in shown[0]} == dict(zip(indexes, payloads, strict=True))


async def test_a_barrier_anywhere_covers_what_was_acknowledged_elsewhere(tmp_path: Path) -> None:
    async with cluster(tmp_path) as logs:
        for number in range(20):
            writer, reader = NAMES[number % 3], NAMES[(number + 1) % 3]
            index = await logs[writer].append(b"%d" % number)
            assert await logs[reader].barrier() >= index


async def test_one_leads_and_all_know_it(tmp_path: Path) -> None:
    async with cluster(tmp_path) as logs:
        status = [log.status for log in logs.values()]
        assert len({each.steward for each in status}) == 1
        assert [name for name, log in logs.items() if log.status.is_steward] == [status[0].steward]


async def test_a_leader_that_is_cut_off_acknowledges_nothing_and_the_others_go_on(tmp_path: Path) -> None:
    hub = Hub()
    async with cluster(tmp_path, hub) as logs:
        leader = next(name for name, log in logs.items() if log.status.is_steward)
        others = [name for name in NAMES if name != leader]
        hub.cut = {pair for other in others for pair in ((leader, other), (other, leader))}
        lost = asyncio.create_task(logs[leader].append(b"lost"))
        await until(lambda: any(logs[name].status.is_steward for name in others))
        await until_usable(logs[others[0]])
        kept = await logs[others[0]].append(b"kept")
        with pytest.raises(LogUnavailable):
            await lost
        with pytest.raises(LogUnavailable):
            await logs[leader].barrier()
        hub.cut = set()
        await until_usable(logs[leader])
        assert await read(logs[leader], 0, 1) == [Entry(kept, b"kept")]


async def test_leadership_is_handed_over_at_once(tmp_path: Path) -> None:
    async with cluster(tmp_path) as logs:
        leader = next(name for name, log in logs.items() if log.status.is_steward)
        await logs[leader].append(b"before")
        await until(lambda: logs[leader].status.commit == max(log.status.commit for log in logs.values()))
        await until(logs[leader].transfer)
        await until(lambda: any(log.status.is_steward for name, log in logs.items() if name != leader))
        await until_usable(logs[leader])
        await logs[leader].append(b"after")


async def test_a_member_that_was_away_catches_up(tmp_path: Path) -> None:
    hub = Hub()
    async with cluster(tmp_path, hub) as logs:
        away = next(name for name, log in logs.items() if not log.status.is_steward)
        here = next(name for name in NAMES if name != away)
        await logs[away].close()
        for number in range(200):
            await logs[here].append(b"%d" % number * 500)
        logs[away] = open_member(tmp_path, hub, away)
        await until_usable(logs[away])
        assert len(await read(logs[away], 0, 200)) == 200


async def test_a_log_that_ends_before_what_was_applied_is_refused(tmp_path: Path) -> None:
    log = open_member(tmp_path, Hub(), "a", ("a",))
    await until_usable(log)
    index = await log.append(b"x")
    await log.close()
    with pytest.raises(StateRefused, match="rejoin as a new member"):
        open_member(tmp_path, Hub(), "a", ("a",), applied=index + 100)


async def test_a_thread_that_fails_takes_the_log_with_it(tmp_path: Path) -> None:
    log = open_member(tmp_path, Hub(), "a", ("a",))
    await until_usable(log)
    await log.append(b"x")
    (tmp_path / "a" / "hardstate").unlink()
    (tmp_path / "a").chmod(0o500)
    log._member.core.journal.wal.fail("the disk is gone")
    with pytest.raises(LogUnavailable):
        await log.append(b"y")
    await until(lambda: log._failure is not None)
    with pytest.raises(LogUnavailable, match="the disk is gone"):
        await anext(log.entries(log.status.commit))
    await log.close()
    (tmp_path / "a").chmod(0o700)


class HeldExecutor(ThreadPoolExecutor):
    """Runs what it is given, and holds the answers back until it is told."""

    def __init__(self) -> None:
        super().__init__(max_workers=2)
        self.ran = threading.Event()
        self.go = threading.Event()

    def submit(self, work: Any, /, *arguments: Any, **options: Any) -> Future[Any]:
        def run() -> Any:
            try:
                return work(*arguments, **options)
            finally:
                self.ran.set()
                self.go.wait(DEADLINE_SECONDS)

        return super().submit(run)


async def test_what_was_read_before_it_was_taken_back_is_not_shown(tmp_path: Path) -> None:
    """A reader reads from the disk while the newest entries are those of a leader that died. Before it goes on, others
    have come in their place and are committed."""
    hub = Hub()
    async with cluster(tmp_path, hub) as logs:
        (old,) = (name for name in NAMES if logs[name].status.is_steward)
        others = [name for name in NAMES if name != old]
        hub.cut = {pair for other in others for pair in ((old, other), (other, old))}
        with pytest.raises(LogUnavailable):
            await logs[old].append(b"lost")
        await logs[old].close()
        logs[old] = open_member(tmp_path, hub, old)
        executor = HeldExecutor()
        asyncio.get_running_loop().set_default_executor(executor)
        reading = asyncio.create_task(read(logs[old], 0, 1))
        await until(executor.ran.is_set)
        await until_usable(logs[others[0]])
        kept = await logs[others[0]].append(b"kept")
        hub.cut = set()
        await until(lambda: logs[old]._commit >= kept)
        executor.go.set()
        assert [entry.payload for entry in await reading] == [b"kept"]
