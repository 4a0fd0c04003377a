"""What a caller expects a tag to be before it is moved or deleted: compare-and-swap."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from consensus.commands import ABSENT, Expected
from consensus.names import Digest


class Anything(Enum):
    """Stands for whatever the tag names: that it exists, no matter where it points."""

    ANYTHING = "*"


ANYTHING = Anything.ANYTHING
Names = frozenset[Digest] | Anything


@dataclass(frozen=True, slots=True)
class Condition:
    """`match`: the tag must name one of these. `none_match`: it must name none of these. None: no matter."""

    match: Names | None = None
    none_match: Names | None = None

    @property
    def is_fixed(self) -> bool:
        """Whether one value of `expected` says it all, wherever the tag points: nobody has to look first."""
        if self.none_match is None:
            return self.match is None or (self.match is not ANYTHING and len(self.match) == 1)
        return self.none_match is ANYTHING and self.match is None

    def holds(self, current: Digest | None) -> bool:
        """Whether a tag that names `current` (None: there is none) meets the condition."""
        return (self.match is None or _name(self.match, current)) and (
            self.none_match is None or not _name(self.none_match, current)
        )

    def expected(self, current: Digest | None) -> Expected:
        """What the command must still find for the condition to hold; `current`, for which it `holds`, matters only
        where the condition is not fixed."""
        if self == UNCONDITIONAL:
            return None
        if not self.is_fixed:
            return ABSENT if current is None else current
        return next(iter(self.match)) if isinstance(self.match, frozenset) else ABSENT


UNCONDITIONAL = Condition()


def _name(names: Names, current: Digest | None) -> bool:
    return current is not None and (names is ANYTHING or current in names)
