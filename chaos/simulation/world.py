"""One run: a clock that jumps from event to event, and everybody who lives by it, in one thread."""

from __future__ import annotations

import gc
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from heapq import heappop, heappush
from pathlib import Path
from random import Random
from typing import Any

from chaos.simulation.client import Client
from chaos.simulation.judge import Broken, Judge
from chaos.simulation.machine import Machine
from chaos.simulation.nemesis import CALM_TIMEOUTS, Nemesis
from chaos.simulation.network import Network
from chaos.simulation.plan import Plan
from chaos.simulation.replica import Counter, Database, Replica
from chaos.simulation.trace import Trace
from chaos.simulation.volume import Disks
from consensus import clock, entropy
from consensus.raft import journal as journals
from consensus.raft import leading as leaders
from consensus.raft.links import Message
from consensus.raft.pinned import use_clock

_CLIENTS = 3
_MEMORY = Path("/dev/shm")  # the files of a run are small and nobody needs them afterwards
_START = 1000.0
_SILENCE = 2.5  # seconds at the end, in which clients ask nothing and everybody catches up
_TOLD = 50
_CALM_RATE = 5.0  # in the longest election timeout


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to. `story` has its end in words, if a promise was broken."""

    seed: int
    promise: str | None
    detail: str
    story: str
    digest: str
    seconds: float  # simulated
    commits: int
    acknowledged: int
    reads: int
    terms: int
    deaths: int
    faults: int
    messages: int


class World:
    """Made for one plan and run once."""

    def __init__(self, plan: Plan, folder: Path, disks: Disks) -> None:
        self.plan = plan
        self.now = _START
        self.trace = Trace()
        self.judge = Judge(plan.names)
        self.deaths = 0
        self.messages = 0
        self._queue: list[tuple[float, str, int, Callable[[], None]]] = []
        self._serial: dict[str, int] = {}
        self.network = Network(plan, self.at, self._deliver, self._linked, lambda: self.now)
        self.machines: dict[str, Machine] = {}
        for name in plan.names:
            chance = Random(f"volume/{plan.seed}/{name}")
            volume = disks.add(folder / name, chance, sector_bytes=plan.sector_bytes)
            replica: Replica = Database(folder / f"{name}.state") if plan.real_state else Counter()
            self.machines[name] = Machine(name, self, volume, replica)
        self._clients = [Client(number, self, plan.seed, real_state=plan.real_state) for number in range(_CLIENTS)]
        self._chance = Random(f"world/{plan.seed}")
        self._nemesis: Nemesis | None = None
        self._starting: set[str] = set()

    def run(self) -> Outcome:
        """To its end, or until a promise is broken."""
        broken: Broken | None = None
        try:
            self._run()
        except Broken as found:
            broken = found
        return Outcome(
            seed=self.plan.seed,
            promise=broken.promise if broken else None,
            detail=broken.detail if broken else "",
            story=self.trace.tell(_TOLD) if broken else "",
            digest=self.trace.digest if broken else "",
            seconds=self.now - _START,
            commits=self.judge.highest,
            acknowledged=sum(client.done for client in self._clients),
            reads=sum(client.reads for client in self._clients),
            terms=len(self.judge.leaders),
            deaths=self.deaths,
            faults=self._nemesis.count if self._nemesis else 0,
            messages=self.messages,
        )

    # What the others use

    def at(self, pause: float, key: str, call: Callable[[], None]) -> None:
        """As `machine.Surroundings` says. Equal times go by key, then in order: no order of a set comes in."""
        self._serial[key] = serial = self._serial.get(key, 0) + 1
        heappush(self._queue, (self.now + pause, key, serial, call))

    def send(self, sender: str, receiver: str, message: Message, late: float) -> bool:
        """As `machine.Surroundings` says."""
        self.messages += 1
        if not late:
            return self.network.send(sender, receiver, message)
        self.at(late, f"{sender}>{receiver}", lambda: self._send_late(sender, receiver, message))
        return True

    def died(self, name: str, *, power_lost: bool) -> None:
        """As `machine.Surroundings` says."""
        machine = self.machines[name]
        if name in self._starting:
            return
        self.deaths += 1
        self.network.stop(name)
        machine.end(power_lost=power_lost)
        self._starting.add(name)
        longest = 0.05 if machine.dooms else self._chance.choice((0.05, 0.5, 3.0))
        self.at(longest * self._chance.random(), "start", lambda: self._start(name))

    def holders(self, index: int, term: int) -> str:
        """As `machine.Surroundings` says."""
        return "".join(name for name, machine in self.machines.items() if machine.holds(index, term))

    def told(self, leader: str, term: int, index: int) -> int | None:
        """As `machine.Surroundings` says."""
        member = self.machines[leader].member
        if member is None or not member.core.is_leader or member.core.term != term:
            return None
        return member.core.journal.term(index)

    # The run

    def _run(self) -> None:
        for name in self.plan.names:
            self._start(name)
        for client in self._clients:
            self._propose(client)
            self._read(client)
        self._trim()
        self._nemesis = Nemesis(self)
        self.at(self.plan.active_seconds, "calm", self._calm)
        calm = CALM_TIMEOUTS * self.plan.timing.election_most
        self._until(_START + self.plan.active_seconds + calm)
        for client in self._clients:
            client.silent = True
        self._until(self.now + _SILENCE)
        self._end()

    def _until(self, end: float) -> None:
        queue = self._queue
        while queue and queue[0][0] <= end:
            self.now, _, _, call = heappop(queue)
            call()
        self.now = end

    def _start(self, name: str) -> None:
        self._starting.discard(name)
        machine = self.machines[name]
        machine.start()
        if machine.member is not None:
            self.network.start(name)

    def _deliver(self, sender: str, receiver: str, message: Message) -> None:
        self.trace.add(self.now, "message", f"{sender}>{receiver}", message)
        self.machines[receiver].receive(sender, message)

    def _linked(self, sender: str, receiver: str, up: bool) -> None:
        self.trace.add(self.now, "link", f"{sender}>{receiver}", "up" if up else "down")
        self.machines[sender].linked(receiver, up)

    def _send_late(self, sender: str, receiver: str, message: Message) -> None:
        if self.machines[sender].member is not None:
            self.network.send(sender, receiver, message)

    def _propose(self, client: Client) -> None:
        client.propose()
        pause = self._chance.expovariate(self._rate(self.plan.proposal_rate))
        self.at(pause, client.key, lambda: self._propose(client))

    def _read(self, client: Client) -> None:
        client.read()
        pause = self._chance.expovariate(self._rate(self.plan.read_rate))
        self.at(pause, client.key, lambda: self._read(client))

    def _calm(self) -> None:
        assert self._nemesis is not None
        self._nemesis.end()
        for client in self._clients:
            self._propose(client)
            self._read(client)

    def _rate(self, planned: float) -> float:
        """A client's. In the calm it is enough that something is asked in each election timeout."""
        return (_CALM_RATE / self.plan.timing.election_most if self.network.calm else planned) / _CLIENTS

    def _trim(self) -> None:
        """Checkpoints, and logs trimmed below what every member has durably: nobody ever needs a snapshot here. One
        entry more is kept, with which the next is compared."""
        for machine in self.machines.values():
            if machine.member is not None and self._chance.random() < 0.7:
                machine.replica.checkpoint()
        upto = min(machine.replica.durable for machine in self.machines.values()) - 1
        for machine in self.machines.values():
            machine.order(lambda member: member.core.journal.wal.trim(upto))
        self.at(self._chance.expovariate(1 / self.plan.trim_seconds), "trim", self._trim)

    def _end(self) -> None:
        logs, hashes = {}, {}
        for machine in self.machines.values():
            assert machine.member is not None
            core = machine.member.core
            entries: list[Any] = []
            while (start := core.journal.first + len(entries)) <= core.commit:
                entries += core.journal.range(start, core.commit + 1)
            logs[machine.name] = {entry[1]: entry for entry in entries}
            hashes[machine.name] = (machine.replica.applied, machine.replica.hash())
        self.judge.ends(logs, hashes)

    def close(self) -> None:
        """Lets go of files."""
        for machine in self.machines.values():
            if machine.member is not None:
                machine.member.core.journal.wal.close()
            machine.replica.end(power_lost=False)


