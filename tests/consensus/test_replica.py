"""Log and state together: exactly once, caught up after a restart, trimmed below a checkpoint, stopped for good."""

import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from consensus.commands import MAX_COMMAND_BYTES, Reason, StageContent, Status
from consensus.errors import InvalidCommand, LogTrimmed, LogUnavailable, StateRefused
from consensus.replica import Replica
from consensus.solo import SoloLog
from consensus.state import State
from tests.consensus.commands_made import REPOSITORY, digest_of, mount, record
from tests.consensus.wal_files import files, replace_open_file

CLUSTER = "c" * 32
DEADLINE_SECONDS = 20.0


@asynccontextmanager
async def replica_in(folder: Path) -> AsyncIterator[Replica]:
    log = SoloLog.open(folder / "wal", segment_bytes=16 * 1024)
    state = State.open(folder / "state", CLUSTER)
    try:
        async with asyncio.timeout(DEADLINE_SECONDS), Replica.open(log, state) as replica:
            await replica.wait_applied(await replica.barrier())
            yield replica
    finally:
        await log.close()
        state.close()


def hash_of(folder: Path) -> str:
    state = State.open(folder, CLUSTER)
    try:
        return state.hash()
    finally:
        state.close()


async def hash_from_scratch(folder: Path) -> str:
    """What applying the whole log to an empty state comes to."""
    log = SoloLog.open(folder / "wal")
    state = State.open(folder / "scratch", CLUSTER)
    async with asyncio.timeout(DEADLINE_SECONDS), Replica.open(log, state) as replica:
        await replica.wait_applied(log.status.commit)
    await log.close()
    state.close()
    return hash_of(folder / "scratch")


async def test_a_proposal_is_answered_when_it_is_applied(tmp_path: Path) -> None:
    async with replica_in(tmp_path) as replica:
        proposer = await replica.enrol("test")
        outcome = await replica.propose(proposer, 1, 0, record(1))
        assert (outcome.status, outcome.created) == (Status.DONE, True)
        assert replica.applied == outcome.index == replica.status.commit
        missing = await replica.propose(proposer, 2, 1, mount(99))
        assert (missing.status, missing.reason) == (Status.NOT_FOUND, Reason.BLOB_UNKNOWN)


async def test_many_proposals_at_once_get_each_their_own_outcome(tmp_path: Path) -> None:
    async with replica_in(tmp_path) as replica:
        proposer = await replica.enrol("test")
        outcomes = await asyncio.gather(*(replica.propose(proposer, n, 0, record(n)) for n in range(1, 301)))
        assert all(outcome.status is Status.DONE and outcome.created for outcome in outcomes)
        assert len({outcome.index for outcome in outcomes}) == 300
        again = await asyncio.gather(*(replica.propose(proposer, n, 0, record(n)) for n in range(1, 301)))
        assert again == outcomes


async def test_asked_twice_at_the_same_time_it_is_applied_once(tmp_path: Path) -> None:
    async with replica_in(tmp_path) as replica:
        proposer = await replica.enrol("test")
        outcomes = await asyncio.gather(*(replica.propose(proposer, 1, 0, record(1)) for _ in range(10)))
        assert len(set(outcomes)) == 1
        assert outcomes[0].created


async def test_asked_again_after_a_restart_the_outcome_is_the_same(tmp_path: Path) -> None:
    async with replica_in(tmp_path) as replica:
        proposer = await replica.enrol("test")
        first = await replica.propose(proposer, 1, 0, record(1))
    async with replica_in(tmp_path) as replica:
        assert await replica.propose(proposer, 1, 0, record(1)) == first
        await replica.propose(proposer, 2, 1, record(2))
        late = await replica.propose(proposer, 1, 0, record(1))
        assert (late.status, late.reason) == (Status.REFUSED, Reason.ALREADY_ANSWERED)


async def test_enrolling_gives_an_identity_each_time(tmp_path: Path) -> None:
    async with replica_in(tmp_path) as replica:
        assert len(set(await asyncio.gather(*(replica.enrol("same") for _ in range(20))))) == 20
        for name in ("", "x" * 1000, "line\nbreak"):
            with pytest.raises(InvalidCommand):
                await replica.enrol(name)


