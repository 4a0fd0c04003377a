"""Exactly-once proposals over a channel that may lose answers.

Every command gets a request id, (identity, sequence). While its outcome is unknown it is asked for again under the
same id, which the state answers without applying it twice. Each proposal carries the watermark below which everything
is settled, so that the state can forget those outcomes.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from consensus.commands import Command, Outcome, Reason
from consensus.errors import LogFull, LogUnavailable

DEFAULT_DEADLINE_SECONDS = 10.0
MAX_IN_FLIGHT = 1024
MAX_AHEAD = 32_768  # of the watermark; half of what the state allows (consensus.answers)

_MAX_IDENTITIES = 3  # tried for one command
_FIRST_PAUSE_SECONDS = 0.02
_LONGEST_PAUSE_SECONDS = 1.0
_NOT_APPLIED = {Reason.PROPOSER_UNKNOWN, Reason.ALREADY_ANSWERED}


class Channel(Protocol):
    """The way to a replica: the replica itself, or a connection to the process that holds it."""

    async def enrol(self, name: str) -> int:
        """A new identity. Raises InvalidCommand, LogFull, LogUnavailable."""

    async def propose(self, proposer: int, sequence: int, acknowledged: int, command: Command) -> Outcome:
        """The command's outcome. Raises InvalidCommand and LogFull (nothing happened, nor will), LogUnavailable (it may
        have happened, or may yet)."""


class Proposer:
    """One process's way to change the state. Needs no closing; belongs to one event loop."""

    def __init__(self, channel: Channel, name: str, *, deadline_seconds: float = DEFAULT_DEADLINE_SECONDS) -> None:
        self._channel = channel
        self._name = name
        self._deadline_seconds = deadline_seconds
        self._slots = asyncio.Semaphore(MAX_IN_FLIGHT)
        self._enrolling = asyncio.Lock()
        self._identity: _Identity | None = None

    async def propose(self, command: Command) -> Outcome:
        """The outcome of applying the command exactly once. Enrols first where that is needed.

        Raises InvalidCommand and LogFull, after which nothing has happened, nor will; and LogUnavailable when there is
        no answer within the deadline, after which it may or may not have happened: read before deciding.
        If the caller is cancelled, the command may or may not happen too.
        """
        try:
            async with asyncio.timeout(self._deadline_seconds), self._slots:
                for _ in range(_MAX_IDENTITIES):
                    identity = await self._enrolled()
                    outcome = await self._propose_as(identity, command)
                    if outcome is not None:
                        return outcome
                    self._forget(identity)
        except TimeoutError as error:
            raise LogUnavailable(f"no answer within {self._deadline_seconds:g} s") from error
        raise LogUnavailable("every identity is unknown as soon as it is enrolled; nothing was applied")

    async def _propose_as(self, identity: _Identity, command: Command) -> Outcome | None:
        """The outcome; None if the identity turned out to be unknown before anything happened under it."""
        sequence = await identity.take()
        try:
            outcome, asked_before = await self._ask(identity, sequence, command)
        finally:
            # Nobody asks for this sequence again: not after an answer, and not after giving up.
            identity.settle(sequence)
        if outcome.reason not in _NOT_APPLIED:
            return outcome
        if asked_before:
            self._forget(identity)
            raise LogUnavailable("the proposer was forgotten before the answer came; the outcome is unknown")
        return None

    async def _ask(self, identity: _Identity, sequence: int, command: Command) -> tuple[Outcome, bool]:
        """Until there is an answer; whether there was an attempt before that may have been applied."""
        asked_before = False
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                outcome = await self._channel.propose(identity.proposer, sequence, identity.acknowledged, command)
            except LogFull:
                # Final for this attempt, but it says nothing of one before it.
                if not asked_before:
                    raise
            except LogUnavailable:
                asked_before = True
            else:
                return outcome, asked_before
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def _enrolled(self) -> _Identity:
        async with self._enrolling:
            pause = _FIRST_PAUSE_SECONDS
            while self._identity is None:
                try:
                    self._identity = _Identity(await self._channel.enrol(self._name))
                except LogUnavailable:
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            return self._identity

    def _forget(self, identity: _Identity) -> None:
        if self._identity is identity:
            self._identity = None


class _Identity:
    """A proposer's number with the sequences given out under it.

    `acknowledged` is the highest sequence such that it and all below are settled: answered, or given up for good.
    """

    def __init__(self, proposer: int) -> None:
        self.proposer = proposer
        self.acknowledged = 0
        self._last = 0
        self._settled: set[int] = set()  # above `acknowledged`
        self._room = asyncio.Event()

    async def take(self) -> int:
        """The next sequence; waits while that would be too far above the watermark."""
        while self._last - self.acknowledged >= MAX_AHEAD:
            self._room.clear()
            await self._room.wait()
        self._last += 1
        return self._last

    def settle(self, sequence: int) -> None:
        self._settled.add(sequence)
        while self.acknowledged + 1 in self._settled:
            self.acknowledged += 1
            self._settled.remove(self.acknowledged)
        self._room.set()
