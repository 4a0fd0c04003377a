"""The state behind a member's log, fed with what is committed as `consensus.replica` does, but at once.

Most seeds need no more than the index up to which entries were applied; the others run the real state machine. Either
falls back to its last checkpoint when power is lost.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from consensus.commands import Outcome
from consensus.log import Entry
from consensus.state import State

CLUSTER = "simulation"


class Replica(Protocol):
    """What a member's process has behind its log. `durable` is what a power failure leaves of `applied`."""

    applied: int
    durable: int

    def open(self) -> None:
        """The process begins."""

    def apply(self, entries: Sequence[Entry], commit: int) -> list[Outcome]:
        """The entries up to `commit`; the outcomes, where there is a state."""

    def checkpoint(self) -> None:
        """What is applied becomes durable."""

    def end(self, *, power_lost: bool) -> None:
        """The process ends."""

    def hash(self) -> str:
        """Equal where the same was applied."""


class Counter:
    """No state but how far it is."""

    def __init__(self) -> None:
        self.applied = self.durable = 0

    def open(self) -> None:
        """Nothing to be read."""

    def apply(self, _: Sequence[Entry], commit: int) -> list[Outcome]:
        """Counts."""
        self.applied = commit
        return []

    def checkpoint(self) -> None:
        """Counts."""
        self.durable = self.applied

    def end(self, *, power_lost: bool) -> None:
        """Back to the checkpoint, if power was lost."""
        if power_lost:
            self.applied = self.durable

    def hash(self) -> str:
        """Says nothing."""
        return ""


class Database:
    """The real one, in a folder of its own; the copy taken at each checkpoint is what power failures leave."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._image = folder.with_name(f"{folder.name}.durable")
        self._state: State | None = None
        self.applied = self.durable = 0

    @property
    def state(self) -> State:
        """While the process runs."""
        assert self._state is not None
        return self._state

    def open(self) -> None:
        """Reads where it stands."""
        self._state = State.open(self._folder, CLUSTER)
        self.applied = self._state.applied

    def apply(self, entries: Sequence[Entry], _: int) -> list[Outcome]:
        """In one transaction."""
        outcomes = self.state.apply(entries)
        self.applied = self.state.applied
        return outcomes

    def checkpoint(self) -> None:
        """As the product does, then copies the database."""
        self.durable = self.state.checkpoint()
        shutil.rmtree(self._image, ignore_errors=True)
        self._image.mkdir()
        for name in ("CURRENT", "db-1.sqlite"):
            shutil.copyfile(self._folder / name, self._image / name)

    def end(self, *, power_lost: bool) -> None:
        """Back to the copy, if power was lost."""
        if self._state is not None:
            self._state.close()
            self._state = None
        if power_lost:
            shutil.rmtree(self._folder, ignore_errors=True)
            if self._image.exists():
                shutil.copytree(self._image, self._folder)
            self.applied = self.durable

    def hash(self) -> str:
        """Of all rows."""
        return self.state.hash()
