"""Who joins a round that began before it came would be told something old: it never happens."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.rounds import Rounds


class Scripted:
    """Rounds that end when the test says so; each comes to its own number."""

    def __init__(self, at_once: int = 1) -> None:
        self.rounds = Rounds(self._run, at_once=at_once)
        self.begun = 0
        self.under_way: deque[asyncio.Future[int]] = deque()

    async def _run(self) -> int:
        self.begun += 1
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.under_way.append(future)
        return await future

    def end(self, error: Exception | None = None) -> None:
        future = self.under_way.popleft()
        if error:
            future.set_exception(error)
        else:
            future.set_result(self.begun - len(self.under_way))


async def settle() -> None:
    """Everything that can go on without the test does."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_who_comes_together_shares_a_round() -> None:
    script = Scripted()
    calls = [asyncio.create_task(script.rounds.join()) for _ in range(100)]
    await settle()
    assert script.begun == 1
    script.end()
    assert set(await asyncio.gather(*calls)) == {1}
    await settle()
    assert script.begun == 1


async def test_who_comes_during_a_round_waits_for_the_next() -> None:
    script = Scripted()
    first = asyncio.create_task(script.rounds.join())
    await settle()
    late = [asyncio.create_task(script.rounds.join()) for _ in range(100)]
    await settle()
    assert script.begun == 1
    script.end()
    assert await first == 1
    await settle()
    assert script.begun == 2
    assert not any(call.done() for call in late)
    script.end()
    assert set(await asyncio.gather(*late)) == {2}


async def test_several_rounds_may_be_under_way() -> None:
    script = Scripted(at_once=2)
    calls = []
    for _ in range(4):
        calls.append(asyncio.create_task(script.rounds.join()))
        await settle()
    assert script.begun == 2
    for _ in range(3):
        script.end()
        await settle()
    assert [await call for call in calls] == [1, 2, 3, 3]


async def test_a_failure_is_of_its_round_alone() -> None:
    script = Scripted()
    first = asyncio.create_task(script.rounds.join())
    await settle()
    second = asyncio.create_task(script.rounds.join())
    await settle()
    script.end(OSError("away"))
    with pytest.raises(OSError, match="away"):
        await first
    await settle()
    script.end()
    assert await second == 2


async def test_a_caller_that_goes_away_takes_nobody_along() -> None:
    script = Scripted()
    gone, waiting = (asyncio.create_task(script.rounds.join()) for _ in range(2))
    await settle()
    gone.cancel()
    await settle()
    script.end()
    assert await waiting == 1


async def test_a_failure_that_nobody_waited_for_any_more_is_no_warning() -> None:
    script = Scripted()
    gone = asyncio.create_task(script.rounds.join())
    await settle()
    gone.cancel()
    await settle()
    script.end(OSError("away"))
    await settle()


async def test_closing_cancels_who_waits() -> None:
    script = Scripted()
    under_way = asyncio.create_task(script.rounds.join())
    await settle()
    waiting = asyncio.create_task(script.rounds.join())
    await settle()
    await script.rounds.close()
    for call in (under_way, waiting):
        with pytest.raises(asyncio.CancelledError):
            await call


@given(st.lists(st.sampled_from(["join", "end", "step"]), max_size=60), st.integers(1, 3))
def test_a_round_begins_after_all_who_share_it_came(steps: list[str], at_once: int) -> None:
    async def run() -> None:
        moments = itertools.count()
        ends: deque[asyncio.Event] = deque()

        async def round_trip() -> int:
            began = next(moments)
            ends.append(end := asyncio.Event())
            await end.wait()
            return began

        rounds = Rounds(round_trip, at_once=at_once)

        async def join() -> tuple[int, int]:
            came = next(moments)
            return came, await rounds.join()

        calls = []
        for step in steps:
            if step == "join":
                calls.append(asyncio.create_task(join()))
                await asyncio.sleep(0)
            elif step == "step":
                await settle()
            elif ends:
                ends.popleft().set()
            assert len(ends) <= at_once
        while not all(call.done() for call in calls):
            await settle()
            while ends:
                ends.popleft().set()
        assert all(came < began for came, began in [await call for call in calls])

    asyncio.run(run())
