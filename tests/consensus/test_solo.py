"""The engine of a node that stands alone passes the suite; what only it promises comes below."""

import asyncio
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from consensus.errors import LogCorrupt, LogUnavailable
from consensus.log import Entry, Log
from consensus.solo import MAX_PENDING_BYTES, SoloLog
from consensus.tail import Tail
from tests.consensus.log_suite import LogSuite, OpenLog, fill, read
from tests.consensus.wal_files import files, replace_open_file

MIB = 1024 * 1024


class TestSoloLog(LogSuite):
    @pytest.fixture
    def open_log(self, tmp_path: Path) -> OpenLog:
        async def open_log() -> Log:
            return SoloLog.open(tmp_path / "wal", segment_bytes=32 * 1024)

        return open_log


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_it_is_its_own_steward(tmp_path: Path) -> None:
    log = SoloLog.open(tmp_path / "wal", node_id="node-7")
    assert [await log.append(b"x") for _ in range(3)] == [1, 2, 3]
    status = log.status
    assert (status.term, status.steward, status.is_steward, status.first, status.commit) == (1, "node-7", True, 1, 3)
    await log.close()


async def test_old_entries_are_read_from_the_files_again_and_again(tmp_path: Path) -> None:
    log = SoloLog.open(tmp_path / "wal", segment_bytes=MIB)
    await asyncio.gather(*(log.append(number.to_bytes(4, "big") * 16384) for number in range(400)))
    for _ in range(2):
        found = await read(log, 0, 400)
        assert [entry.payload[:4] for entry in found] == [number.to_bytes(4, "big") for number in range(400)]
    await log.close()


def test_what_is_kept_in_memory_is_bounded() -> None:
    tail = Tail()
    entries = [Entry(index, bytes(2 * MIB)) for index in range(1, 21)]
    for entry in entries:
        tail.add(entry)
    assert tail.batch(1) == ()
    assert tail.batch(15) == tuple(entries[15:17])
    assert tail.batch(20) == ()


async def test_beyond_the_bound_appends_are_refused_at_once(tmp_path: Path) -> None:
    log = SoloLog.open(tmp_path / "wal")
    payload = bytes(4 * MIB)
    fitting = MAX_PENDING_BYTES // len(payload) - 1
    appends = [asyncio.create_task(log.append(payload)) for _ in range(fitting + 5)]
    results = await asyncio.gather(*appends, return_exceptions=True)
    refused = [result for result in results if isinstance(result, LogUnavailable)]
    assert 4 <= len(refused) <= 5
    assert "waiting for the disk" in str(refused[0])
    for _ in range(2):
        assert await log.append(payload) == log.status.commit
    await log.close()


async def test_a_second_process_is_kept_out(tmp_path: Path) -> None:
    log = SoloLog.open(tmp_path / "wal")
    program = f"""
from pathlib import Path
from consensus.errors import LogUnavailable
from consensus.solo import SoloLog
try:
    SoloLog.open(Path({str(tmp_path / "wal")!r}), lock_seconds=0.1)
except LogUnavailable as error:
    print(error)
"""
    second = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "another process has held the log" in second.stdout
    await log.close()
    third = SoloLog.open(tmp_path / "wal", lock_seconds=0)
    await third.close()


async def test_it_waits_for_a_predecessor_to_let_go(tmp_path: Path) -> None:
    first = SoloLog.open(tmp_path / "wal")
    opening = asyncio.create_task(asyncio.to_thread(SoloLog.open, tmp_path / "wal", lock_seconds=10))
    await first.append(b"x")
    await first.close()
    second = await opening
    assert second.status.commit == 1
    await second.close()


async def test_damage_under_a_running_node_reaches_the_reader(tmp_path: Path) -> None:
    log = SoloLog.open(tmp_path / "wal", segment_bytes=32 * 1024)
    await fill(log, 100, 1024)
    await log.close()
    log = SoloLog.open(tmp_path / "wal", segment_bytes=32 * 1024)
    with (tmp_path / "wal" / f"{1:020d}.log").open("rb+") as file:
        file.seek(5000)
        file.write(b"\xff\xff")
    with pytest.raises(LogCorrupt, match="restore"):
        await read(log, 0, 10)
    assert len(await read(log, 50, 50)) == 50
    await log.close()


async def test_opening_needs_no_event_loop_and_leaves_nothing_open(tmp_path: Path) -> None:
    before = open_files()
    for _ in range(5):
        log = await asyncio.to_thread(SoloLog.open, tmp_path / "wal")
        await log.close()
    assert open_files() <= before
    assert [thread.name for thread in threading.enumerate() if thread.name == "log-writer"] == []


async def test_a_failed_sync_ends_it_for_good_for_everyone(tmp_path: Path) -> None:
    log = SoloLog.open(tmp_path / "wal")
    await log.append(b"x")
    reading = asyncio.create_task(read(log, 0, 2))
    replace_open_file(files(tmp_path / "wal")[0], "/dev/null")
    results = await asyncio.gather(*(log.append(b"y") for _ in range(20)), return_exceptions=True)
    assert [type(result) for result in results] == [LogUnavailable] * 20
    with pytest.raises(LogUnavailable, match="cannot sync"):
        await reading
    for refused in (log.append(b"z"), log.barrier(), log.trim(1), read(log, 0, 1)):
        with pytest.raises(LogUnavailable, match="cannot sync"):
            await refused
    await log.close()


async def test_a_full_disk_refuses_and_goes_on(tmp_path: Path) -> None:
    """In a process of its own, because the limit on file sizes that stands for a full disk is the process's."""
    program = f"""
import asyncio, resource
from pathlib import Path
from consensus.errors import LogFull
from consensus.solo import SoloLog
async def main():
    log = SoloLog.open(Path({str(tmp_path / "wal")!r}))
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    large = await asyncio.gather(*(log.append(bytes(30_000)) for _ in range(5)), return_exceptions=True)
    assert [type(error) for error in large] == [LogFull] * 5, large
    print(await log.append(b"small"))
    await log.close()
asyncio.run(main())
"""
    said = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert said.stdout == "1\n"
    log = SoloLog.open(tmp_path / "wal")
    assert [entry.payload for entry in await read(log, 0, 1)] == [b"small"]
    await log.close()
