"""Medians, ratios and the page they are printed on."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.cases import MB, Case, Measurement, Scale
from bench.memory import ALLOWED_BYTES, MemoryUse

BASELINE = "docker-registry"
OURS = "meridian"
SERVERS = (OURS, BASELINE, "nginx")
GB = 1_000_000_000
OTHERS = (
    "Between regions",
    "A million manifests",
    "Layers on demand",
    "Bulk path",
)  # of bench.{wan,million,fetching,bulk}


@dataclass(frozen=True)
class Machine:
    """What it ran on, and how fast its disk alone takes and fsyncs a large file."""

    processor: str
    cores: int
    memory_bytes: int
    kernel: str
    python: str
    disk_bytes_second: float
    load_average: float  # of the last minute before the run: what else ran here

    @classmethod
    def here(cls, disk_bytes_second: float, load_average: float) -> Machine:
        """This machine."""
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        cores = os.cpu_count() or 1
        kernel, python = platform.release(), platform.python_version()
        return cls(processor, cores, memory, kernel, python, disk_bytes_second, load_average)


@dataclass(frozen=True)
class Outcome:
    """Everything one run of the benchmark found."""

    command: str
    date: str
    machine: Machine
    versions: dict[str, str]
    scale: Scale
    cases: Sequence[Case]
    measurements: Sequence[Measurement]
    memory: Sequence[MemoryUse]

    def of(self, case: Case, server: str) -> list[Measurement]:
        """The rounds of one case on one server."""
        return [each for each in self.measurements if each.case == case.name and each.server == server]

    def ratio(self, case: Case) -> float | None:
        """Meridian's median over docker-registry's; None where one of them was not measured."""
        ours, theirs = self.of(case, OURS), self.of(case, BASELINE)
        return median(ours) / median(theirs) if ours and theirs else None

    def missed(self) -> list[str]:
        """Every goal that was not reached, in words."""
        goals = [
            f"{case.name}: {ratio:.2f}x {BASELINE}, the goal is {case.goal:g}x"
            for case in self.cases
            if case.goal is not None and (ratio := self.ratio(case)) is not None and ratio < case.goal
        ]
        grown = [
            f"memory grew by {each.grown_bytes / MB:.0f} MB, the goal is {ALLOWED_BYTES / MB:.0f} MB"
            for each in self.memory
            if each.server == OURS and each.grown_bytes >= ALLOWED_BYTES
        ]
        return goals + grown


def median(rounds: Sequence[Measurement]) -> float:
    """The middle value of some rounds."""
    return statistics.median(each.value for each in rounds)


def cost(rounds: Sequence[Measurement], unit: str) -> float:
    """CPU-seconds a GB, or a 10,000 requests, over all rounds."""
    used = sum(each.cpu_seconds for each in rounds)
    amount = (
        sum(each.requests for each in rounds) / 10_000 if unit == "req/s" else sum(each.bytes for each in rounds) / GB
    )
    return used / amount


def as_json(outcome: Outcome) -> str:
    """Every single measurement, for programs."""
    document = {
        "command": outcome.command,
        "date": outcome.date,
        "machine": asdict(outcome.machine),
        "versions": outcome.versions,
        "scale": asdict(outcome.scale),
        "cases": [
            {"name": case.name, "unit": case.unit, "goal": case.goal, "ratio": outcome.ratio(case)}
            for case in outcome.cases
        ],
        "measurements": [asdict(each) for each in outcome.measurements],
        "memory": [asdict(each) | {"grown_bytes": each.grown_bytes} for each in outcome.memory],
        "missed": outcome.missed(),
    }
    return json.dumps(document, indent=1) + "\n"


def as_page(outcome: Outcome) -> str:
    """The results as Markdown."""
    parts = [_head(outcome), _speed(outcome), _detail(outcome), _memory(outcome), _missed(outcome)]
    return "\n".join(part for part in parts if part)


def _head(outcome: Outcome) -> str:
    machine, scale = outcome.machine, outcome.scale
    versions = "\n".join(f"- {name}: {version}" for name, version in outcome.versions.items())
    return f"""# Meridian beside docker-registry and nginx

`{outcome.command}`, {outcome.date}. The servers run at the same time on one machine and are loaded one after the other,
in another order each round: medians of {scale.rounds} rounds. Load generator (wrk; for pushes and the memory test our
own sockets) and servers share the {machine.cores} cores, so differences under 30 % are ties.

