"""Who uses the log: proposals that are asked again under the same request id until they are answered, and reads.

With the real state each client follows `consensus.proposer`: it enrols, numbers its requests, and says which of them it
will not ask again. Without it a request is its bytes, and nothing is made of its being committed twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Protocol

from chaos.simulation.judge import Judge
from chaos.simulation.machine import Machine
from chaos.simulation.trace import Trace
from consensus.codec import encode
from consensus.commands import BlobFact, Command, EnrolProposer, Envelope, RecordBlobs
from consensus.errors import LogError
from consensus.names import Digest, RepositoryName, StoreId

_REPOSITORY = RepositoryName.parse("team/app")
_STORE = StoreId("0" * 32)
_PATIENCE_SECONDS = 20.0
_FIRST_MS = 1_700_000_000_000


class Market(Protocol):
    """What a client needs of the world."""

    machines: dict[str, Machine]
    judge: Judge
    trace: Trace
    now: float

    def at(self, pause: float, key: str, call: Callable[[], None]) -> None:
        """Calls back after `pause` seconds."""


@dataclass(slots=True)
class _Request:
    payload: bytes
    sequence: int
    began: float


class Client:
    """One that proposes and reads; several requests may be under way."""

    def __init__(self, number: int, market: Market, seed: int, *, real_state: bool) -> None:
        self.key = f"client {number}"
        self.done = 0  # proposals acknowledged
        self.reads = 0
        self.silent = False
        self._market = market
        self._chance = Random(f"client/{seed}/{number}")
        self._real_state = real_state
        self._last = 0
        self._identity = 0
        self._settled: set[int] = set()
        self._watermark = 0

    def propose(self) -> None:
        """Something new, through any member."""
        if self.silent:
            return
        if self._real_state and not self._identity:
            self._ask(_Request(self._envelope(0, EnrolProposer(self.key.replace(" ", "-"))), 0, self._market.now))
            return
        self._last += 1
        self._ask(_Request(self._payload(self._last), self._last, self._market.now))

    def read(self) -> None:
        """A read index, through any member."""
        if self.silent:
            return
        floor = self._market.judge.floor
        machine = self._anyone()

        def answer(result: int | LogError) -> None:
            if isinstance(result, int):
                self.reads += 1
                self._market.judge.reads(machine.name, result, floor)

        machine.ask(lambda member, done: member.read_index(done), answer)

    def _anyone(self) -> Machine:
        return self._market.machines[self._chance.choice(list(self._market.machines))]

    def _ask(self, request: _Request) -> None:
        machine = self._anyone()
        if self.silent:
            return

        def answer(result: int | LogError) -> None:
            if isinstance(result, int):
                self._take(machine, request, result)
            elif self._market.now - request.began < _PATIENCE_SECONDS:
                self._market.at(self._chance.uniform(0.02, 1.0), self.key, lambda: self._ask(request))
            else:
                self._settle(request.sequence)

        if self._real_state and request.sequence:
            request.payload = self._payload(request.sequence)
        machine.ask(lambda member, done: member.propose(request.payload, done), answer)

    def _take(self, machine: Machine, request: _Request, index: int) -> None:
        self._market.judge.acknowledges(machine.name, request.payload, index)
        self._market.trace.add(self._market.now, "acknowledges", machine.name, index, request.payload)
        self.done += 1
        outcome = machine.outcomes.get(index)
        if self._real_state and outcome is not None and not request.sequence:
            self._identity = self._identity or outcome.index
        self._settle(request.sequence)

    def _settle(self, sequence: int) -> None:
        self._settled.add(sequence)
        while self._watermark + 1 in self._settled:
            self._watermark += 1

    def _payload(self, sequence: int) -> bytes:
        if not self._real_state:
            return f"{self.key}/{sequence}/".encode().ljust(self._chance.choice((20, 60, 400)), b".")
        digest = Digest("sha256", hashlib.sha256(f"{self.key}/{sequence}".encode()).hexdigest())
        return self._envelope(sequence, RecordBlobs(_REPOSITORY, _STORE, (BlobFact(digest, 10 + sequence),)))

    def _envelope(self, sequence: int, command: Command) -> bytes:
        time_ms = _FIRST_MS + int(1000 * self._market.now)
        return encode(Envelope(self._identity, sequence, self._watermark, time_ms, command))
