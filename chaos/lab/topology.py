"""What a lab looks like: its regions, and for each direction between two of them how far, wide and lossy it is.

It is read from a file in TOML (`world.toml` beside this module is one, with comments). Links are applied in the order
in which they are written, each over `[default]` and over those before it: a key that is not there changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from chaos.lab.errors import TopologyError
from consensus.errors import InvalidName
from consensus.names import Region
from node.local import MAX_REGIONS

WORLD = Path(__file__).with_name("world.toml")
CONGESTION_CONTROLS = ("cubic", "bbr", "reno")
MOST_MS = 10_000.0
MOST_MBIT = 10_000.0
MOST_QUEUE_BYTES = 1 << 30
LEAST_QUEUE_BYTES = 3000  # two packets; with less a line carries next to nothing

Pair = tuple[str, str]  # from, to
CongestionControl = Literal["cubic", "bbr", "reno"]
Milliseconds = Annotated[float, Meta(ge=0, le=MOST_MS)]
Share = Annotated[float, Meta(ge=0, le=1)]
Megabits = Annotated[float, Meta(gt=0, le=MOST_MBIT)]
QueueBytes = Annotated[int, Meta(ge=LEAST_QUEUE_BYTES, le=MOST_QUEUE_BYTES)]


class _Quality(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    delay_ms: Milliseconds | None = None
    jitter_ms: Milliseconds | None = None
    loss: Share | None = None
    rate_mbit: Megabits | None = None
    queue_bytes: QueueBytes | None = None
    queue_ms: Milliseconds | None = None


class Change(_Quality, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """What is to be different about a way; None leaves it as it is. Milliseconds, Mbit/s, bytes."""

    cut: bool | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing is to be different."""
        return self == Change()


@dataclass(frozen=True, slots=True)
class Link:
    """One direction between two regions. Up to the jitter is added to the delay; `loss` is a share of the packets; a
    packet that finds more than the queue waiting for the line is dropped; nothing passes while it is `cut`."""

    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    loss: float = 0.0
    rate_mbit: float = 1000.0
    queue_ms: float = 100.0
    queue_limit_bytes: int | None = None  # instead of `queue_ms`
    cut: bool = False

    @property
    def bytes_per_second(self) -> float:
        """The rate."""
        return self.rate_mbit * 1e6 / 8

    @property
    def queue_bytes(self) -> int:
        """What waits for the line at most."""
        if self.queue_limit_bytes is not None:
            return self.queue_limit_bytes
        return min(MOST_QUEUE_BYTES, max(LEAST_QUEUE_BYTES, round(self.queue_ms / 1e3 * self.bytes_per_second)))

    def changed(self, change: Change) -> Link:
        """As the change says. Raises TopologyError where it says two things about one."""
        if change.queue_bytes is not None and change.queue_ms is not None:
            raise TopologyError("queue_bytes and queue_ms: expected one of them")
        given = {name: value for name, value in msgspec.structs.asdict(change).items() if value is not None}
        if "queue_ms" in given:
            given["queue_limit_bytes"] = None
        if "queue_bytes" in given:
            given["queue_limit_bytes"] = given.pop("queue_bytes")
        return replace(self, **given)


@dataclass(frozen=True, slots=True)
class Topology:
    """The regions in their order, a link for each direction, and what TCP does about loss in each region."""

    regions: tuple[str, ...]
    links: Mapping[Pair, Link]
    congestion_control: Mapping[str, CongestionControl]

    def round_trip_ms(self, one: str, other: str) -> float:
        """There and back, without jitter and queues. Raises KeyError for what is no region."""
        return self.links[one, other].delay_ms + self.links[other, one].delay_ms


class _Default(_Quality, frozen=True, forbid_unknown_fields=True, kw_only=True):
    round_trip_ms: Milliseconds | None = None

    def change(self) -> Change:
        if self.round_trip_ms is not None and self.delay_ms is not None:
            raise TopologyError("round_trip_ms and delay_ms: expected one of them")
        given = {name: getattr(self, name) for name in _Quality.__struct_fields__}
        if self.round_trip_ms is not None:
            given["delay_ms"] = self.round_trip_ms / 2
        return Change(**given)


class _Link(_Default, frozen=True, forbid_unknown_fields=True, kw_only=True, rename={"source": "from", "sink": "to"}):
    between: tuple[str, str] | None = None
    source: str | None = None
    sink: str | None = None

    def pairs(self) -> list[Pair]:
        if self.between is not None and self.source is None and self.sink is None:
            one, other = self.between
            return [(one, other), (other, one)]
        if self.between is not None or self.source is None or self.sink is None:
            raise TopologyError('expected either between = ["A", "B"], or from and to')
        if self.round_trip_ms is not None:
            raise TopologyError("round_trip_ms is of both directions: expected delay_ms with from and to")
        return [(self.source, self.sink)]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    regions: list[str]
    congestion_control: CongestionControl | dict[str, CongestionControl] = "cubic"
    default: _Default = _Default()
    links: list[_Link] = []


def load(path: Path = WORLD) -> Topology:
    """The topology that a file describes. Raises TopologyError, which names the file."""
    try:
        return parse(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, TopologyError) as error:
        raise TopologyError(f"{path}: {error}") from error


def parse(text: str) -> Topology:
    """The topology that this TOML describes. Raises TopologyError."""
    try:
        file = msgspec.toml.decode(text, type=_File)
    except msgspec.MsgspecError as error:
        raise TopologyError(str(error)) from error
    regions = _regions(file.regions)
    links = dict.fromkeys(permutations(regions, 2), _changed(Link(), file.default, "default"))
    for number, entry in enumerate(file.links, 1):
        where = f"links, number {number}"
        for pair in _pairs(entry, where):
            if pair not in links:
                raise TopologyError(f"{where}: {' to '.join(pair)}: expected two of {', '.join(regions)}")
            links[pair] = _changed(links[pair], entry, where)
    return Topology(regions, links, _congestion(file.congestion_control, regions))


def _regions(names: Iterable[str]) -> tuple[str, ...]:
    regions = tuple(names)
    for name in regions:
        try:
            Region.parse(name)
        except InvalidName as error:
            raise TopologyError(f"regions: {error.text!r}: {error.reason}") from error
    if len(set(regions)) != len(regions):
        raise TopologyError("regions: names one twice")
    if not 2 <= len(regions) <= MAX_REGIONS:
        raise TopologyError(f"regions: expected 2 to {MAX_REGIONS}, got {len(regions)}")
    return regions


def _pairs(entry: _Link, where: str) -> list[Pair]:
    try:
        return entry.pairs()
    except TopologyError as error:
        raise TopologyError(f"{where}: {error}") from error


def _changed(link: Link, entry: _Default, where: str) -> Link:
    try:
        return link.changed(entry.change())
    except TopologyError as error:
        raise TopologyError(f"{where}: {error}") from error


def _congestion(
    given: CongestionControl | dict[str, CongestionControl], regions: Iterable[str]
) -> dict[str, CongestionControl]:
    if not isinstance(given, dict):
        return dict.fromkeys(regions, given)
    if unknown := given.keys() - set(regions):
        raise TopologyError(f"congestion_control: {', '.join(sorted(unknown))}: not among the regions")
    return {name: given.get(name, "cubic") for name in regions}
