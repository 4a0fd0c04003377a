"""What joins the regions of a lab: packets between network namespaces, or, for who may have none, streams on loopback.

namespaces   a region is a network: every program in it has the WAN in front of it, packets get lost, TCP reacts
loopback     a region is a set of ports: what its node says to those of other regions goes through a relay; clients are
             all in one place, and no packet gets lost, as there are none
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from chaos.lab.lines import Count, Lines, Port, compiled
from chaos.lab.namespaces import Namespace, Namespaces, namespaces_missing
from chaos.lab.topology import Link, Pair, Topology
from chaos.ports import free_addresses
from chaos.ways import Shape, Ways

REGISTRY_PORT, ADMIN_PORT, PEERS_PORT, TRANSFERS_PORT = 5000, 5100, 5200, 5300

Kind = Literal["namespaces", "loopback"]
Peer = tuple[str, str]  # HOST:PORT of a keeper, and of the gateways for transfers


@dataclass(frozen=True, slots=True)
class Place:
    """A region: where its node listens, HOST:PORT each, and the command in front of one that is to run there."""

    registry: str
    admin: str
    peers: str
    transfers: str
    entry: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Nature:
    """What a WAN is: namespaces or loopback, what carries in words and the pid of that, and the fields of a change that
    it cannot make."""

    kind: Kind
    carried_by: str
    pid: int
    not_emulated: frozenset[str] = frozenset()


class Wan(Protocol):
    """What joins the regions."""

    @property
    def nature(self) -> Nature:
        """What kind it is."""

    @property
    def places(self) -> Mapping[str, Place]:
        """Where each region is."""

    def known(self, source: str, sink: str) -> Peer:
        """Where the node of one region reaches that of another."""

    def shape(self, pairs: Iterable[Pair], link: Link) -> None:
        """What is sent on these ways from now on travels so."""

    def counts(self) -> Mapping[Pair, Count]:
        """What became of what was sent, on each way."""


class NamespaceWan:
    """Packets between network namespaces."""

    def __init__(self, namespaces: Namespaces, lines: Lines, carried_by: str) -> None:
        self._lines = lines
        self.nature = Nature("namespaces", carried_by, lines.pid)
        self.places = {name: _place(each) for name, each in namespaces.regions.items()}

    def known(self, source: str, sink: str) -> Peer:
        """The same from everywhere."""
        return self.places[sink].peers, self.places[sink].transfers

    def shape(self, pairs: Iterable[Pair], link: Link) -> None:
        """Raises LinesBroken."""
        self._lines.shape(pairs, link)

    def counts(self) -> Mapping[Pair, Count]:
        """Raises LinesBroken."""
        return self._lines.counts()


def _place(region: Namespace) -> Place:
    ports = REGISTRY_PORT, ADMIN_PORT, PEERS_PORT, TRANSFERS_PORT
    registry, admin, peers, transfers = (f"{region.address}:{port}" for port in ports)
    return Place(registry, admin, peers, transfers, region.entry)


class LoopbackWan:
    """Streams between ports of loopback. A cut holds them back, as TCP repeats what got lost once it is healed."""

    def __init__(self, places: Mapping[str, Place], ways: Ways) -> None:
        self._ways = ways
        self.nature = Nature("loopback", "a relay of streams", ways.pid, frozenset({"loss", "queue_bytes", "queue_ms"}))
        self.places = places

    def known(self, source: str, sink: str) -> Peer:
        """A relay's."""
        if source == sink:
            return self.places[sink].peers, self.places[sink].transfers
        peers, transfers = self._ways.addresses[source, sink]
        return peers, transfers

    def shape(self, pairs: Iterable[Pair], link: Link) -> None:
        """Raises RuntimeError when the relay has ended."""
        chosen = list(pairs)
        self._ways.shape(chosen, Shape(link.delay_ms / 1e3, link.jitter_ms / 1e3, link.bytes_per_second))
        self._ways.cut(chosen, "hold" if link.cut else "")

    def counts(self) -> Mapping[Pair, Count]:
        """Only bytes are known."""
        return {pair: Count(bytes=count) for pair, count in self._ways.passed().items()}


@contextlib.contextmanager
def namespace_wan(topology: Topology, work: Path, *, lab_id: str, seed: int, compile_it: bool = True) -> Iterator[Wan]:
    """While the context lasts. The carrier is compiled into `work` where it can be and `compile_it` says so. Raises
    NamespacesRefused."""
    program = compiled(work / "bin") if compile_it else None
    with contextlib.ExitStack() as stack:
        namespaces = stack.enter_context(Namespaces(topology.congestion_control, lab_id))
        ports = {name: Port(each.tun, each.address) for name, each in namespaces.regions.items()}
        lines = stack.enter_context(Lines(ports, program, seed=seed))
        yield NamespaceWan(namespaces, lines, "a program in C" if program else "a program in Python")


@contextlib.contextmanager
def loopback_wan(topology: Topology, *, seed: int) -> Iterator[Wan]:
    """While the context lasts."""
    places = {}
    for name in topology.regions:
        registry, admin, peers, transfers = free_addresses(4)
        places[name] = Place(registry, admin, peers, transfers)
    listening = {name: (place.peers, place.transfers) for name, place in places.items()}
    with Ways(listening, seed=seed) as ways:
        yield LoopbackWan(places, ways)


def best_kind() -> tuple[Kind, str]:
    """The kind of WAN that this user can have on this machine, and why not the other one: "" if it can."""
    missing = namespaces_missing()
    return ("loopback" if missing else "namespaces"), missing
