"""Real nodes in regions that an emulated WAN joins, for tests, benchmarks and `meridian lab`:

    with lab(load(), folder) as it:
        try:
            await it.start()
            it.set("eu", "us", both=True, delay_ms=60, loss=0.001)
            it.run("us", "skopeo", "inspect", f"docker://{it.nodes['eu'].address}/team/app:1.0")
            it.nodes["ap"].kill()
        finally:
            await it.close()

Whoever is reached by a region's address, from another region, has the WAN in between; this machine has not.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from secrets import token_hex
from typing import Any

import msgspec

from chaos.lab.errors import LabRefused, TopologyError
from chaos.lab.lines import Count
from chaos.lab.remains import MARK, sweep
from chaos.lab.topology import Change, Link, Pair, Topology
from chaos.lab.wan import Kind, Wan, best_kind, loopback_wan, namespace_wan
from chaos.region import RegionFolders, RegionNode, Settings
from chaos.regions import Nodes, membership
from node.authority import Authority, publish

_DAYS = 30
_ENDS_WITH_US = ("setpriv", "--pdeathsig=KILL")


class Lab(Nodes):
    """A cluster on a WAN that changes when it is told to. Made by `lab`; nothing runs yet."""

    def __init__(
        self, lab_id: str, topology: Topology, wan: Wan, cluster_id: str, nodes: dict[str, RegionNode]
    ) -> None:
        super().__init__(cluster_id, nodes)
        self.id = lab_id
        self.topology = topology
        self.wan = wan
        self.links: dict[Pair, Link] = {}
        for pair, link in topology.links.items():
            self._put(pair, link)

    def pairs(self, source: str = "", sink: str = "", *, both: bool = False) -> list[Pair]:
        """The ways from one region to another, `both` for those back as well; "" stands for every region. Raises
        TopologyError for what is no region."""
        for name in filter(None, (source, sink)):
            if name not in self.topology.regions:
                raise TopologyError(f"no region {name!r}: expected one of {', '.join(self.topology.regions)}")
        if source and source == sink:
            raise TopologyError(f"there is no way from {source} to itself")
        forth = [(one, other) for one, other in self.links if source in {"", one} and sink in {"", other}]
        back = [(one, other) for one, other in self.links if both and (other, one) in forth]
        return list(dict.fromkeys(forth + back))

    def set(self, source: str = "", sink: str = "", *, both: bool = False, **changes: float | bool) -> list[Pair]:
        """Changes these ways (see `pairs`) from now on; `changes` are fields of `topology.Change`. Returns the ways.
        Raises TopologyError, and nothing is changed, for a value out of bounds or one that cannot be emulated here."""
        return self.change(self.pairs(source, sink, both=both), parse_change(changes))

    def change(self, pairs: list[Pair], change: Change) -> list[Pair]:
        """As `set`."""
        given = {name for name, value in msgspec.structs.asdict(change).items() if value}
        if impossible := given & self.wan.nature.not_emulated:
            raise TopologyError(f"{', '.join(sorted(impossible))}: cannot be emulated on streams over loopback")
        links = {pair: self.links[pair].changed(change) for pair in pairs}
        for pair, link in links.items():
            self._put(pair, link)
        return pairs

    def counters(self) -> Mapping[Pair, Count]:
        """What became of what was sent, on each way."""
        return self.wan.counts()

    def command(self, region: str, *command: str) -> list[str]:
        """The command as it has to be run to run in that region, by a thread that lives as long as it: it is killed
        when that ends. Raises KeyError."""
        return [
            *surroundings(self.id, region, {name: place.registry for name, place in self.wan.places.items()}),
            *_ENDS_WITH_US,
            *self.wan.places[region].entry,
            *command,
        ]

    def run(self, region: str, *command: str, **options: Any) -> subprocess.CompletedProcess[Any]:
        """As subprocess.run, in that region (on loopback: on this machine). REGISTRY in its environment is the region's
        registry, REGISTRY_EU that of the region eu."""
        return subprocess.run(self.command(region, *command), check=options.pop("check", True), **options)

    def _put(self, pair: Pair, link: Link) -> None:
        self.wan.shape([pair], link)
        self.links[pair] = link


def parse_change(fields: Mapping[str, object]) -> Change:
    """Raises TopologyError."""
    try:
        return msgspec.convert(fields, Change)
    except msgspec.ValidationError as error:
        raise TopologyError(str(error)) from error


@contextlib.contextmanager
def lab(
    topology: Topology,
    work: Path,
    *,
    kind: Kind | None = None,
    seed: int = 1,
    compile_it: bool = True,
    lab_id: str = "",
) -> Iterator[Lab]:
    """A cluster in `work`, an empty folder, on the WAN of that topology; close it within the context. Without a `kind`
    the best that is possible. `seed` decides what gets lost. Must be entered, and its nodes started, by a thread
    that lives as long as it does: the nodes end with it. Raises LabError, OSError."""
    if shutil.which(_ENDS_WITH_US[0]) is None:
        raise LabRefused(f"not installed: {_ENDS_WITH_US[0]} (in util-linux)")
    lab_id = lab_id or token_hex(16)
    work = work.absolute()
    with contextlib.ExitStack() as stack:
        if (kind or best_kind()[0]) == "namespaces":
            wan = stack.enter_context(namespace_wan(topology, work, lab_id=lab_id, seed=seed, compile_it=compile_it))
        else:
            wan = stack.enter_context(loopback_wan(topology, seed=seed))
        stack.callback(sweep, lab_id)
        authority = Authority.create()
        chosen = topology.congestion_control if wan.nature.kind == "namespaces" else {}
        nodes = {
            name: _node(work / name, name, authority, wan, lab_id, congestion_control=chosen.get(name, ""))
            for name in topology.regions
        }
        made = Lab(lab_id, topology, wan, authority.cluster_id, nodes)
        stack.callback(made.kill, nodes)
        yield made


def _node(
    folder: Path, name: str, authority: Authority, wan: Wan, lab_id: str, *, congestion_control: str
) -> RegionNode:
    place = wan.places[name]
    publish(folder / "tls", authority.issue(name, _DAYS).files)
    known = {other: wan.known(name, other) for other in wan.places}
    settings = Settings(
        node=f'region = "{name}"\nname = "{name}"\ngateways = 1',
        listen=f'peers = "{place.peers}"\ntransfers = "{place.transfers}"\nallow_remote_open = true',
        log="",
        more=membership(authority.cluster_id, known, congestion_control=congestion_control),
    )
    return RegionNode(
        RegionFolders(folder / "data", folder),
        settings=settings,
        addresses=(place.registry, place.admin),
        prefix=(*_marked(lab_id), *_ENDS_WITH_US, *place.entry),
    )


def _marked(lab_id: str) -> list[str]:
    return ["env", f"{MARK}={lab_id}"]


def surroundings(lab_id: str, region: str, registries: Mapping[str, str]) -> list[str]:
    """The command in front of a client's: with the lab's mark, and the registries, in its environment."""
    near = f"REGISTRY={registries[region]}"
    return [*_marked(lab_id), near, *(f"REGISTRY_{_variable(name)}={at}" for name, at in registries.items())]


def _variable(region: str) -> str:
    return region.upper().replace("-", "_")
