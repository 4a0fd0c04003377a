"""What peers have sent and the raft thread has not taken yet: bounded for each peer, so that none can fill the memory
or take another's room."""

from __future__ import annotations

import logging
import threading
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any

from consensus import clock
from consensus.raft.links import Message
from consensus.raft.notices import Notices

MAX_BYTES = 32 * 1024 * 1024
MAX_MESSAGES = 4096
PATIENCE_SECONDS = 0.1
_CONTAINER_BYTES = 64  # about what Python takes for a list or a map with little in it

log = logging.getLogger(__name__)


class Inbox:
    """`put` is a transport's `receive`. Each peer has room for `most_messages` messages of about `most_bytes` bytes; a
    single one fits always. Without room `put` holds its caller, and so its peer, back for `patience_seconds`; if
    nothing has been taken by then, this message and what follows it is dropped until something is: a link stays alive
    while the raft thread is stuck. `wake` is called after each message that was let in."""

    def __init__(
        self,
        wake: Callable[[], None],
        *,
        most_bytes: int = MAX_BYTES,
        most_messages: int = MAX_MESSAGES,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self._wake = wake
        self._most_bytes = most_bytes
        self._most_messages = most_messages
        self._patience = patience_seconds
        self._changed = threading.Condition()
        self._waiting: deque[tuple[str, Message]] = deque()
        self._held: defaultdict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
        self._full_since: dict[str, float] = {}
        self._closed = False
        self._dropped = 0
        self._notices = Notices(log)

    @property
    def dropped(self) -> int:
        """How many messages found no room so far."""
        return self._dropped

    def put(self, peer: str, message: Message) -> None:
        """Lets a message in, or drops it; see above."""
        size = _weight(message)
        with self._changed:
            if not self._await_room(peer, size):
                self._dropped += 1
                if not self._closed:
                    self._notices.warning("raft_inbox_full", peer, peer=peer)
                return
            count, held = self._held[peer]
            self._held[peer] = count + 1, held + size
            self._waiting.append((peer, message))
        self._wake()

    def _await_room(self, peer: str, size: int) -> bool:
        while not self._closed:
            count, held = self._held[peer]
            if not count or (count < self._most_messages and held + size <= self._most_bytes):
                return True
            since = self._full_since.setdefault(peer, clock.monotonic())
            left = since + self._patience - clock.monotonic()
            if left <= 0:
                return False
            self._changed.wait(left)
        return False

    def take(self) -> list[tuple[str, Message]]:
        """Everything that waits, (peer, message) in the order of arrival; at once, and maybe nothing."""
        with self._changed:
            taken = list(self._waiting)
            self._waiting.clear()
            self._held.clear()
            self._full_since.clear()
            self._changed.notify_all()
        return taken

    def close(self) -> None:
        """What waits is forgotten, what comes is dropped, who is held back is let go."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()


def _weight(value: Any) -> int:
    """About the bytes that it takes; its depth is bounded by where it comes from."""
    weight, left = 0, [value]
    while left:
        match left.pop():
            case bytes() | str() as text:
                weight += len(text)
            case dict() as fields:
                weight += _CONTAINER_BYTES
                left += fields.values()
            case tuple() | list() as items:
                weight += _CONTAINER_BYTES
                left += items
            case _:
                weight += 8
    return weight
