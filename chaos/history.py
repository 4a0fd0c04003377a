"""What clients did and were told, and what the registry may therefore answer: pure, no I/O.

Every tag, manifest and blob is a register: the digest it holds, or None. A write whose answer never came is in doubt:
it may have happened at any time since it began, or never.
"""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from chaos.content import Described

Value = str | None  # a digest, or None: absent


Kind = Literal["tag", "manifest", "blob"]


class Key(NamedTuple):
    """One register: a tag by its name, a manifest or blob by its digest, each within its repository."""

    kind: Kind
    repository: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.repository} {self.name}"


@dataclass(eq=False, slots=True)
class Write:
    """`ended` is infinite while the write is under way or in doubt. A write that was refused is taken out. `place` is
    the address it was sent to."""

    value: Value
    started: float
    ended: float = math.inf
    place: str = ""

    @property
    def acknowledged(self) -> bool:
        """The registry said that it was done."""
        return self.ended < math.inf


@dataclass(frozen=True, slots=True)
class Swap:
    """An acknowledged compare-and-swap."""

    key: Key
    expected: Value
    value: str


@dataclass(eq=False, slots=True)
class PendingUpload:
    """An upload that was begun and not seen to end; `content` is all that was ever going to be sent. `place` is the
    address at which it was begun."""

    repository: str
    location: str
    digest: str
    content: bytes
    place: str = ""


def possible(writes: Iterable[Write], read_started: float, read_ended: float = math.inf) -> set[Value]:
    """The values a read between those moments may see: none that an acknowledged later write had replaced by then."""
    begun = [Write(None, -math.inf, -math.inf), *(write for write in writes if write.started < read_ended)]
    over = max((write.started for write in begun if write.ended < read_started), default=-math.inf)
    return {write.value for write in begun if write.ended >= over}


def lost_updates(swaps: Iterable[Swap]) -> list[str]:
    """Two swaps away from the same value cannot both succeed, if no value is ever written twice."""
    taken: dict[tuple[Key, Value], str] = {}
    found = []
    for swap in swaps:
        other = taken.setdefault((swap.key, swap.expected), swap.value)
        if other != swap.value:
            found.append(f"{swap.key}: both {other} and {swap.value} replaced {swap.expected}")
    return found


@dataclass(eq=False)
class History:
    """All that happened, as the clients saw it. `pool` holds, by kind and repository, what is there and stays there."""

    writes: defaultdict[Key, list[Write]] = field(default_factory=lambda: defaultdict(list))
    swaps: list[Swap] = field(default_factory=list)
    uploads: list[PendingUpload] = field(default_factory=list)
    surprises: list[str] = field(default_factory=list)  # answers no healthy registry gives
    tolerant: bool = False  # the disk is made to fail: 5xx other than 500 are no surprise
    pool: defaultdict[tuple[str, str], list[Described]] = field(default_factory=lambda: defaultdict(list))
    held: set[tuple[str, str]] = field(default_factory=set)  # (address, digest) of blobs pushed there
    touched: set[Key] = field(default_factory=set)  # since the last `settle`
    acknowledged: int = 0
    progress: asyncio.Event = field(default_factory=asyncio.Event)  # set by every acknowledgement

    def begin(self, key: Key, value: Value, now: float, *, place: str = "") -> Write:
        """A write goes out."""
        write = Write(value, now, place=place)
        self.writes[key].append(write)
        self.touched.add(key)
        return write

    def acknowledge(self, write: Write, now: float) -> None:
        """It was answered: done."""
        write.ended = now
        self.acknowledged += 1
        self.progress.set()

    def refuse(self, key: Key, write: Write) -> None:
        """It was answered: not done, now or later."""
        self.writes[key].remove(write)

    def settle(self, key: Key, value: Value, now: float) -> None:
        """After a crash nothing is under way: what was read is what it is, and a write in doubt is no longer."""
        self.writes[key] = [Write(value, now, now)]
        self.touched.discard(key)
