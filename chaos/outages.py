"""What can befall regions, and what has to hold meanwhile: who must go on, who must not acknowledge, who may lead.

leader, follower      kill -9 of that node, which comes back a little later, under load
all                   kill -9 of every node
power                 the same, and what was not synced is gone (needs the lossy file system)
freeze                SIGSTOP of the leader for as long as others need to elect, then SIGCONT
cut-leader            nothing passes between the leader and the others
cut-follower          nothing passes between a follower and the others
mute-leader, -follower    nothing that it sends passes; it hears everything
deaf-leader, -follower    nothing that is sent to it passes; it is heard
cut-link              nothing passes between the leader and one follower; both reach the third
cut-followers         nothing passes between the followers
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from chaos.history import History, Key
from chaos.ways import Pair

KILLS = ("leader", "follower", "all", "power")
PARTITIONS = (
    "cut-leader",
    "cut-follower",
    "mute-leader",
    "deaf-leader",
    "mute-follower",
    "deaf-follower",
    "cut-link",
    "cut-followers",
)
OUTAGES = (*KILLS, "freeze", *PARTITIONS)


@dataclass(frozen=True, slots=True)
class Outage:
    """`alone` cannot reach a majority: what it is asked for meanwhile, it does not acknowledge. All others go on,
    with a pause for an election where `elects`, and without one where not."""

    kind: str
    alone: frozenset[str]
    elects: bool
    pairs: tuple[Pair, ...] = ()


def outage(kind: str, steward: str, names: Iterable[str], chance: Random) -> Outage:
    """That outage of these regions, one of which leads."""
    everyone = sorted(names)
    followers = [name for name in everyone if name != steward]
    if kind in {"all", "power"}:
        return Outage(kind, frozenset(everyone), elects=True)
    hits_leader = kind.endswith("leader") or kind == "freeze"
    victim = steward if hits_leader else chance.choice(followers)
    match kind.partition("-")[0]:
        case "mute":
            pairs = [(victim, name) for name in everyone if name != victim]
        case "deaf":
            pairs = [(name, victim) for name in everyone if name != victim]
        case "cut" if kind == "cut-link":
            pairs = [(victim, steward), (steward, victim)]
        case "cut" if kind == "cut-followers":
            one, other = followers
            return Outage(kind, frozenset(), False, ((one, other), (other, one)))
        case "cut":
            pairs = [(one, other) for one in everyone for other in everyone if victim in {one, other} and one != other]
        case _:
            pairs = []
    return Outage(kind, frozenset({victim}), hits_leader, tuple(pairs))


def acknowledged(history: History, place: str, since: float, until: float) -> list[tuple[float, float, Key]]:
    """(begun, answered, what) of the writes sent to `place` that began after `since` and were acknowledged before
    `until`."""
    writes = ((write, key) for key in history.touched for write in history.writes[key] if write.place == place)
    return sorted(
        (each.started, each.ended, key) for each, key in writes if each.started > since and each.ended < until
    )


def longest_gap(moments: Iterable[float], since: float, until: float) -> float:
    """The longest time between two of the moments."""
    moments = [since, *sorted(moments), until]
    return max(later - earlier for earlier, later in pairwise(moments))
