"""A million manifests: how long a node takes to start, what it weighs, and what a new one costs the others.

    python -m bench.million --manifests 1000000

Two of three members get the same log and state, written to their files as their keepers would have, the images of
`bench.snapshots`. Then they are started, and under writes the third, which is empty and needs a snapshot. The files can
be kept for another run with `--filled FOLDER`. All that runs here lies on one disk and shares its processors, and what
measures waits for a processor too: a gap is at most what it says.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import os
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from bench.processes import peak_bytes, pss_bytes
from bench.report import replace_section
from bench.snapshots import commands
from bench.wan import Writer, writers
from chaos.outages import longest_gap
from chaos.regions import Regions, regions
from consensus import clock, generation
from consensus.codec import encode
from consensus.commands import EnrolProposer, Envelope
from consensus.errors import LogUnavailable
from consensus.log import Entry
from consensus.raft.journal import REGULAR, Journal
from consensus.replica import DEFAULT_KEEP_BYTES
from consensus.state import State
from consensus.wal import DEFAULT_SEGMENT_BYTES

HEADING = "A million manifests"
FULL, EMPTY = ("eu", "us"), "ap"
SYNCED, APPLIED = 1000, 20_000  # entries at a time
IN_FLIGHT = 20
CALM_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Load:
    """So many manifests, and how much of the log is kept."""

    manifests: int
    keep_bytes: int

    @property
    def is_default(self) -> bool:
        """Whether as much of the log is kept as by a node that is told nothing."""
        return self.keep_bytes == DEFAULT_KEEP_BYTES

    @property
    def settings(self) -> str:
        """Of the log, in a node's configuration."""
        return f"segment_bytes = {min(self.keep_bytes, DEFAULT_SEGMENT_BYTES)}\nkeep_bytes = {self.keep_bytes}"


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table. `goal` is the worst that is allowed, "at least" where `low`."""

    what: str
    unit: str
    value: float
    goal: float | None = None
    low: bool = False

    @property
    def row(self) -> str:
        """In Markdown."""
        goal = "" if self.goal is None else f"{'>=' if self.low else '<='} {self.goal:,.0f}"
        shown = f"{self.value:,.0f}" if self.value >= 20 else f"{self.value:.1f}"
        return f"| {self.what} | {self.unit} | **{shown}** | {goal} |"


def fill(data: Path, cluster_id: str, load: Load) -> None:
    """Log and state of a stopped member, after that load; trimmed and checkpointed as a replica does it. More entries
    go into one transaction than a keeper would take, which ends in the same rows and spares the disk."""
    with closing(State.open(data / "state", cluster_id)) as state:
        segment_bytes = min(load.keep_bytes, DEFAULT_SEGMENT_BYTES)
        journal = Journal.open(data / "wal", state.applied, segment_bytes=segment_bytes)
        try:
            term, due = journal.term(journal.last) or 0, load.keep_bytes // 4
            for batch in _batched(_entries(journal.last, load.manifests), APPLIED):
                for some in _batched(batch, SYNCED):
                    for entry in some:
                        journal.add(REGULAR + entry.payload, entry.index, term)
                    journal.flush()
                state.apply(batch)
                due -= sum(len(entry.payload) for entry in batch)
                if due <= 0:
                    due = load.keep_bytes // 4
                    journal.wal.trim(state.checkpoint() - 1, keep_bytes=load.keep_bytes)
        finally:
            journal.wal.close()


def _batched(entries: Iterable[Entry], count: int) -> Iterator[list[Entry]]:
    rest = iter(entries)
    while batch := list(islice(rest, count)):
        yield batch


def _entries(last: int, manifests: int) -> Iterator[Entry]:
    proposer = index = last + 1
    at = clock.wall_ms()
    yield Entry(proposer, encode(Envelope(0, 0, 0, at, EnrolProposer("bench"))))
    for image in range(manifests):
        for command in commands(image):
            index += 1
            sequence = index - proposer
            yield Entry(index, encode(Envelope(proposer, sequence, sequence - 1, at, command)))


async def measure(cluster: Regions, load: Load, kept: Path | None) -> list[Figure]:
    """All figures. What was made is kept in `kept`, or taken from there."""
    await cluster.start()
    await cluster.agree()
    cluster.kill(cluster.nodes)
    found = await asyncio.to_thread(_prepare, cluster, load, kept)
    began = clock.monotonic()
    for name in FULL:
        cluster.nodes[name].start()
    await cluster.wait_ready(*FULL)
    found.append(Figure("restart of two of three, until both are ready", "s", clock.monotonic() - began, 10))
    leader = await cluster.steward()
    keeper = await cluster.keeper_pid(leader)
    found.append(Figure("keeper, after the restart", "MB", pss_bytes(keeper) / 1e6, 500))
    async with writers(cluster, FULL) as each:
        found += await _catch_up(cluster, each[leader])
    log = size_bytes(cluster.nodes[leader].folders.data / "wal") / 1e6
    found.append(Figure("write-ahead log of the sender, at the end", "MB", log, 512 if load.is_default else None))
    empty = await cluster.keeper_pid(EMPTY)
    found.append(Figure("keeper of the sender, at its most", "MB", peak_bytes(keeper) / 1e6, 500))
    found.append(Figure("keeper of the node that was empty, at its most", "MB", peak_bytes(empty) / 1e6, 500))
    return found


def _prepare(cluster: Regions, load: Load, kept: Path | None) -> list[Figure]:
    first, second = (cluster.nodes[name].folders.data for name in FULL)
    found = [Figure("manifests", "", load.manifests)]
    if kept is not None and kept.exists():
        copy(kept, first, cluster.cluster_id)
    else:
        began = clock.monotonic()
        fill(first, cluster.cluster_id, load)
        rate = load.manifests / (clock.monotonic() - began)
        found.append(Figure("manifests logged, synced and applied, without a cluster", "1/s", rate))
        if kept is not None:
            copy(first, kept)
    copy(first, second)
    for data in (first, second):
        _forget(data)
    return [*found, Figure("state", "MB", size_bytes(first / "state") / 1e6)]


def copy(source: Path, target: Path, cluster_id: str | None = None) -> None:
    """Log and state of a stopped member to another one, which may be of another cluster."""
    for part in ("wal", "state"):
        shutil.rmtree(target / part, ignore_errors=True)
        shutil.copytree(source / part, target / part)
    if cluster_id is not None:
        path = generation.current(target / "state")
        assert path is not None
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("UPDATE meta SET cluster_id = ?", (cluster_id,))


def _forget(folder: Path) -> None:
    """Its files are on the disk and not in memory, as after a start of the machine."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


