"""Layers on demand between regions of the lab: how fast they come, at once and after pushes. Needs root.

    python -m bench.fetching [--gigabytes 1] [--small 500] [--large 50]

Real nodes in network namespaces, joined by an emulated WAN of 200 Mbit/s in each direction. For cubic and for bbr, each
set on the nodes' sockets by their configuration: 16 clients of a region pull one layer that is held 80 ms away. Then
images are pushed in eu and pulled in us and ap as soon as each push is acknowledged.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.load import LoadFailed
from bench.processes import MemoryWatch, memory_bytes
from bench.report import replace_section
from chaos.lab.laboratory import Lab, lab
from chaos.lab.topology import CongestionControl, load

HEADING = "Layers on demand"
LINK_BYTES = 200e6 / 8  # a second
ROUND_TRIP = 0.080
CLIENTS = 16
LOSS = 0.001
PLAIN_PORT = 7000
PLAIN_FLOWS = 16
CONTROLS: tuple[CongestionControl, ...] = ("cubic", "bbr")
GB = 10**9
MB = 10**6
ALLOWED_FIRST_SECONDS = 2 * ROUND_TRIP + 0.1


class Client:
    """A process in a region that carries out orders of `bench.region_client`."""

    def __init__(self, it: Lab, region: str) -> None:
        self._process = subprocess.Popen(
            it.command(region, sys.executable, "-P", "-m", "bench.region_client"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        )

    def ask(self, order: str, **arguments: object) -> dict[str, Any]:
        """Its answer. Raises LoadFailed."""
        assert self._process.stdin
        assert self._process.stdout
        print(json.dumps((order, arguments)), file=self._process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self._process.stdout.readline() or '{"error": "the client has ended"}')
        if "error" in answer:
            raise LoadFailed(f"{order} {arguments}: {answer['error']}")
        return answer

    def close(self) -> None:
        """Ends it."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(10)


@dataclass(frozen=True, slots=True)
class Crowd:
    """Many clients and one layer. `sent` are bytes on the way from the holder; memory is PSS of the region's node."""

    control: str
    loss: float
    size_bytes: int
    sent: int
    first: Sequence[float]
    seconds: float
    plain_seconds: float
    idle_bytes: int
    peak_bytes: int

    @property
    def of_link(self) -> float:
        """What of the line's rate the layer's own bytes came at."""
        return self.size_bytes / self.seconds / LINK_BYTES

    @property
    def of_plain(self) -> float:
        """To the rate of the plain copy."""
        return self.plain_seconds / self.seconds


@dataclass(frozen=True, slots=True)
class Images:
    """Images of one size: seconds from the acknowledged push to all bytes there, of each pull, and of a second one."""

    size_bytes: int
    region: str
    lags: Sequence[float]
    pulls: Sequence[float]
    seconds: Sequence[float]


@contextmanager
def cluster(control: CongestionControl, folder: Path) -> Iterator[tuple[Lab, dict[str, Client]]]:
    """Three regions with a client in each."""
    topology = load()
    topology = replace(topology, congestion_control=dict.fromkeys(topology.regions, control))
    with lab(topology, folder, kind="namespaces") as it, ExitStack() as stack:
        asyncio.run(it.start())
        clients = {region: Client(it, region) for region in topology.regions}
        for client in clients.values():
            stack.callback(client.close)
        yield it, clients


def measure_crowd(it: Lab, clients: dict[str, Client], control: str, loss: float, size_bytes: int) -> Crowd:
    """The layer is pushed in eu and pulled in us."""
    digest = clients["eu"].ask("push", seed=f"{control} {loss}".replace(" ", "-"), size_bytes=size_bytes)["digest"]
    it.set("eu", "us", both=True, loss=loss)
    root = it.nodes["us"].pids()[0]
    idle, before = memory_bytes(root), it.counters()["eu", "us"].bytes or 0
    with MemoryWatch(root) as memory:
        found = clients["us"].ask("crowd", digest=digest, clients=CLIENTS)
    sent = (it.counters()["eu", "us"].bytes or 0) - before
    address = it.nodes["eu"].address.rpartition(":")[0]
    plain = clients["us"].ask("copy", address=f"{address}:{PLAIN_PORT}", size_bytes=size_bytes, flows=PLAIN_FLOWS)
    it.set("eu", "us", both=True, loss=0.0)
    return Crowd(
        control, loss, size_bytes, sent, found["first"], max(found["whole"]), plain["seconds"], idle, memory.peak_bytes
    )


