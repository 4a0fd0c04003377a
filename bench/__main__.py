"""`python -m bench`: run every case, write the page and the numbers behind it."""

from __future__ import annotations

import argparse
import datetime
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from bench import cases, memory, report, servers
from bench.cases import Case, Measurement, Scale, Stock
from bench.load import Content, LoadFailed
from bench.servers import Server
from consensus import clock

START: dict[str, Callable[[Path], AbstractContextManager[Server]]] = {
    "meridian": servers.meridian,
    "docker-registry": servers.docker_registry,
    "nginx": servers.nginx,
}
SPARE_BYTES = 5_000_000_000


def main() -> int:
    """Parse the command line, measure, write; 2 when a server is missing or a load fails."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="about two minutes; writes to build/bench instead of bench/"
    )
    parser.add_argument("--only", default="", metavar="WORD", help="only cases with this in their name, or 'memory'")
    options = parser.parse_args()
    work = Path("build/bench").absolute()
    work.mkdir(parents=True, exist_ok=True)
    try:
        outcome = run(work, cases.QUICK if options.quick else cases.FULL, options.only, sys.argv[1:])
    except (servers.ServerMissing, servers.ServerFailed, LoadFailed) as error:
        print(error, file=sys.stderr)
        return 2
    folder = work if options.quick or options.only else Path("bench")
    page = report.as_page(outcome)
    (folder / "RESULTS.md").write_text(page + report.other_sections(folder / "RESULTS.md"))
    (folder / "results.json").write_text(report.as_json(outcome))
    print(page)
    return 0


def run(work: Path, scale: Scale, only: str, arguments: Sequence[str]) -> report.Outcome:
    """Measure everything that `only` selects."""
    require_space(work, scale)
    busy = os.getloadavg()[0]
    disk = disk_speed(work, scale.large_bytes)
    stock = Stock.make()
    selected = [case for case in cases.all_cases(stock, scale) if only in case.name]
    measurements, versions = speed(work, selected, stock, scale.rounds)
    used = memory_use(work, scale.large_bytes) if only in "memory" else []
    return report.Outcome(
        command=" ".join(["python -m bench", *arguments]) if arguments else "make bench",
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        machine=report.Machine.here(disk, busy),
        versions=versions,
        scale=scale,
        cases=selected,
        measurements=measurements,
        memory=used,
    )


def require_space(work: Path, scale: Scale) -> None:
    """End here when the memory test and the rounds' pushes would not fit on the disk."""
    needed = (memory.CLIENTS + 1 + 2 * scale.rounds) * scale.large_bytes + SPARE_BYTES
    free = shutil.disk_usage(work).free
    if free < needed:
        sys.exit(f"{work} has {free / 1e9:.0f} GB free; {needed / 1e9:.0f} GB are needed")


@contextmanager
def scratch(work: Path) -> Iterator[Path]:
    """A folder on the same disk that is gone afterwards."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        yield Path(folder)


def disk_speed(work: Path, size_bytes: int) -> float:
    """Bytes a second of writing a file and its fsync, with no server between."""
    content = Content.of("disk", size_bytes)
    with scratch(work) as folder, (folder / "file").open("wb", buffering=0) as file:
        started = clock.monotonic()
        for block in content.blocks():
            file.write(block)
        os.fsync(file.fileno())
        return size_bytes / (clock.monotonic() - started)


def speed(work: Path, selected: Sequence[Case], stock: Stock, rounds: int) -> tuple[list[Measurement], dict[str, str]]:
    """All rounds of all cases, the servers taking turns; and the servers' versions."""
    found: list[Measurement] = []
    with scratch(work) as folder, ExitStack() as stack:
        running = []
        for name, start in START.items():
            (folder / name).mkdir()
            running.append(stack.enter_context(start(folder / name)))
            stock.put(running[-1])
        for number in range(rounds):
            order = running[number % len(running) :] + running[: number % len(running)]
            for case in selected:
                for server in (each for each in order if each.name in case.servers):
                    found.append(cases.measure(case, server, number))
                    print(
                        f"round {number + 1}: {case.name}: {server.name}: {found[-1].value:,.0f} {case.unit}",
                        flush=True,
                    )
        return found, {server.name: server.version for server in running}


def memory_use(work: Path, blob_bytes: int) -> list[memory.MemoryUse]:
    """The memory test on a fresh server of each registry, one after the other."""
    found = []
    pulled, pushed = memory.contents(blob_bytes)
    for name in ("meridian", "docker-registry"):
        with scratch(work) as folder, START[name](folder) as server:
            found.append(memory.observe(server, pulled, pushed))
            print(f"memory: {name}: {found[-1].grown_bytes / cases.MB:.0f} MB above idle", flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main())
