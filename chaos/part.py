"""What a part of a node is to `chaos.powercuts`: a small program that can be cut off at any change of the disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

Promise = tuple[Any, ...]
Tell = Callable[[Promise], None]


class Part(Protocol):
    """`prepare` runs whole and is made durable; `act` and `go_on` (after a restart) may be cut anywhere, and raise what
    they like then; `check` runs after the crash and raises AssertionError, or whatever a node would fail to start with.
    """

    name: ClassVar[str]
    covers: ClassVar[tuple[str, ...]]  # the files whose syncs it depends on
    dense: ClassVar[int]  # how many of its last changes matter most: all of these are cut at, the others by a stride
    repeats: ClassVar[int]  # how often each of these is tried where chance decides what the disk keeps

    def prepare(self, folder: Path) -> None:
        """What was there long before."""

    def act(self, folder: Path, promise: Tell) -> None:
        """Work, and what is promised on the way."""

    def go_on(self, folder: Path, promise: Tell) -> None:
        """What a process started again does."""

    def check(self, folder: Path, promises: Sequence[Promise]) -> None:
        """Whether the promises hold."""