class _Dropped(logging.Handler):
    """A message that one member of ours sent and another cannot take is a fault of one of them."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        if record.msg == "raft_message_dropped":
            reason = str(getattr(record, "reason", ""))
            self._world.trace.add(self._world.now, "dropped", reason)
            if not self._world.plan.wild and "full_disk" not in self._world.plan.faults:
                raise Broken("members understand each other", reason)


def simulate(plan: Plan, *, with_digest: bool = False, told: int = 0) -> Outcome:
    """Runs the plan; nothing of it is left behind. Not for several threads: it replaces the clock and the disk."""
    with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as folder, ExitStack() as stack:
        disks = Disks()
        stack.enter_context(disks.installed())
        world = World(plan, Path(folder), disks)
        stack.callback(world.close)
        stack.enter_context(_replaced(world))
        stack.enter_context(_without_collection())
        outcome = world.run()
        if with_digest or told:
            return _told(outcome, world.trace, told)
        return outcome


def _told(outcome: Outcome, trace: Trace, told: int) -> Outcome:
    from dataclasses import replace

    return replace(outcome, digest=trace.digest, story=trace.tell(told) if told else outcome.story)


@contextmanager
def _without_collection() -> Iterator[None]:
    """All of a run lives until its end, so looking for garbage takes time for nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def _replaced(world: World) -> Iterator[None]:
    chance = Random(f"entropy/{world.plan.seed}")
    shipped = entropy.token_bytes, clock.monotonic, journals._KEPT_BYTES, leaders._BATCH_ENTRIES
    logger = logging.getLogger("consensus")
    handler, propagate = _Dropped(world), logger.propagate
    entropy.token_bytes = lambda count: chance.randbytes(count)
    clock.monotonic = lambda: world.now
    journals._KEPT_BYTES, leaders._BATCH_ENTRIES = world.plan.memory_bytes, world.plan.batch_entries
    use_clock(lambda: world.now)
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        entropy.token_bytes, clock.monotonic, journals._KEPT_BYTES, leaders._BATCH_ENTRIES = shipped
        use_clock(clock.monotonic)
        logger.removeHandler(handler)
        logger.propagate = propagate
