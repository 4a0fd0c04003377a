"""Faults a file system can be told to show: which operation, on which paths, how it fails or how long it takes."""

from __future__ import annotations

import errno
import os
from dataclasses import asdict, dataclass
from random import Random

OPERATIONS = frozenset(
    {"create", "open", "read", "write", "truncate", "fsync", "fsyncdir", "mkdir", "rename", "unlink"}
)


@dataclass(frozen=True, slots=True)
class Fault:
    """`operation` on a path that contains `match` fails with `error` after `delay_seconds`.

    `error` is the name of an errno, or "" to be only slow. `probability` applies to each time; `times` bounds how often
    the fault strikes (0: without end). Raises ValueError for an unknown operation or error.
    """

    operation: str
    error: str = ""
    match: str = ""
    probability: float = 1.0
    delay_seconds: float = 0.0
    times: int = 0

    def __post_init__(self) -> None:
        if self.operation not in OPERATIONS or not (self.error == "" or hasattr(errno, self.error)):
            raise ValueError(f"no such fault: {self}")

    def to_json(self) -> dict[str, object]:
        """Plain values, for the file system's control pipe."""
        return asdict(self)


class Faults:
    """The faults in force; `strike` is asked before each operation."""

    def __init__(self, seed: int = 0) -> None:
        self._chance = Random(seed)
        self._faults: list[tuple[Fault, int]] = []

    def replace(self, faults: list[Fault]) -> None:
        """From now on exactly these."""
        self._faults = [(fault, 0) for fault in faults]

    def strike(self, operation: str, path: str) -> tuple[float, OSError | None]:
        """How long to wait and what to raise then."""
        for position, (fault, struck) in enumerate(self._faults):
            if fault.operation != operation or fault.match not in path or (fault.times and struck >= fault.times):
                continue
            if self._chance.random() < fault.probability:
                self._faults[position] = (fault, struck + 1)
                number = getattr(errno, fault.error, 0)
                return fault.delay_seconds, OSError(number, os.strerror(number), path) if number else None
        return 0.0, None