- {machine.processor}, {machine.cores} cores, {machine.memory_bytes / GB:.0f} GB of memory
- load average {machine.load_average:.1f} before the run
- Linux {machine.kernel}, Python {machine.python}
- the disk alone takes and fsyncs {scale.large_bytes / GB:.2f} GB at {machine.disk_bytes_second / MB:.0f} MB/s
{versions}

Each server runs with its product's defaults: Meridian and docker-registry write an access log, nginx does not
and serves the same bytes as static files. **Meridian fsyncs every blob, its folder and its log before it answers a
push; docker-registry fsyncs nothing**, so its pushes are partly still in memory when they count as done. Everything
is synced to the disk between two measurements, so neither pays for what the other left behind.
"""


def _speed(outcome: Outcome) -> str:
    lines = [
        "## Speed\n",
        "| | unit | Meridian | docker-registry | nginx | Meridian / docker-registry | goal |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for case in outcome.cases:
        values = [_number(median(rounds)) if (rounds := outcome.of(case, name)) else "" for name in SERVERS]
        ratio = outcome.ratio(case)
        goal = "" if case.goal is None else f"{case.goal:g}x"
        shown = "" if ratio is None else f"**{ratio:.1f}x**"
        lines.append(f"| {case.name} | {case.unit} | {' | '.join(values)} | {shown} | {goal} |")
    return "\n".join(lines) + "\n"


def _detail(outcome: Outcome) -> str:
    lines = [
        "## Cost and latency\n",
        "CPU-seconds of the server's processes for each GB (or, for req/s, for each 10,000 requests); latencies are of",
        "whole requests, medians of the rounds; the range is of the rounds' values.\n",
        "| | server | range | CPU-s | p50 ms | p99 ms |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for case in outcome.cases:
        for name in SERVERS:
            if not (rounds := outcome.of(case, name)):
                continue
            values = sorted(each.value for each in rounds)
            p50, p99 = (statistics.median(getattr(each, field) for each in rounds) for field in ("p50_ms", "p99_ms"))
            spread = f"{_number(values[0])} - {_number(values[-1])} {case.unit}"
            lines.append(f"| {case.name} | {name} | {spread} | {cost(rounds, case.unit):.2f} | {p50:.1f} | {p99:.1f} |")
    return "\n".join(lines) + "\n"


def _memory(outcome: Outcome) -> str:
    if not outcome.memory:
        return ""
    first = outcome.memory[0]
    size = f"{first.blob_bytes / (1 << 30):g} GiB"
    lines = [
        "## Memory\n",
        f"{first.clients} clients pull {size} each while {first.clients} more push {size} each. PSS of all the",
        "server's processes, sampled every 100 ms; idle is before the first request. The goal is under",
        f"{ALLOWED_BYTES / MB:.0f} MB above idle.\n",
        "| | idle MB | peak MB | above idle | seconds | CPU-s/GB |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for each in outcome.memory:
        moved = 2 * each.clients * each.blob_bytes / GB
        lines.append(
            f"| {each.server} | {each.idle_bytes / MB:.0f} | {each.peak_bytes / MB:.0f} "
            f"| **{each.grown_bytes / MB:.0f} MB** | {each.seconds:.0f} | {each.cpu_seconds / moved:.2f} |"
        )
    return "\n".join(lines) + "\n"


def _missed(outcome: Outcome) -> str:
    missed = outcome.missed()
    if not missed:
        return "Every goal is reached.\n"
    return "## Goals missed\n\n" + "\n".join(f"- {each}" for each in missed) + "\n"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def replace_section(page: Path, heading: str, text: str) -> None:
    """Puts the text under `## heading` on a page; it stands behind everything else there."""
    before = page.read_text() if page.exists() else ""
    kept = "".join(each for title, each in _sections(before) if title != heading)
    page.write_text(f"{kept.rstrip()}\n\n## {heading}\n\n{text}")


def other_sections(page: Path) -> str:
    """What other programs have put on the page."""
    before = page.read_text() if page.exists() else ""
    return "".join(f"\n{each.strip()}\n" for title, each in _sections(before) if title in OTHERS)


def _sections(text: str) -> list[tuple[str, str]]:
    """(title, all of it) of each `## title`, behind what stands before the first."""
    parts = re.split(r"^(?=## )", text, flags=re.MULTILINE)
    return [(part.partition("\n")[0][3:] if part.startswith("## ") else "", part) for part in parts]
