from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from consensus.errors import LogUnavailable
from consensus.log import LogStatus
from consensus.replica import Replica
from consensus.solo import SoloLog
from consensus.state import State
from node import counter as module
from node.counter import Counter


class Deaf(SoloLog):
    """A log whose steward does not answer barriers while `deaf`."""

    deaf = False
    barriers = 0

    async def barrier(self) -> int:
        self.barriers += 1
        if self.deaf:
            raise LogUnavailable("no leader is known")
        return await super().barrier()

    @property
    def status(self) -> LogStatus:
        status = super().status
        return LogStatus(status.term, None, False, status.first, status.commit) if self.deaf else status


@asynccontextmanager
async def replicated(folder: Path) -> AsyncIterator[tuple[Deaf, Replica]]:
    log, state = Deaf.open(folder / "wal"), State.open(folder / "state", "c" * 32)
    try:
        async with Replica.open(log, state) as replica:
            yield log, replica
    finally:
        await log.close()
        state.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  nothing tells of it
            await asyncio.sleep(0.01)


async def test_it_reports_once_when_it_is_first_current(tmp_path: Path) -> None:
    async with replicated(tmp_path) as (log, replica):
        log.deaf = True
        counter = Counter(replica)
        reports: list[bool] = []
        reported = asyncio.Event()

        def report() -> None:
            reports.append(counter.current)
            reported.set()

        async with counter.kept_current(report):
            await until(lambda: log.barriers >= 3)
            assert (reports, counter.current) == ([], False)
            log.deaf = False
            await reported.wait()
            before = log.barriers
            await until(lambda: log.barriers >= before + 2)
        assert reports == [True]


async def test_it_is_current_for_a_while_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CURRENT_SECONDS", 0.05)
    monkeypatch.setattr(module, "CHECK_SECONDS", 0.01)
    async with replicated(tmp_path) as (log, replica):
        counter = Counter(replica)
        reported = asyncio.Event()
        async with counter.kept_current(reported.set):
            await reported.wait()
            log.deaf = True
            await until(lambda: not counter.current)
            log.deaf = False
            await until(lambda: counter.current)


async def test_a_sync_waits_no_longer_than_its_deadline(tmp_path: Path) -> None:
    class Stuck(Replica):
        async def sync(self) -> int:
            return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

    log, state = SoloLog.open(tmp_path / "wal"), State.open(tmp_path / "state", "c" * 32)
    try:
        async with Stuck.open(log, state) as replica:
            with pytest.raises(LogUnavailable, match=r"not sure within 0\.01 s"):
                await Counter(replica, sync_seconds=0.01).sync()
    finally:
        await log.close()
        state.close()


async def test_gateways_share_rounds(tmp_path: Path) -> None:
    async with replicated(tmp_path) as (log, replica):
        counter = Counter(replica)
        await asyncio.gather(*(counter.sync() for _ in range(100)))
        assert log.barriers == 1
