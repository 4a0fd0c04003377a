from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from consensus.errors import LogUnavailable
from node.errors import StateUnconfirmed
from node.freshness import AlwaysFresh, Confirmed


class Keeper:
    """Says what the test has it say, one thing a call; the last one again and again."""

    def __init__(self, *answers: Callable[[], Awaitable[int]]) -> None:
        self._answers = list(answers)
        self.calls = 0

    async def sync(self) -> int:
        self.calls += 1
        answer = self._answers[0] if len(self._answers) == 1 else self._answers.pop(0)
        return await answer()


async def confirms() -> int:
    return 7


async def refuses() -> int:
    raise LogUnavailable("no leader is known")


async def hangs() -> int:
    return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]


async def test_a_node_alone_asks_nobody() -> None:
    await AlwaysFresh().fresh()


async def test_readers_share_what_is_asked() -> None:
    keeper = Keeper(confirms)
    freshness = Confirmed(keeper.sync)
    await asyncio.gather(*(freshness.fresh() for _ in range(50)))
    assert keeper.calls == 1
    await freshness.fresh()
    assert keeper.calls == 2


async def test_an_election_is_waited_out() -> None:
    keeper = Keeper(refuses, refuses, refuses, confirms)
    await Confirmed(keeper.sync).fresh()
    assert keeper.calls == 4


@pytest.mark.parametrize("answer", [refuses, hangs])
async def test_an_outage_is_said(answer: Callable[[], Awaitable[int]]) -> None:
    freshness = Confirmed(Keeper(answer).sync, election_seconds=0.05, outage_seconds=0.05)
    with pytest.raises(StateUnconfirmed, match=r"no leader is known|no answer within"):
        await freshness.fresh()


async def test_in_an_outage_the_refusal_comes_soon_and_its_end_is_noticed() -> None:
    keeper = Keeper(hangs, hangs, confirms)
    freshness = Confirmed(keeper.sync, election_seconds=0.05, outage_seconds=0.05)
    for _ in range(2):
        with pytest.raises(StateUnconfirmed):
            await freshness.fresh()
    await freshness.fresh()
    assert keeper.calls == 3


async def test_the_first_refusal_takes_an_election_the_next_ones_an_outage() -> None:
    freshness = Confirmed(Keeper(hangs).sync, election_seconds=0.05, outage_seconds=3600)
    with pytest.raises(StateUnconfirmed, match=r"within 0.05 s"):
        await freshness.fresh()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await freshness.fresh()
    await freshness.close()


async def test_what_is_no_outage_is_not_hidden() -> None:
    async def breaks() -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await Confirmed(Keeper(breaks).sync).fresh()
