"""Loopback ports for servers that end and come back on the same ones: nobody else may get them in between.

A port that bind() gives out by itself is no such port. While its server is away, the system may give it to any
connection as its own end, and the server cannot listen again (seen: "Address already in use" after a kill).
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from random import SystemRandom

from chaos.claims import claim

_LEAST, _END = 10_000, 32_000  # below the ports that Linux gives out (32768 on)
_GIVEN_OUT = Path("/proc/sys/net/ipv4/ip_local_port_range")
_HUNDREDS = (0, 100, 200, 300)  # `meridian local` adds them to BASE_PORT, for four kinds of listeners
_MOST_REGIONS = 7


def free_ports(count: int) -> list[int]:
    """Different ones; this process keeps other runs of tests and benchmarks from taking them."""
    return [_reserve([0]) for _ in range(count)]


def free_addresses(count: int) -> list[str]:
    """HOST:PORT of such ports."""
    return [f"127.0.0.1:{port}" for port in free_ports(count)]


def free_base_port() -> int:
    """A BASE_PORT whose ports of the first regions are such ports."""
    return _reserve([hundred + region for hundred in _HUNDREDS for region in range(1, _MOST_REGIONS + 1)])


def _reserve(offsets: list[int], candidates: Iterable[int] = ()) -> int:
    for first in candidates or _candidates():
        with contextlib.ExitStack() as stack:
            try:
                taken = [stack.enter_context(claim(f"port-{first + offset}")) for offset in offsets]
                for offset in offsets:
                    socket.create_server(("127.0.0.1", first + offset)).close()
            except OSError:
                continue
            stack.pop_all()
            for each in taken:
                each.detach()  # it lasts until this process ends
            return first
    raise RuntimeError(f"no free ports from {_LEAST} to {_END}")


def _candidates() -> Iterable[int]:
    end = min(_END, max(_LEAST + 1000, int(_GIVEN_OUT.read_text().split()[0]))) - max(_HUNDREDS) - _MOST_REGIONS
    start = SystemRandom().randrange(_LEAST, end)
    return chain(range(start, end), range(_LEAST, start))
