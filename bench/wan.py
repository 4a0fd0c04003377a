"""Three regions at the distances of real ones: what a write costs, how many there can be, whether it is calm.

    python -m bench.wan --minutes 10 [--lab]

Real nodes on this machine reach each other through relays that delay every byte or, with `--lab` (needs root), through
packets between network namespaces: there TCP counts as well, its slow start and its idea of the rate. Writes go
straight to a node's keeper, so that no HTTP blurs the figures. All lie on one disk and share its processors, which real
regions do not.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import hashlib
import os
import signal
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.report import replace_section
from chaos.lab.laboratory import lab
from chaos.lab.topology import load
from chaos.regions import NAMES, Nodes, regions
from consensus import clock
from consensus.commands import BlobFact, RecordBlobs, Status
from consensus.errors import LogUnavailable
from consensus.names import Digest, RepositoryName, StoreId
from node.rpc import KeeperClient

ROUND_TRIPS = {("eu", "us"): 0.080, ("eu", "ap"): 0.220, ("us", "ap"): 0.150}
ALLOWED = 1.2
GOAL_RATE = 2000
IN_FLIGHT = 1000
HEADING = "Between regions"

_STORE = StoreId("0" * 32)
_MOVES = 40


def round_trip(one: str, other: str) -> float:
    """Seconds."""
    return ROUND_TRIPS.get((one, other)) or ROUND_TRIPS.get((other, one)) or 0.0


def least(region: str, leader: str) -> float:
    """What a write in a region cannot be faster than: to the leader and back, and there to the nearest other one."""
    return round_trip(region, leader) + min(round_trip(leader, other) for other in NAMES if other != leader)


@dataclass(frozen=True, slots=True)
class Placement:
    """Writes one after the other in a region, while `leader` leads."""

    leader: str
    region: str
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    @property
    def ratio(self) -> float:
        """To what it cannot be faster than."""
        return self.median / least(self.region, self.leader)


@dataclass(frozen=True, slots=True)
class Throughput:
    """Many writes at a time."""

    leader: str
    place: str
    rate: float
    median: float
    high: float


@dataclass(frozen=True, slots=True)
class Calm:
    """Terms before and after."""

    what: str
    seconds: float
    before: int
    after: int
    done: int


class Writer:
    """Proposes small commands to one node's keeper."""

    def __init__(self, client: KeeperClient, proposer: int) -> None:
        self._client = client
        self._proposer = proposer
        self._sequence = 0
        self._open: set[int] = set()

    async def write(self) -> float:
        """Seconds it took. Raises LogUnavailable."""
        self._sequence += 1
        sequence = self._sequence
        self._open.add(sequence)
        digest = Digest("sha256", hashlib.sha256(f"{self._proposer} {sequence}".encode()).hexdigest())
        command = RecordBlobs(RepositoryName("bench/wan"), _STORE, (BlobFact(digest, sequence),))
        began = clock.monotonic()
        try:
            outcome = await self._client.propose(self._proposer, sequence, min(self._open) - 1, command)
        finally:
            self._open.discard(sequence)
        if outcome.status is not Status.DONE:
            raise LogUnavailable(f"{outcome}")
        return clock.monotonic() - began


@asynccontextmanager
async def writers(cluster: Nodes, names: Iterable[str] = NAMES) -> AsyncIterator[dict[str, Writer]]:
    """One in each region."""
    clients = {name: KeeperClient(cluster.nodes[name].runtime / "keeper.sock") for name in names}
    try:
        yield {name: Writer(client, await _enrol(client)) for name, client in clients.items()}
    finally:
        for client in clients.values():
            await client.close()


async def _enrol(client: KeeperClient) -> int:
    while True:
        try:
            return await client.enrol("bench")
        except LogUnavailable:
            await asyncio.sleep(0.1)


async def lead(cluster: Nodes, wanted: str) -> None:
    """Kills the keeper that leads until the wanted one does: one that resigns would choose, and always the nearest."""
    for _ in range(_MOVES):
        leader = await cluster.steward()
        if leader == wanted:
            return
        pid = await cluster.keeper_pid(leader)
        os.kill(pid, signal.SIGKILL)
        while await cluster.steward() == leader and await cluster.keeper_pid(leader) in {pid, 0}:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        await cluster.wait_ready()
    raise SystemExit(f"{wanted} does not come to lead")


async def measure_latency(cluster: Nodes, count: int) -> AsyncIterator[Placement]:
    """Every region, for every leader."""
    for leader in NAMES:
        await lead(cluster, leader)
        async with writers(cluster) as each:
            for region, writer in each.items():
                await writer.write()
                yield Placement(leader, region, tuple([await writer.write() for _ in range(count)]))


async def measure_throughput(cluster: Nodes, seconds: float) -> AsyncIterator[Throughput]:
    """IN_FLIGHT writes at a time, all at the leader and then a third in each region."""
    leader = await cluster.steward()
    async with writers(cluster) as each:
        for place, chosen in (("at the leader", [each[leader]]), ("a third in each region", list(each.values()))):
            times = await _flood(chosen, seconds)
            ordered = sorted(times)
            rate = len(times) / seconds
            yield Throughput(leader, place, rate, ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100])


