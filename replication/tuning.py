"""How many requests at a time are worth having. Pure: it is told what comes, and when.

The rate of a few is watched until it rises no more: what rises by itself, as TCP finds out about the line, is no reason
to have more of them. Then twice as many are tried, and kept if they bring more. Many that bring no more than few only
crowd the line's queue, and when it overflows all of them lose at once.
"""

from __future__ import annotations

FIRST_FLOWS = 4
MOST_FLOWS = 16

LOOK_SECONDS = 0.5  # over which a rate is taken
GAIN = 1.1  # that counts as more
REST_SECONDS = 10.0  # after a try that brought no more; doubled by each in a row


class Window:
    """The rate at which something comes, looked at over windows of so many seconds."""

    __slots__ = ("_began", "_bytes", "_seconds", "rate")

    def __init__(self, seconds: float, now: float) -> None:
        self.rate: float | None = None  # bytes per second over the last window; None before there was one
        self._seconds = seconds
        self._began = now
        self._bytes = 0

    def add(self, count: int, now: float) -> bool:
        """So many bytes have come. Whether that closes a window."""
        self._bytes += count
        return self.look(now)

    def look(self, now: float) -> bool:
        """Closes the window if it is time; whether it was."""
        if now - self._began < self._seconds:
            return False
        self.rate = self._bytes / (now - self._began)
        self._began, self._bytes = now, 0
        return True

    def lately(self, now: float) -> float:
        """The rate, of what there is of the first window too."""
        if self.rate is not None:
            return self.rate
        return self._bytes / (now - self._began) if now > self._began else 0.0


class Tuning:
    """`target` is the number that is best, or is being tried."""

    def __init__(self) -> None:
        self.target = FIRST_FLOWS
        self._window: Window | None = None
        self._known: float | None = None  # what the number that is tried has brought before
        self._before: tuple[int, float] | None = None  # the number and the rate before it was raised
        self._rest_seconds = REST_SECONDS
        self._rests_until = float("-inf")

    def brought(self, count: int, now: float, flows: int) -> None:
        """Bytes have come while there were so many flows."""
        if self._window is None:
            self._window = Window(LOOK_SECONDS, now)
        if not self._window.add(count, now) or flows < self.target:  # or there is no more to ask for
            return
        rate = self._window.lately(now)
        known, self._known = self._known, rate
        if known is not None and rate < GAIN * known:
            self._settle(rate, now)

    def _settle(self, rate: float, now: float) -> None:
        """The rate rises no more."""
        before, self._before = self._before, None
        if before and rate < GAIN * before[1]:
            self.target, self._known = before[0], None
            self._rests_until = now + self._rest_seconds
            self._rest_seconds *= 2
        elif now >= self._rests_until and self.target < MOST_FLOWS:
            if before:
                self._rest_seconds = REST_SECONDS
            self._before, self._known = (self.target, rate), None
            self.target = min(2 * self.target, MOST_FLOWS)