async def test_a_command_over_its_size_is_refused_before_the_log(tmp_path: Path) -> None:
    async with replica_in(tmp_path) as replica:
        before = await replica.barrier()
        large = StageContent(REPOSITORY, digest_of(1), 0, 2, bytes(MAX_COMMAND_BYTES))
        with pytest.raises(InvalidCommand):
            await replica.propose(1, 1, 0, large)
        assert await replica.barrier() == before


async def test_an_entry_nobody_can_read_is_passed_over(tmp_path: Path) -> None:
    log = SoloLog.open(tmp_path / "wal")
    await log.append(b"from another age")
    await log.close()
    async with replica_in(tmp_path) as replica:
        proposer = await replica.enrol("test")
        assert (await replica.propose(proposer, 1, 0, record(1))).index == 3


async def test_waiting_for_an_index_ends_when_it_is_applied(tmp_path: Path) -> None:
    async with replica_in(tmp_path) as replica:
        proposer = await replica.enrol("test")
        waiting = [asyncio.create_task(replica.wait_applied(replica.applied + ahead)) for ahead in (0, 1, 2)]
        await replica.propose(proposer, 1, 0, record(1))
        await asyncio.gather(*waiting[:2])
        assert not waiting[2].done()
        await replica.propose(proposer, 2, 0, record(2))
        await waiting[2]


async def test_a_cancelled_proposal_disturbs_no_other(tmp_path: Path) -> None:
    async with replica_in(tmp_path) as replica:
        proposer = await replica.enrol("test")
        tasks = [asyncio.create_task(replica.propose(proposer, n, 0, record(n))) for n in range(1, 41)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result).__name__ for result in results] == ["CancelledError", "Outcome"] * 20
        again = await asyncio.gather(*(replica.propose(proposer, n, 0, record(n)) for n in range(1, 41)))
        assert again[1::2] == results[1::2]
        assert all(outcome.created for outcome in again)