async def _flood(chosen: Sequence[Writer], seconds: float) -> list[float]:
    """The times of the writes that ended within `seconds`, after as long a start as a tenth of it."""
    begins = clock.monotonic() + seconds / 10
    ends = begins + seconds
    times: list[float] = []

    async def run(writer: Writer) -> None:
        while clock.monotonic() < ends:
            took = await writer.write()
            if begins < clock.monotonic() < ends:
                times.append(took)

    async with asyncio.TaskGroup() as group:
        for number in range(IN_FLIGHT):
            group.create_task(run(chosen[number % len(chosen)]))
    return times


async def measure_calm(cluster: Nodes, minutes: float) -> AsyncIterator[Calm]:
    """Whether anybody stands for election although nothing is wrong: idle, and under a steady load."""
    async with writers(cluster) as each:
        for what in ("idle", "100 writes in flight"):
            began, before = clock.monotonic(), await _term(cluster)
            done = 0
            if what == "idle":
                await asyncio.sleep(60 * minutes)
            else:
                done = await _keep_writing(list(each.values()), began + 60 * minutes)
            yield Calm(what, clock.monotonic() - began, before, await _term(cluster), done)


async def _keep_writing(chosen: Sequence[Writer], ends: float) -> int:
    done = 0

    async def run(writer: Writer) -> None:
        nonlocal done
        while clock.monotonic() < ends:
            await writer.write()
            done += 1

    async with asyncio.TaskGroup() as group:
        for number in range(100):
            group.create_task(run(chosen[number % len(chosen)]))
    return done


async def _term(cluster: Nodes) -> int:
    found = [await cluster.standing(name) for name in NAMES]
    return max(standing.term for standing in found if standing)


def as_section(
    command: str,
    placements: Iterable[Placement],
    floods: Iterable[Throughput],
    calms: Iterable[Calm],
    *,
    by: str = "relays",
) -> str:
    """The page's part."""
    distances = ", ".join(f"{one}-{other} {seconds * 1e3:.0f} ms" for (one, other), seconds in ROUND_TRIPS.items())
    lines = [
        f"`{command}`, {datetime.datetime.now(datetime.UTC).date().isoformat()}, load average "
        f"{os.getloadavg()[0]:.1f}. Three real nodes on one machine of {os.cpu_count()} cores, round trips of "
        f"{distances} by {by}; small writes straight to a node's keeper.",
        "",
        "| leader | write in | p50 ms | cannot be below ms | ratio | goal |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {each.leader} | {each.region} | {each.median * 1e3:.0f} | {least(each.region, each.leader) * 1e3:.0f} "
        f"| **{each.ratio:.2f}** | {ALLOWED} |"
        for each in placements
    ]
    lines += [
        "",
        f"| {IN_FLIGHT} in flight | writes/s | p50 ms | p99 ms | goal |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {each.place} ({each.leader}) | **{each.rate:,.0f}** | {each.median * 1e3:.0f} | {each.high * 1e3:.0f} "
        f"| {GOAL_RATE:,} |"
        for each in floods
    ]
    lines += ["", "| calm | minutes | writes | elections | goal |", "| --- | ---: | ---: | ---: | ---: |"]
    lines += [
        f"| {each.what} | {each.seconds / 60:.0f} | {each.done:,} | **{each.after - each.before}** | 0 |"
        for each in calms
    ]
    return "\n".join(lines) + "\n"


@contextmanager
def distant(folder: Path, *, in_lab: bool) -> Iterator[Nodes]:
    """Regions at ROUND_TRIPS, which are those of the lab's own topology."""
    if in_lab:
        with lab(load(), folder, kind="namespaces") as cluster:
            yield cluster
        return
    with regions(folder, log="") as relayed:
        for (one, other), seconds in ROUND_TRIPS.items():
            relayed.ways.distance(one, other, seconds)
        yield relayed


async def run(options: argparse.Namespace, folder: Path) -> str:
    """Measures; the section."""
    with distant(folder, in_lab=options.lab) as cluster:
        try:
            await cluster.start()
            placements, floods, calms = [], [], []
            async for placement in measure_latency(cluster, options.count):
                print(f"{placement.leader} leads, {placement.region}: {placement.median * 1e3:.1f} ms", flush=True)
                placements.append(placement)
            await lead(cluster, "us")
            async for flood in measure_throughput(cluster, options.seconds):
                print(flood, flush=True)
                floods.append(flood)
            async for calm in measure_calm(cluster, options.minutes):
                print(calm, flush=True)
                calms.append(calm)
        finally:
            await cluster.close()
    command = " ".join(["python -m bench.wan", *sys.argv[1:]])
    by = "packets between network namespaces at 200 Mbit/s" if options.lab else "relays"
    return as_section(command, placements, floods, calms, by=by)


def main() -> None:
    """Prints the figures, and puts them on the page."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--count", type=int, default=60, help="writes for each median")
    parser.add_argument("--seconds", type=float, default=15, help="how long writes are counted")
    parser.add_argument("--minutes", type=float, default=10, help="how long to wait for elections, twice")
    parser.add_argument("--lab", action="store_true", help="packets between network namespaces (needs root)")
    parser.add_argument("--page", type=Path, default=Path("bench/RESULTS.md"), help="where the section goes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        section = asyncio.run(run(options, Path(made)))
    print(section)
    replace_section(options.page, HEADING, section)


if __name__ == "__main__":
    main()
