"""What every handler works with."""

from __future__ import annotations

from dataclasses import dataclass, field

from node.access import Access
from node.config import Limits
from node.gateway.forwarding import Forwarder
from node.gateway.refusals import Overloaded
from node.registry import Registry

MAX_BUFFERED_BYTES = 128 * 1024 * 1024


class Buffered:
    """Bytes of manifests that are being received or stored. Counted as they arrive: who announces much and sends little
    takes nothing from the others."""

    __slots__ = ("_bytes",)

    def __init__(self) -> None:
        self._bytes = 0

    def take(self, size_bytes: int) -> None:
        """Raises Overloaded when this process holds too much already."""
        if self._bytes + size_bytes > MAX_BUFFERED_BYTES:
            raise Overloaded("too many manifests are being pushed at once")
        self._bytes += size_bytes

    def release(self, size_bytes: int) -> None:
        """Gives back what was taken."""
        self._bytes -= size_bytes


@dataclass(frozen=True, slots=True)
class Gateway:
    """One gateway process: the use cases, who may call them, the bounds, and the way to other nodes, if there are any;
    for who comes from one of them there are none, so that no request is passed on twice."""

    registry: Registry
    access: Access
    limits: Limits
    forwarder: Forwarder | None = None
    buffered: Buffered = field(default_factory=Buffered)