async def test_a_lost_state_is_made_again_from_the_log(tmp_path: Path) -> None:
    async with replica_in(tmp_path) as replica:
        proposer = await replica.enrol("test")
        await asyncio.gather(*(replica.propose(proposer, n, n // 2, record(n % 50)) for n in range(1, 2500)))
    assert await hash_from_scratch(tmp_path) == hash_of(tmp_path / "state")


class WatchedState(State):
    """Remembers up to where it is durable."""

    durable = 0

    def checkpoint(self) -> int:
        self.durable = super().checkpoint()
        return self.durable


class WatchedLog(SoloLog):
    """Remembers what it was asked to trim, and what was durable then."""

    def watch(self, state: WatchedState) -> None:
        self.state = state
        self.trims: list[tuple[int, int]] = []
        self.trimmed = asyncio.Condition()

    async def trim(self, upto: int, *, keep_bytes: int = 0) -> None:
        self.trims.append((upto, self.state.durable))
        await super().trim(upto, keep_bytes=keep_bytes)
        async with self.trimmed:
            self.trimmed.notify_all()

    async def until_trimmed(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_SECONDS), self.trimmed:
            await self.trimmed.wait_for(condition)


@asynccontextmanager
async def watched(
    folder: Path, *, keep_bytes: int, checkpoint_seconds: float
) -> AsyncIterator[tuple[Replica, WatchedLog]]:
    log, state = WatchedLog.open(folder / "wal", segment_bytes=8 * 1024), WatchedState.open(folder / "state", CLUSTER)
    assert isinstance(state, WatchedState)
    log.watch(state)
    async with Replica.open(log, state, keep_bytes=keep_bytes, checkpoint_seconds=checkpoint_seconds) as replica:
        yield replica, log
    await log.close()
    state.close()


async def test_the_log_is_trimmed_below_a_checkpoint_and_keeps_its_bytes(tmp_path: Path) -> None:
    keep_bytes = 64 * 1024
    async with watched(tmp_path, keep_bytes=keep_bytes, checkpoint_seconds=3600) as (replica, log):
        proposer = await replica.enrol("test")
        for n in range(1, 1501):
            await replica.propose(proposer, n, n - 1, record(n))
        await log.until_trimmed(lambda: log.status.first > 500)
        assert all(0 < upto <= durable for upto, durable in log.trims)
        assert log.status.first - 1 <= log.state.durable
        kept = sum(path.stat().st_size for path in files(tmp_path / "wal"))
        assert keep_bytes <= kept <= 2 * keep_bytes
    async with replica_in(tmp_path) as replica:
        assert replica.applied == 1501
        assert (await replica.propose(proposer, 1500, 0, record(1500))).created


async def test_a_checkpoint_is_also_a_matter_of_time(tmp_path: Path) -> None:
    async with watched(tmp_path, keep_bytes=2**30, checkpoint_seconds=0.01) as (replica, log):
        proposer = await replica.enrol("test")
        await log.until_trimmed(lambda: log.state.durable == proposer)
        await replica.propose(proposer, 1, 0, record(1))
        await log.until_trimmed(lambda: log.state.durable == proposer + 1)
        assert log.trims[-1] == (proposer + 1, proposer + 1)


class EagerLog(SoloLog):
    """Shows entries to readers before it answers their append, as an engine with a connection to elsewhere may do."""

    gate: Callable[[int], asyncio.Future[None]]

    async def append(self, payload: bytes) -> int:
        index = await super().append(payload)
        await self.gate(index)
        return index


async def test_an_outcome_that_comes_before_its_index_is_kept_for_a_while(tmp_path: Path) -> None:
    log, state = EagerLog.open(tmp_path / "wal"), State.open(tmp_path / "state", CLUSTER)
    async with asyncio.timeout(DEADLINE_SECONDS), Replica.open(log, state) as replica:
        log.gate = lambda index: asyncio.ensure_future(replica.wait_applied(index))
        proposer = await replica.enrol("test")
        first = await replica.propose(proposer, 1, 0, record(1))
        assert first.created
        log.gate = lambda index: asyncio.ensure_future(replica.wait_applied(index + 2000))
        overtaken = asyncio.create_task(replica.propose(proposer, 2, 0, record(2)))
        await replica.wait_applied(first.index + 1)
        await asyncio.gather(*(SoloLog.append(log, b"%d" % number) for number in range(2000)))
        with pytest.raises(LogUnavailable, match="ask again"):
            await overtaken
        log.gate = lambda index: asyncio.ensure_future(replica.wait_applied(index))
        again = await replica.propose(proposer, 2, 0, record(2))
        assert (again.created, again.index) == (True, first.index + 1)
    await log.close()
    state.close()


async def test_a_state_ahead_of_its_log_is_refused(tmp_path: Path) -> None:
    async with replica_in(tmp_path) as replica:
        proposer = await replica.enrol("test")
        await replica.propose(proposer, 1, 0, record(1))
    for path in files(tmp_path / "wal"):
        path.unlink()
    with pytest.raises(StateRefused, match=r"applied entry 2, but the log ends at entry 0.*[Rr]estore"):
        async with replica_in(tmp_path):
            pass


async def test_a_state_behind_what_the_log_keeps_is_refused(tmp_path: Path) -> None:
    log = SoloLog.open(tmp_path / "wal", segment_bytes=1024)
    for number in range(30):
        await log.append(b"%d" % number * 100)
    await log.trim(29)
    await log.close()
    with pytest.raises(LogTrimmed, match=r"the log begins at entry \d+.*backup"):
        async with replica_in(tmp_path):
            pass


async def test_a_state_that_raises_stops_everything_for_good(tmp_path: Path) -> None:
    async with replica_in(tmp_path) as replica:
        proposer = await replica.enrol("test")
        await replica.propose(proposer, 1, 0, record(1))
        database = sqlite3.connect(next((tmp_path / "state").glob("db-*.sqlite")))
        database.execute("DROP TABLE proposers")
        database.close()
        follower = asyncio.create_task(replica.wait_applied(10**6))
        proposals = (replica.propose(proposer, number, 0, record(number)) for number in range(2, 30))
        results = await asyncio.gather(*proposals, return_exceptions=True)
        assert [type(result) for result in results] == [LogUnavailable] * 28
        assert isinstance(await replica.failed, sqlite3.Error)
        for refused in (replica.propose(proposer, 30, 0, record(30)), replica.barrier(), follower):
            with pytest.raises(LogUnavailable, match="stopped for good"):
                await refused


async def test_a_failing_disk_stops_everything_for_good(tmp_path: Path) -> None:
    async with replica_in(tmp_path) as replica:
        proposer = await replica.enrol("test")
        replace_open_file(files(tmp_path / "wal")[0], "/dev/null")
        with pytest.raises(LogUnavailable):
            await replica.propose(proposer, 1, 0, record(1))
        assert isinstance(await replica.failed, LogUnavailable)
        with pytest.raises(LogUnavailable, match="cannot sync"):
            await replica.wait_applied(10**6)
    async with replica_in(tmp_path) as replica:
        assert (await replica.propose(proposer, 1, 0, record(1))).created


async def test_a_log_closed_under_it_stops_it(tmp_path: Path) -> None:
    log, state = SoloLog.open(tmp_path / "wal"), State.open(tmp_path / "state", CLUSTER)
    async with asyncio.timeout(DEADLINE_SECONDS), Replica.open(log, state) as replica:
        await replica.enrol("test")
        await log.close()
        assert "closed" in str(await replica.failed)
    state.close()


async def test_leaving_ends_whoever_waits(tmp_path: Path) -> None:
    async with replica_in(tmp_path) as replica:
        follower = asyncio.create_task(replica.wait_applied(10**6))
        await asyncio.sleep(0)
    with pytest.raises(LogUnavailable, match="closed"):
        await follower
    with pytest.raises(LogUnavailable, match="closed"):
        await replica.propose(1, 1, 0, record(1))
    assert not replica.failed.done()


PROPOSE_AND_TELL = """
import asyncio, sys
from pathlib import Path
from consensus.replica import Replica
from consensus.solo import SoloLog
from consensus.state import State
from tests.consensus.commands_made import record

async def main(folder, keep_bytes, proposer, sequence):
    log = SoloLog.open(folder / "wal", segment_bytes=16 * 1024)
    state = State.open(folder / "state", "c" * 32)
    async with Replica.open(log, state, keep_bytes=keep_bytes) as replica:
        proposer = proposer or await replica.enrol("killed")

        async def one():
            nonlocal sequence
            while True:
                sequence += 1
                mine = sequence
                outcome = await replica.propose(proposer, mine, 0, record(mine % 1000))
                print(proposer, mine, outcome.index, outcome.created, flush=True)

        await asyncio.gather(*(one() for _ in range(20)))

asyncio.run(main(Path(sys.argv[1]), *map(int, sys.argv[2:])))
"""


def propose_until_killed(
    folder: Path, lines: int, *, keep_bytes: int, proposer: int = 0, sequence: int = 0
) -> list[list[str]]:
    """What a process that proposes 20 commands at a time had been answered when it was killed."""
    with subprocess.Popen(
        [sys.executable, "-c", PROPOSE_AND_TELL, str(folder), str(keep_bytes), str(proposer), str(sequence)],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        told = [process.stdout.readline() for _ in range(lines)]
        process.kill()
        told += process.stdout.readlines()
    return [line.split() for line in told if line.endswith("\n")]


async def test_killed_at_any_moment_every_answer_given_stays_true(tmp_path: Path) -> None:
    answers: dict[int, tuple[int, bool]] = {}
    proposer, sequence = 0, 0
    for lines in (1, 60, 333, 1200):
        told = await asyncio.to_thread(
            propose_until_killed, tmp_path, lines, keep_bytes=64 * 1024, proposer=proposer, sequence=sequence
        )
        for identity, asked, index, created in told:
            proposer = int(identity)
            answers[int(asked)] = (int(index), created == "True")
        sequence = max(answers) + 100
        async with replica_in(tmp_path) as replica:
            again = await asyncio.gather(
                *(replica.propose(proposer, asked, 0, record(asked % 1000)) for asked in answers)
            )
            assert [(outcome.index, outcome.created) for outcome in again] == list(answers.values())
            assert replica.applied == replica.status.commit
    assert sum(created for _, created in answers.values()) <= 1000


async def test_killed_the_state_is_still_what_its_log_says(tmp_path: Path) -> None:
    await asyncio.to_thread(propose_until_killed, tmp_path, 100, keep_bytes=2**30)
    async with replica_in(tmp_path) as replica:
        assert replica.status.first == 1
    assert await hash_from_scratch(tmp_path) == hash_of(tmp_path / "state")