async def _catch_up(cluster: Regions, writer: Writer) -> list[Figure]:
    """The empty member comes, while writes go on at the leader."""
    stopping = asyncio.Event()
    acknowledged: list[float] = []

    async def write() -> None:
        while not stopping.is_set():
            try:
                await writer.write()
            except LogUnavailable:
                continue  # is a gap
            acknowledged.append(clock.monotonic())

    async with asyncio.TaskGroup() as group:
        for _ in range(IN_FLIGHT):
            group.create_task(write())
        calm = clock.monotonic()
        await asyncio.sleep(CALM_SECONDS)
        began = clock.monotonic()
        cluster.nodes[EMPTY].start()
        await cluster.nodes[EMPTY].wait_ready(3600)
        ended = clock.monotonic()
        stopping.set()
    if not cluster.snapshots():
        raise SystemExit("the whole log was still there, no snapshot was needed: keep less of it, or make more")
    size = size_bytes(cluster.nodes[EMPTY].folders.data / "state")
    rate = sum(at > began for at in acknowledged) / (ended - began)
    return [
        Figure("longest gap between two acknowledgements before", "ms", 1e3 * _gap(acknowledged, calm, began)),
        Figure("longest gap while a snapshot is taken and sent", "ms", 1e3 * _gap(acknowledged, began, ended), 500),
        Figure("writes acknowledged meanwhile", "1/s", rate),
        Figure("an empty node is ready after", "s", ended - began),
        Figure("an empty node catches up at", "MB/s", size / 1e6 / (ended - began), 30, low=True),
    ]


def _gap(times: Iterable[float], since: float, until: float) -> float:
    return longest_gap([at for at in times if since < at < until], since, until)


def size_bytes(folder: Path) -> int:
    """Of all files in it."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


async def run(load: Load, folder: Path, kept: Path | None) -> list[Figure]:
    """Measures in `folder`; see `measure`."""
    with regions(folder, log=load.settings, relayed=False) as cluster:
        try:
            return await measure(cluster, load, kept)
        finally:
            await cluster.close()


def main() -> None:
    """Prints the figures, and puts them on the page."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--manifests", type=int, default=1_000_000, help="how many")
    parser.add_argument("--keep-megabytes", type=int, default=256, help="of the log; less than all makes a snapshot")
    parser.add_argument("--filled", type=Path, help="keep what is made in this folder, or take it from there")
    parser.add_argument("--page", type=Path, default=Path("bench/RESULTS.md"), help="where the section goes")
    options = parser.parse_args()
    load = Load(options.manifests, options.keep_megabytes * 1024 * 1024)
    busy = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as made:
        found = asyncio.run(run(load, Path(made), options.filled))
    command = " ".join(["python -m bench.million", *sys.argv[1:]])
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    lines = [
        f"`{command}`, {today}, load average {busy:.1f} before it, {os.cpu_count()} cores.",
        "",
        "| | unit | | goal |",
        "| --- | --- | ---: | ---: |",
        *(each.row for each in found),
    ]
    print("\n".join(lines))
    replace_section(options.page, HEADING, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
