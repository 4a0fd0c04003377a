"""Requests that one node passes on to another, and what comes back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PeerRequest:
    """A request for another node. `target` is path and query as the client sent them. With `waits` the body is sent
    only once the other side asks for it. An answer that takes longer than `answer_seconds`, from the end of the body
    on, is no answer."""

    method: str
    target: str
    headers: Sequence[tuple[str, str]]
    body: AsyncIterator[bytes] | None
    waits: bool
    answer_seconds: float


@dataclass(frozen=True, slots=True)
class PeerAnswer:
    """An answer, whole. Header names are in lower case."""

    status: int
    headers: Sequence[tuple[str, str]]
    body: bytes
