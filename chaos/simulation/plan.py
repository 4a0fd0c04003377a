"""What a seed decides before anything happens. Each seed has some kinds of faults only, so that none hides another."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from consensus.raft.core import Timing

FAULTS = (
    "kill",
    "power",
    "power_at_sync",
    "kill_at_sync",
    "all",
    "isolate",
    "deafen",
    "mute",
    "split",
    "link",
    "pause",
    "slow_link",
    "slow_disk",
    "full_disk",
    "bad_sync",
    "transfer",
    "hand_over",
    "churn",
    "return",
    "crash_loop",
    "rewrite",
)
STORIES = (
    "figure_eight",
    "two_leaders",
    "stale_round",
    "elections",
    "crash_loop",
    "torn_twice",
    "cut_short",
    "full_disk",
)
_BUSY = {"torn_twice", "cut_short", "full_disk"}  # these need several entries on their way
_ELECTIONS = ("pre_vote", "pre_vote_granted", "request_vote", "response_vote")
_TIMINGS = (
    Timing(0.15, 1.0, 2.0),
    Timing(0.3, 1.5, 3.0),
    Timing(0.3, 1.0, 2.0),
    Timing(0.5, 2.0, 4.0),
    Timing(0.1, 0.4, 0.8),
)


@dataclass(frozen=True, slots=True)
class Whim:
    """What a wild network does to one kind of message: chances, and how many seconds such a one is late at most."""

    lost: float
    duplicated: float
    late: float


@dataclass(frozen=True, slots=True)
class Plan:
    """One run. Times are simulated seconds, rates are a second, chances lie between 0 and 1."""

    seed: int
    names: str
    timing: Timing
    cadence: tuple[float, ...]  # how long a member rests when nothing arrives, by member
    faults: tuple[str, ...]
    story: str | None  # told over and over instead of the faults
    fault_seconds: float  # between two of them, in the mean
    wild: bool  # the network duplicates, reorders and replays
    duplicated: float  # by a wild network
    whims: dict[str, Whim]  # of a wild network, by kind of message
    delay: float
    jitter: float
    loss: float  # chance of a message to be lost: with its connection, unless wild
    torn: float  # chance that a crash keeps parts of what was not synced
    sector_bytes: int  # what a disk keeps or loses as a whole
    real_state: bool
    proposal_rate: float
    read_rate: float
    trim_seconds: float
    segment_bytes: int
    memory_bytes: int  # of the journal
    batch_entries: int  # in one message
    active_seconds: float = 35.0


def draw(seed: int, members: int | None = None) -> Plan:
    """The plan of a seed; 3 or 5 members unless told."""
    chance = Random(f"plan/{seed}")
    count = chance.choice((3, 3, 5)) if members is None else (chance.random(), members)[1]
    faults = tuple(fault for fault in FAULTS if chance.random() < 0.45) or ("power", "isolate")
    story = chance.choice(STORIES) if chance.random() < 0.35 else None
    if story in {"two_leaders", "elections"}:  # in three a single other one decides
        count = members or 5
    wild = (chance.random() < 0.3 and story is None) or story == "elections"
    delay = chance.choice((0.0005, 0.005, 0.03, 0.08))
    jitter = delay * chance.choice((0.1, 1.0, 3.0))
    timing = chance.choice([each for each in _TIMINGS if each.election_least >= 5 * (delay + jitter)])
    return Plan(
        seed=seed,
        names="abcde"[:count],
        timing=timing,
        cadence=tuple(chance.choice((0.08, 0.15, 0.3)) for _ in range(count)),
        faults=faults,
        story=story,
        fault_seconds=max(timing.election_most / 2, chance.choice((0.6, 1.2, 2.5))),
        wild=wild,
        duplicated=chance.choice((0.04, 0.3)),
        whims=_whims(chance, story) if wild else {},
        delay=delay,
        jitter=jitter,
        loss=chance.choice((0.0, 0.002, 0.02)),
        torn=1.0 if story in {"torn_twice", "cut_short"} else chance.choice((0.0, 0.5, 1.0)),
        sector_bytes=chance.choice((64, 512)),
        real_state=chance.random() < 0.1,
        proposal_rate=chance.choice((0.5, 2.0, 4.0)) * (4 if story in _BUSY else 1),
        read_rate=chance.choice((0.2, 0.6, 2.0)),
        trim_seconds=chance.choice((2.0, 6.0, 30.0)),
        segment_bytes=chance.choice((300, 1000, 4096)),
        batch_entries=1 if story in {"figure_eight", "torn_twice"} else chance.choice((1, 2, 4096, 4096)),
        memory_bytes=chance.choice((600, 10_000, 1_000_000, 1_000_000)),
    )


def _whims(chance: Random, story: str | None) -> dict[str, Whim]:
    if story == "elections":
        return {kind: Whim(0.5, 0.5, chance.choice((0.5, 4.0))) for kind in ("request_vote", "response_vote")}
    share = (0.0, 0.3, 0.7)
    return {
        kind: Whim(chance.choice(share), chance.choice(share), chance.choice((0.0, 0.5, 4.0)))
        for kind in _ELECTIONS
        if chance.random() < 0.5
    }
