"""What a replicator says of its work."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from consensus import clock
from consensus.names import Digest
from node.blobs.filesystem import FilesystemStore
from replication.chronicle import Chronicle, Meter
from replication.fetcher import Fetcher
from replication.reports import MAX_FAILURES, MAX_LAGS, RATE_SECONDS, MemberReport, ReplicatorReport
from replication.sources import BlobNowhere, HoldersUnreachable
from tests.replication.test_fetcher import OTHER, STORE, Gate, fetching, follow, idle, store

__all__ = ["store"]


def digest(number: int) -> Digest:
    return Digest("sha256", f"{number:064x}")


def report(fetcher: Fetcher) -> ReplicatorReport:
    return fetcher.report(7, [MemberReport(member="eu", region="eu", store=STORE)])


def test_a_rate_is_of_the_last_seconds() -> None:
    meter = Meter(100.0)
    assert meter.rate == 0
    meter.look(102.0, 2000)
    assert meter.rate == 1000
    for second in range(3, 60):
        meter.look(100.0 + second, 2000)
    assert meter.rate == 0
    assert len(meter._samples) <= RATE_SECONDS + 2


def test_many_looks_at_once_cost_nothing_and_change_nothing() -> None:
    meter = Meter(0.0)
    for number in range(1, 10001):
        meter.look(number / 1000, number)
    assert meter.rate == pytest.approx(1000, rel=0.1)
    assert len(meter._samples) < 60


def test_failures_are_bounded_and_the_newest_comes_first() -> None:
    chronicle = Chronicle()
    for number in range(2 * MAX_FAILURES):
        chronicle.failed(digest(number), HoldersUnreachable("x" * 10000))
    chronicle.failed(digest(2 * MAX_FAILURES - 5), BlobNowhere("gone"))
    found = chronicle.report((), pid=1, waiting=(), members=())
    assert len(found.failures) == MAX_FAILURES
    first, second, *_ = found.failures
    assert (first.digest, first.cause, first.reason, first.times) == (str(digest(95)), "BlobNowhere", "gone", 2)
    assert abs(first.at_ms - clock.wall_ms()) < 60_000
    assert (second.digest, len(second.reason)) == (str(digest(99)), 300)
    assert found.totals.failed == {"HoldersUnreachable": 100, "BlobNowhere": 1}


def test_lags_are_of_the_last_blobs() -> None:
    chronicle = Chronicle()

    def lag() -> tuple[object, ...]:
        found = chronicle.report((), pid=1, waiting=(), members=()).lag
        return (found.count, found.p50_seconds, found.p99_seconds)

    assert lag() == (0, None, None)
    chronicle.kept(digest(0), None)
    assert lag() == (0, None, None)
    chronicle.kept(digest(0), 3.0)
    assert lag() == (1, 3.0, 3.0)
    for number in range(2 * MAX_LAGS):
        chronicle.kept(digest(0), float(number))
    assert lag() == (MAX_LAGS, 1500.0, 1990.0)


async def test_what_is_under_way_and_what_became_of_it(store: FilesystemStore) -> None:
    gate = Gate()
    async with fetching(store, gate) as (fetcher, records):
        wanted = replace(gate.add(b"x" * 100_000, STORE), pushed_ms=clock.wall_ms() - 5000)
        ahead = [gate.add(b"ahead %d" % number, OTHER) for number in range(4)]
        following = asyncio.create_task(follow(fetcher, wanted))
        await asyncio.sleep(0)
        fetcher.ahead(ahead)
        while not report(fetcher).transfers[0].sources:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        found = report(fetcher)
        first = found.transfers[0]
        assert (found.pid, found.totals.misses, found.totals.kept) == (7, 1, 0)
        assert (first.digest, first.size_bytes, first.received_bytes, first.followers) == (
            str(wanted.digest),
            100_000,
            0,
            1,
        )
        assert [(source.member, source.flows) for source in first.sources] == [("eu", 1)]
        assert list(found.waiting) == [str(each.digest) for each in ahead[2:]]
        gate.open.set()
        await following
        while fetcher.status.transfers:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        found = report(fetcher)
        assert (found.totals.kept, found.totals.received_bytes) == (5, 100_000 + 4 * 7)
        assert (found.transfers, found.waiting, found.failures) == ((), (), ())
        assert found.lag.count == 1  # of the others it is not known when they were pushed
        lags = [record.lag_seconds for record in records if record.lag_seconds is not None]
        assert len(lags) == 1
        assert 5 <= lags[0] < 30


async def test_a_clock_that_is_behind_makes_no_lag_negative(store: FilesystemStore) -> None:
    gate = Gate()
    gate.open.set()
    async with fetching(store, gate) as (fetcher, records):
        await follow(fetcher, replace(gate.add(b"x"), pushed_ms=clock.wall_ms() + 60_000))
        await idle(fetcher)
        assert [record.lag_seconds for record in records] == [0]


async def test_what_failed_is_told_with_its_cause(store: FilesystemStore) -> None:
    gate = Gate()
    gate.open.set()
    async with fetching(store, gate) as (fetcher, _):
        wanted = gate.add(b"lost", STORE, OTHER)
        gate.contents.clear()
        for _ in range(2):
            with pytest.raises(BlobNowhere):
                await follow(fetcher, wanted)
        found = report(fetcher)
        assert (found.totals.misses, found.totals.failed) == (2, {"BlobNowhere": 2})
        (failure,) = found.failures
        assert (failure.digest, failure.cause, failure.times) == (str(wanted.digest), "BlobNowhere", 2)
        assert "none of the stores" in failure.reason