def measure_images(clients: dict[str, Client], size_bytes: int, count: int) -> list[Images]:
    """One after the other."""
    found: dict[str, tuple[list[float], list[float], list[float]]] = {name: ([], [], []) for name in ("us", "ap")}
    with ThreadPoolExecutor(len(found)) as pool:
        for number in range(count):
            seed = f"image-{size_bytes}-{number}"
            pushed = clients["eu"].ask("push", seed=seed, size_bytes=size_bytes)
            first = {name: pool.submit(clients[name].ask, "pull", seed=seed) for name in found}
            for name, (lags, pulls, _) in found.items():
                lags.append(first[name].result()["ended"] - pushed["acknowledged"])
                pulls.append(first[name].result()["seconds"])
            for name, (_, _, again) in found.items():
                again.append(clients[name].ask("pull", seed=seed)["seconds"])
    return [Images(size_bytes, name, *values) for name, values in found.items()]


def run(options: argparse.Namespace, folder: Path, say: Callable[[object], None]) -> str:
    """Measures; the section."""
    crowds, images = [], []
    for control in CONTROLS:
        with cluster(control, folder / control) as (it, clients):
            clients["eu"].ask("give", port=PLAIN_PORT)
            for loss in (0.0, LOSS):
                crowds.append(measure_crowd(it, clients, control, loss, round(options.gigabytes * GB)))
                say(crowds[-1])
            if control == "cubic":
                for size_bytes, count in ((MB, options.small), (100 * MB, options.large)):
                    images += measure_images(clients, size_bytes, count) if count else []
                    say(images[-2:])
    return as_section(" ".join(["python -m bench.fetching", *sys.argv[1:]]), crowds, images)


def as_section(command: str, crowds: Sequence[Crowd], images: Sequence[Images]) -> str:
    """The page's part."""
    lines = [
        f"`{command}`, {datetime.datetime.now(datetime.UTC).date().isoformat()}, load average "
        f"{os.getloadavg()[0]:.1f}. Three real nodes in network namespaces on one machine of "
        f"{os.cpu_count()} cores, 200 Mbit/s each way, round trips of 80 (eu-us), 150 (us-ap) and 220 ms (eu-ap).",
        "",
        f"{CLIENTS} clients pull one layer at us that eu holds; beside it a copy of as many bytes by {PLAIN_FLOWS} "
        "plain TCP connections. Memory is PSS of all processes of the node at us.",
        "",
        "| TCP | loss | GB | crossed | first byte ms, slowest | goal | of the line | goal | of the plain copy | goal "
        "| memory above idle |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {each.control} | {each.loss:.1%} | {each.size_bytes / GB:.2f} | {each.sent / each.size_bytes:.3f}x "
        f"| **{max(each.first) * 1e3:.0f}** | {ALLOWED_FIRST_SECONDS * 1e3:.0f} | **{each.of_link:.3f}** "
        f"| {'' if each.loss else '0.9'} | **{each.of_plain:.2f}** | {'0.9' if each.loss else ''} "
        f"| {(each.peak_bytes - each.idle_bytes) / MB:.0f} MB |"
        for each in crowds
    ]
    lines += [
        "",
        "Images of one layer, pushed in eu and pulled elsewhere as soon as the push is acknowledged (cubic, no loss). "
        "Lag: until the region has all bytes, and has shown that they are right.",
        "",
        "| images | in | lag p50 ms | p99 | pull p50 ms | p99 | second pull p50 ms | p99 |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for found in images:
        figures = " | ".join(_figures(values) for values in (found.lags, found.pulls, found.seconds))
        lines.append(f"| {len(found.lags)} of {found.size_bytes / MB:.0f} MB | {found.region} | {figures} |")
    return "\n".join(lines) + "\n"


def _figures(values: Sequence[float]) -> str:
    ordered = sorted(values)
    return f"{statistics.median(ordered) * 1e3:,.0f} | {ordered[len(ordered) * 99 // 100] * 1e3:,.0f}"


def main() -> None:
    """Prints the figures, and puts them on the page."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0, help="of the layer that many clients pull")
    parser.add_argument("--small", type=int, default=500, help="images of 1 MB")
    parser.add_argument("--large", type=int, default=50, help="images of 100 MB")
    parser.add_argument("--page", type=Path, default=Path("bench/RESULTS.md"), help="where the section goes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        section = run(options, Path(made), lambda found: print(found, flush=True))
    print(section)
    replace_section(options.page, HEADING, section)


if __name__ == "__main__":
    main()
