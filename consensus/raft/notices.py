"""Log lines about what others do, who could do it a thousand times a second."""

from __future__ import annotations

import logging
import threading
from collections.abc import Hashable

from consensus import clock

PAUSE_SECONDS = 10.0
_KINDS = 256


class Notices:
    """Writes one line of each kind in `pause_seconds`; the next one says how many were left out, as `suppressed`."""

    def __init__(self, log: logging.Logger, pause_seconds: float = PAUSE_SECONDS) -> None:
        self._log = log
        self._pause = pause_seconds
        self._lock = threading.Lock()
        self._kinds: dict[Hashable, tuple[float, int]] = {}  # when one was written, how many were left out since

    def warning(self, event: str, kind: Hashable, **fields: object) -> None:
        """`kind` has to come from a small set; what a peer chooses belongs into `fields`."""
        with self._lock:
            now = clock.monotonic()
            written, suppressed = self._kinds.get((event, kind), (now - self._pause, 0))
            if now - written < self._pause:
                self._kinds[event, kind] = written, suppressed + 1
                return
            if len(self._kinds) >= _KINDS:
                self._kinds.clear()
            self._kinds[event, kind] = now, 0
        self._log.warning(event, extra={**fields, "suppressed": suppressed})
