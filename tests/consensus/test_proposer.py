"""Exactly once to a real replica, over a channel that loses requests and answers."""

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.commands import MAX_COMMAND_BYTES, Command, Outcome, Reason, StageContent, Status
from consensus.errors import InvalidCommand, LogFull, LogUnavailable
from consensus.proposer import MAX_IN_FLIGHT, Proposer
from consensus.replica import Replica
from consensus.solo import SoloLog
from consensus.state import State
from tests.consensus.commands_made import REPOSITORY, digest_of, mount, record

T = TypeVar("T")
DEADLINE_SECONDS = 30.0
FINE, LOST, UNANSWERED, FULL, STUCK = "fine", "lost", "unanswered", "full", "stuck"


class FaultyChannel:
    """A way to `replica` on which attempts go as `faults` says, one after the other, and then well.

    Holds its proposer to the promise that no watermark reaches a sequence that is under way.
    """

    def __init__(self, replica: Replica, faults: Iterable[str] = ()) -> None:
        self.replica = replica
        self.faults = iter(faults)
        self.enrolled: list[int] = []
        self.attempts: list[tuple[int, int, int]] = []
        self.under_way: Counter[tuple[int, int]] = Counter()
        self.failing = asyncio.Event()

    async def enrol(self, name: str) -> int:
        proposer = await self._carry(lambda: self.replica.enrol(name))
        self.enrolled.append(proposer)
        return proposer

    async def propose(self, proposer: int, sequence: int, acknowledged: int, command: Command) -> Outcome:
        self.attempts.append((proposer, sequence, acknowledged))
        self.under_way[proposer, sequence] += 1
        assert all(acknowledged < other for same, other in self.under_way if same == proposer)
        try:
            return await self._carry(lambda: self.replica.propose(proposer, sequence, acknowledged, command))
        finally:
            del self.under_way[proposer, sequence]

    async def _carry(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        fault = next(self.faults, FINE)
        if fault != FINE:
            self.failing.set()
        if fault == LOST:
            raise LogUnavailable("the request was lost")
        if fault == FULL:
            raise LogFull("no room")
        if fault == STUCK:
            await asyncio.Event().wait()
        answer = await call()
        if fault == UNANSWERED:
            raise LogUnavailable("the answer was lost")
        return answer


@asynccontextmanager
async def replica_in(folder: Path) -> AsyncIterator[Replica]:
    log, state = SoloLog.open(folder / "wal"), State.open(folder / "state", "c" * 32)
    try:
        async with asyncio.timeout(DEADLINE_SECONDS), Replica.open(log, state) as replica:
            yield replica
    finally:
        await log.close()
        state.close()


async def test_a_replica_is_a_channel(tmp_path: Path) -> None:
    async with replica_in(tmp_path) as replica:
        proposer = Proposer(replica, "test")
        assert (await proposer.propose(record(1))).created
        assert not (await proposer.propose(record(1))).created
        assert (await proposer.propose(mount(2))).reason is Reason.BLOB_UNKNOWN


async def test_one_identity_serves_everyone(tmp_path: Path) -> None:
    async with replica_in(tmp_path) as replica:
        channel = FaultyChannel(replica)
        proposer = Proposer(channel, "test")
        outcomes = await asyncio.gather(*(proposer.propose(record(number)) for number in range(300)))
        assert all(outcome.created for outcome in outcomes)
        assert len(channel.enrolled) == 1
        assert sorted(sequence for _, sequence, _ in channel.attempts) == list(range(1, 301))


async def test_the_watermark_follows_the_answers(tmp_path: Path) -> None:
    async with replica_in(tmp_path) as replica:
        channel = FaultyChannel(replica)
        proposer = Proposer(channel, "test")
        for number in range(5):
            await proposer.propose(record(number))
        assert [(sequence, acknowledged) for _, sequence, acknowledged in channel.attempts] == [
            (number + 1, number) for number in range(5)
        ]


@pytest.mark.parametrize(
    "faults",
    [(UNANSWERED,), (LOST,), (UNANSWERED, LOST, UNANSWERED), (UNANSWERED, FULL), (LOST, FULL, UNANSWERED)],
    ids=", ".join,
)
async def test_an_unanswered_command_is_asked_again_under_the_same_id(tmp_path: Path, faults: tuple[str, ...]) -> None:
    async with replica_in(tmp_path) as replica:
        channel = FaultyChannel(replica, (FINE, *faults))
        outcome = await Proposer(channel, "test").propose(record(1))
        assert outcome.created
        assert [sequence for _, sequence, _ in channel.attempts] == [1] * (len(faults) + 1)


async def test_enrolling_is_asked_again_until_it_succeeds(tmp_path: Path) -> None:
    async with replica_in(tmp_path) as replica:
        channel = FaultyChannel(replica, (LOST, UNANSWERED, LOST))
        proposer = Proposer(channel, "test")
        outcomes = await asyncio.gather(*(proposer.propose(record(number)) for number in range(20)))
        assert all(outcome.created for outcome in outcomes)
        assert len(channel.enrolled) == 1


async def test_a_full_log_is_final_when_nothing_was_asked_before(tmp_path: Path) -> None:
    async with replica_in(tmp_path) as replica:
        channel = FaultyChannel(replica, (FINE, FULL))
        proposer = Proposer(channel, "test")
        with pytest.raises(LogFull):
            await proposer.propose(record(1))
        assert (await proposer.propose(record(1))).created
        assert [attempt[1:] for attempt in channel.attempts] == [(1, 0), (2, 1)]


async def test_a_command_that_cannot_be_is_final(tmp_path: Path) -> None:
    async with replica_in(tmp_path) as replica:
        channel = FaultyChannel(replica)
        proposer = Proposer(channel, "test")
        with pytest.raises(InvalidCommand):
            await proposer.propose(StageContent(REPOSITORY, digest_of(1), 0, 2, bytes(MAX_COMMAND_BYTES)))
        assert (await proposer.propose(record(1))).created
        assert [attempt[1:] for attempt in channel.attempts] == [(1, 0), (2, 1)]


@pytest.mark.parametrize("faults", [itertools.repeat(LOST), (FINE, *[LOST] * 1000), (STUCK,), (FINE, STUCK)])
async def test_without_an_answer_it_gives_up_at_the_deadline(tmp_path: Path, faults: Iterable[str]) -> None:
    async with replica_in(tmp_path) as replica:
        channel = FaultyChannel(replica, faults)
        proposer = Proposer(channel, "test", deadline_seconds=0.2)
        with pytest.raises(LogUnavailable, match=r"no answer within 0\.2 s"):
            await proposer.propose(record(1))
        channel.faults = iter(())
        outcome = await proposer.propose(record(2))
        assert outcome.created
        proposer_id, sequence, acknowledged = channel.attempts[-1]
        assert acknowledged == sequence - 1
        late = await replica.propose(proposer_id, sequence - 1, 0, record(1))
        assert late.reason in (Reason.ALREADY_ANSWERED, Reason.NONE)


async def test_a_forgotten_proposer_enrols_again(tmp_path: Path) -> None:
    async with replica_in(tmp_path / "one") as one, replica_in(tmp_path / "two") as two:
        await one.enrol("another, so that the next identity is unknown to two")
        channel = FaultyChannel(one)
        proposer = Proposer(channel, "test")
        await proposer.propose(record(1))
        channel.replica = two
        outcomes = await asyncio.gather(*(proposer.propose(record(number)) for number in range(20)))
        assert all(outcome.created for outcome in outcomes)
        assert len(channel.enrolled) == 2


async def test_a_forgotten_proposer_does_not_repeat_what_may_have_happened(tmp_path: Path) -> None:
    async with replica_in(tmp_path / "one") as one, replica_in(tmp_path / "two") as two:
        channel = FaultyChannel(two, (FINE, LOST))
        await two.enrol("another, so that the next identity is unknown to one")
        proposer = Proposer(channel, "test")
        proposing = asyncio.create_task(proposer.propose(record(1)))
        await channel.failing.wait()
        channel.replica = one
        with pytest.raises(LogUnavailable, match="unknown"):
            await proposing
        assert (await proposer.propose(record(1))).created
        assert len(channel.enrolled) == 2


class Forgetful(FaultyChannel):
    """Gives out identities that nobody knows."""

    async def enrol(self, name: str) -> int:
        self.enrolled.append(10**9)
        return 10**9


async def test_it_does_not_enrol_for_ever(tmp_path: Path) -> None:
    async with replica_in(tmp_path) as replica:
        channel = Forgetful(replica)
        with pytest.raises(LogUnavailable, match="nothing was applied"):
            await Proposer(channel, "test").propose(record(1))
        assert len(channel.enrolled) == 3


async def test_a_cancelled_caller_does_not_hold_the_watermark(tmp_path: Path) -> None:
    async with replica_in(tmp_path) as replica:
        channel = FaultyChannel(replica, (FINE, FINE, STUCK))
        proposer = Proposer(channel, "test")
        await proposer.propose(record(1))
        stuck = asyncio.create_task(proposer.propose(record(2)))
        await channel.failing.wait()
        await proposer.propose(record(3))
        await proposer.propose(record(4))
        assert channel.attempts[-1][1:] == (4, 1)
        stuck.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stuck
        await proposer.propose(record(5))
        assert channel.attempts[-1][1:] == (5, 4)


async def test_a_bounded_number_is_under_way(tmp_path: Path) -> None:
    async with replica_in(tmp_path) as replica:
        channel = FaultyChannel(replica, (FINE, FINE, *[STUCK] * MAX_IN_FLIGHT))
        proposer = Proposer(channel, "test")
        await proposer.propose(mount(0))
        tasks = [asyncio.create_task(proposer.propose(mount(number))) for number in range(MAX_IN_FLIGHT + 100)]
        for _ in range(len(tasks)):
            await asyncio.sleep(0)
        assert channel.under_way.total() == MAX_IN_FLIGHT
        for task in tasks[:100]:
            task.cancel()
        assert all(outcome.reason is Reason.BLOB_UNKNOWN for outcome in await asyncio.gather(*tasks[-100:]))
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


@settings(max_examples=40, deadline=None)
@given(
    faults=st.lists(st.sampled_from([FINE, LOST, UNANSWERED, FULL]), max_size=60),
    cancelled=st.sets(st.integers(0, 29), max_size=10),
    turns=st.integers(0, 30),
)
def test_whatever_is_lost_each_answer_is_that_of_one_application(
    tmp_path_factory: pytest.TempPathFactory, faults: list[str], cancelled: set[int], turns: int
) -> None:
    folder = tmp_path_factory.mktemp("lost")
    asyncio.run(_propose_thirty(folder, faults, cancelled, turns))


async def _propose_thirty(folder: Path, faults: list[str], cancelled: set[int], turns: int) -> None:
    async with replica_in(folder) as replica:
        channel = FaultyChannel(replica, (FINE, *faults))
        proposer = Proposer(channel, "test")
        tasks = [asyncio.create_task(proposer.propose(record(number))) for number in range(30)]
        for _ in range(turns):
            await asyncio.sleep(0)
        for number in cancelled:
            tasks[number].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for number, result in enumerate(results):
            if isinstance(result, Outcome):
                assert (result.status, result.created) == (Status.DONE, True)
            elif isinstance(result, LogFull):
                assert (await proposer.propose(record(number))).created
            else:
                assert isinstance(result, asyncio.CancelledError)
                assert number in cancelled
        await proposer.propose(record(99))
        _, sequence, acknowledged = channel.attempts[-1]
        assert acknowledged == sequence - 1
