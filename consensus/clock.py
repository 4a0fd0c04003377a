"""The one door through which time enters. Everything else takes the time as a value or takes a `Clock`."""

import time


def wall_ms() -> int:
    """Milliseconds since the epoch: for log time and for people, never for measuring durations."""
    return time.time_ns() // 1_000_000


def monotonic() -> float:
    """Seconds on a clock that never goes back, for durations and deadlines inside one boot."""
    return time.monotonic()


def boottime() -> float:
    """Seconds on CLOCK_BOOTTIME, which goes on while the machine sleeps: the clock of leases."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
