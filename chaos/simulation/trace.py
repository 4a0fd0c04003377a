"""What happened in a run, in order: told when a promise is broken, hashed to show that a seed reproduces it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

_SHOWN_BYTES = 24

Event = tuple[Any, ...]  # time, what, who, details


class Trace:
    """Only grows; events are put into words when somebody asks."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def add(self, now: float, what: str, *details: object) -> None:
        """Details are values that do not change afterwards."""
        self.events.append((now, what, *details))

    def tell(self, newest: int) -> str:
        """The newest events, a line each."""
        return "\n".join(map(_line, self.events[-newest:]))

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of all of it."""
        hasher = hashlib.sha256()
        for event in self.events:
            hasher.update(_line(event).encode())
        return hasher.hexdigest()


def _line(event: Event) -> str:
    now, what, *details = event
    return f"{now:10.4f}  {what:<12} " + " ".join(map(_word, details))


def _word(detail: object) -> str:
    if isinstance(detail, dict):
        return " ".join(_fields(detail))
    if isinstance(detail, bytes):
        return repr(detail[:_SHOWN_BYTES])
    return str(detail)


def _fields(message: dict[str, Any]) -> Iterator[str]:
    yield str(message["type"])
    for name, value in message.items():
        if name == "entries":
            spans = [f"{index}@{term}" for _, index, term in value]
            yield f"entries={','.join(spans[:3])}{'...' if len(spans) > 3 else ''}"
        elif name != "type":
            yield f"{name}={_word(value)}"
