"""Addresses as the configuration has them: `HOST:PORT`, and members of a cluster as `NAME=HOST:PORT[/PORT]`.

A member's first port is that of its keeper; the second, 100 above the first unless it is given, is that of its gateways
for other members.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

TRANSFERS_OFFSET = 100


def split_address(address: str) -> tuple[str, int]:
    """Host (an IPv6 one without its brackets) and port of "host:port"."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def is_loopback(address: str) -> bool:
    """Whether "host:port" is reached from this machine only; a host name other than localhost counts as not."""
    host, _ = split_address(address)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def keeper_addresses(members: Iterable[str]) -> dict[str, str]:
    """host:port of each keeper by the member's name. Of members in the form above."""
    return {name: keeper for name, keeper, _ in map(_split, members)}


def transfer_addresses(members: Iterable[str]) -> dict[str, str]:
    """host:port for transfers by the member's name. Of members in the form above."""
    return {name: transfers for name, _, transfers in map(_split, members)}


def _split(member: str) -> tuple[str, str, str]:
    name, _, place = member.partition("=")
    keeper, _, port = place.partition("/")
    host, _, keeper_port = keeper.rpartition(":")
    return name, keeper, f"{host}:{port or int(keeper_port) + TRANSFERS_OFFSET}"
