"""The port through which members talk: what the engine needs of a transport, and what a transport needs of it.

`consensus.raft.transport` implements it over gRPC and mutual TLS. Purpose: at most once, in order, between processes
that have proved who they are. Not its purpose: delivery. Raft repeats what got lost; nothing here does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

Message = dict[str, Any]
"""What is sent: string keys, msgpack values. What arrives holds tuples where lists were sent."""

Receive = Callable[[str, Message], None]
Linked = Callable[[str, bool], None]

MAX_FRAME_BYTES = 16 * 1024 * 1024  # one message, encoded
MAX_LENGTH = 16384  # elements of one list or map in a message
MAX_ELEMENTS = 262144  # elements of all its lists and maps together


class Transport(Protocol):
    """How raft messages reach the other members: at most once, in order for each incarnation of the sender, never
    blocking. What was queued or on its way when a link broke is lost, not repeated on the next one."""

    def start(self, receive: Receive, linked: Linked) -> None:
        """Begins. `receive(peer, message)` and `linked(peer, up)` are called from any thread and return at once; for
        one peer neither is called twice at a time. A receiver without room may hold `receive` back for a fraction of
        the heartbeat: nothing more is read of that peer meanwhile (`consensus.raft.inbox` does so). `linked` tells
        changes only; a peer may be received from while the link to it is down."""

    def send(self, peer: str, message: Message) -> bool:
        """Queues it. False (and it is lost) when the peer isn't linked or its queue is full (bounded in bytes and
        count). Raises KeyError for who is no peer; ValueError or TypeError for what cannot be encoded within
        MAX_FRAME_BYTES, which no repetition would mend. MAX_LENGTH and MAX_ELEMENTS bind the sender: its stream is
        refused beyond them."""

    def round_trip_seconds(self, peer: str) -> float | None:
        """Smoothed, from the transport's own heartbeats; None before the first. Kept while the link is down."""

    def close(self) -> None:
        """Ends every thread within two seconds; idempotent. Nothing is received or told any more once it returns."""
