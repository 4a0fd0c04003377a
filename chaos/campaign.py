"""Rounds of outages of three regions under load: push everywhere, let something happen, heal, audit every region.

After each round every acknowledged write is there in every region, in an order that explains what was read meanwhile,
and all states are the same; the data live on. As in `chaos.crash`, a seed repeats a kind of run, not a run.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from chaos.audit import Violation, audit, differences, settle
from chaos.history import History, Key
from chaos.observe import Observations, observe
from chaos.outages import Outage, acknowledged, longest_gap, outage
from chaos.pushers import run_pushers
from chaos.region import NodeRefused
from chaos.regions import READY_SECONDS, SHORT_LOG, Regions, regions
from chaos.wire import NoAnswer, NotDone, Surprise, Wire
from consensus.clock import monotonic

ELECTION_SECONDS = 8.0  # that service may pause for an election, on a busy machine; a quiet one needs two
PAUSE_SECONDS = 4.0  # that it may pause without one

_FIRST_ANSWER_SECONDS = 20.0
_SAMPLE = 100  # older registers read again in each audit; the last audit reads all
_FAR = 40  # blobs that every region is asked for, wherever they were pushed
_MOST = 2000  # registers of manifests and blobs in one audit
_LOOK_SECONDS = 0.02
_CATCHING_UP = 0.6  # of the rounds in which every node dies: one of them was just coming back
_CATCHING_UP_SECONDS = 0.6
_POWER_STAYS = 0.2  # as in chaos.crash
_AFTER_SECONDS = 1.5  # of load once all is well again, so that what was late arrives


@dataclass(frozen=True, slots=True)
class Plan:
    """What a campaign does: `rounds` of the outages in `kinds`, in turn."""

    rounds: int
    kinds: tuple[str, ...]
    seed: int = 1
    pushers: int = 2  # in each region
    most_seconds: float = 1.5  # from the first acknowledged write of a round to the outage
    outage_seconds: float = 6.0  # how long a partition or a freeze lasts
    round_trip_seconds: float = 0.0  # between any two regions
    lossy: bool = False
    log: str = SHORT_LOG


@dataclass(slots=True)
class Report:
    """How a campaign went; it stops at the first round with a violation."""

    rounds: int = 0
    acknowledged: int = 0
    in_doubt: int = 0
    read: int = 0
    resumed: int = 0
    gone: int = 0
    snapshots: int = 0
    trims: int = 0  # times that, from one round to the next, a node's log began later than before
    refused: int = 0  # requests that the regions in trouble did not answer, or with 503
    terms: int = 0
    seconds: float = 0.0
    elections: list[float] = field(default_factory=list)  # seconds from a kill or cut to a new leader's first answer
    gaps: list[float] = field(default_factory=list)  # longest ones of regions that had to go on, without an election
    violations: tuple[Violation, ...] = ()


async def run_campaign(plan: Plan, work: Path, tell: Callable[[str], None]) -> Report:
    """All rounds of the plan below `work` (made, and left if there was a violation), a line told after each."""
    began = monotonic()
    with regions(work, lossy=plan.lossy, log=plan.log, seed=plan.seed) as cluster:
        campaign = _Campaign(plan, cluster, tell)
        try:
            await campaign.run()
        finally:
            await cluster.close()
    campaign.report.seconds = monotonic() - began
    if not campaign.report.violations:
        shutil.rmtree(work)
    return campaign.report


class _Campaign:
    def __init__(self, plan: Plan, cluster: Regions, tell: Callable[[str], None]) -> None:
        self.report = Report()
        self._plan = plan
        self._cluster = cluster
        self._tell = tell
        self._chance = Random(plan.seed)
        self._history = History()
        self._first: dict[str, int] = {}

    async def run(self) -> None:
        names = list(self._cluster.nodes)
        for one, other in [(one, other) for one in names for other in names if one < other]:
            self._cluster.ways.distance(one, other, self._plan.round_trip_seconds, jitter=0.1)
        try:
            await self._cluster.start()
            for number in range(1, self._plan.rounds + 1):
                await self._round(number)
            await self._clean_restart()
        except* (_Broken, NodeRefused) as group:
            self.report.violations = tuple(_violations(group))

    async def _round(self, number: int) -> None:
        kind = self._plan.kinds[(number - 1) % len(self._plan.kinds)]
        self._history.progress.clear()
        async with self._load(number) as wires:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._history.progress.wait(), _FIRST_ANSWER_SECONDS)
            await asyncio.sleep(self._chance.random() * self._plan.most_seconds)
            steward = await self._cluster.steward()
            before = await self._term()
            happens = outage(kind, steward, self._cluster.nodes, self._chance)
            await self._happen(happens, wires)
            self.report.refused += sum(wire.refused for wire in wires.values())
        await self._cluster.start()
        await self._cluster.wait_ready()
        self.report.acknowledged = self._history.acknowledged
        self.report.in_doubt += self._in_doubt()
        await self._audit(self._sample())
        await self._compare()
        self._count(before, await self._term())
        self.report.rounds = number
        self._tell(f"round {number}, {kind} ({steward} led): {self._summary()}")

    @contextlib.asynccontextmanager
    async def _load(self, number: int) -> AsyncIterator[dict[str, Wire]]:
        """Pushers in every region while the block runs."""
        async with contextlib.AsyncExitStack() as stack:
            wires = {name: await stack.enter_async_context(self._wire(name)) for name in self._cluster.nodes}
            async with asyncio.TaskGroup() as group:
                for name, wire in wires.items():
                    seed = f"{self._plan.seed}-{number}-{name}"
                    group.create_task(run_pushers(wire, seed=seed, count=self._plan.pushers))
                try:
                    yield wires
                finally:
                    for wire in wires.values():
                        wire.severed = True

    # Outages

    async def _happen(self, happens: Outage, wires: dict[str, Wire]) -> None:
        if happens.kind in {"all", "power"}:
            if self._chance.random() < _CATCHING_UP:
                await self._fall_behind(self._chance.choice(sorted(wires)), wires)
            for wire in wires.values():
                wire.severed = True
            self._kill(happens)
            return
        going_on = [name for name in wires if name not in happens.alone]
        for name in happens.alone:
            wires[name].cut_off = True
        term = await self._term()
        if happens.kind in {"leader", "follower"}:
            for name in happens.alone:
                wires[name].severed = True
            self._cluster.kill(happens.alone)
            began = monotonic()
            await self._recovered(going_on, began)
            await asyncio.sleep(self._chance.random() * self._plan.most_seconds)
            ended = monotonic()
            await self._cluster.start(*happens.alone)
        else:
            began, ended = await self._last(happens)
        self._judge(happens, going_on, began, ended)
        healed = await self._term()
        await asyncio.sleep(_AFTER_SECONDS)
        self._judge_terms(happens, term, healed, await self._term())

    async def _fall_behind(self, name: str, wires: dict[str, Wire]) -> None:
        """A node dies and comes back, so that what happens next finds it catching up, by a snapshot as a rule."""
        wires[name].severed = True
        self._cluster.kill([name])
        await asyncio.sleep(ELECTION_SECONDS / 4 + self._chance.random())
        self._cluster.nodes[name].start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY_SECONDS):
                await self._cluster.serving(name)
        await asyncio.sleep(self._chance.random() * _CATCHING_UP_SECONDS)

    def _kill(self, happens: Outage) -> None:
        names = list(happens.alone)
        self._chance.shuffle(names)
        self._cluster.kill(names)
        if happens.kind == "power" and self._chance.random() >= _POWER_STAYS:
            for mount in self._cluster.mounts.values():
                mount.crash(seed=self._chance.getrandbits(32))

    async def _last(self, happens: Outage) -> tuple[float, float]:
        """A partition or a freeze, for as long as the plan says; when it was complete, and when it ended."""
        node = self._cluster.nodes[min(happens.alone)] if happens.kind == "freeze" else None
        if node:
            node.freeze()
        else:
            self._cluster.ways.cut(happens.pairs, self._chance.choice(("hold", "hold", "drop", "reset")))
        began = monotonic()
        await asyncio.sleep(self._plan.outage_seconds)
        ended = monotonic()
        if node:
            node.thaw()
        self._cluster.ways.heal()
        return began, ended

    async def _recovered(self, names: list[str], since: float) -> None:
        """Until one of them acknowledges a write that began later."""
        places = [self._cluster.nodes[name].address for name in names]
        while not any(acknowledged(self._history, place, since, monotonic()) for place in places):
            if monotonic() > since + 2 * ELECTION_SECONDS:
                raise _Broken((Violation("interrupted", f"{names} acknowledge nothing: {self._cluster.log_tails()}"),))
            await asyncio.sleep(_LOOK_SECONDS)

    # Judgement

    def _judge(self, happens: Outage, going_on: list[str], began: float, ended: float) -> None:
        found = []
        firsts = []
        for name, node in self._cluster.nodes.items():
            answered = acknowledged(self._history, node.address, began, ended)
            if name in happens.alone and answered:
                found.append(
                    Violation("alone", f"{name} acknowledged {[str(key) for *_, key in answered]} in {happens}")
                )
            if name in going_on:
                firsts += [at for _, at, _ in answered]
                gap = longest_gap([at for _, at, _ in answered], began, ended)
                if not happens.elects:
                    self.report.gaps.append(gap)
                if gap > (ELECTION_SECONDS if happens.elects else PAUSE_SECONDS):
                    found.append(Violation("interrupted", f"{name} acknowledged nothing for {gap:.1f} s in {happens}"))
        if happens.elects and firsts:
            self.report.elections.append(min(firsts) - began)
        if found:
            raise _Broken(tuple(found))

    def _judge_terms(self, happens: Outage, before: int, during: int, after: int) -> None:
        """No election that nobody needed, and none because all is well again."""
        if happens.kind in {"leader", "follower"}:
            return
        if (during > before and not happens.elects) or after > during:
            raise _Broken((Violation("term", f"{before}, then {during}, then {after} in {happens}"),))

    async def _term(self) -> int:
        found = [await self._cluster.standing(name) for name in self._cluster.nodes]
        return max((standing.term for standing in found if standing), default=0)

    async def _audit(self, keys: set[Key]) -> None:
        """Every region by what clients were told, and by what the others answer."""
        names = list(self._cluster.nodes)
        unfinished = {upload.digest for upload in self._history.uploads}  # they may be finished meanwhile
        blobs = sorted(key.name for key in keys if key.kind == "blob" and key.name not in unfinished)
        far = self._chance.sample(blobs, min(_FAR, len(blobs)))
        everything = await asyncio.gather(*(self._observe(name, keys, far) for name in names))
        found = [
            Violation(each.kind, f"at {name}: {each.detail}")
            for name, seen in zip(names, everything, strict=True)
            for each in audit(self._history, seen)
        ]
        found += [Violation("diverged", text) for text in differences(dict(zip(names, everything, strict=True)))]
        if found:
            raise _Broken(tuple(found))
        for seen in everything:
            settle(self._history, seen)
            self.report.read += len(seen.answers)
            self.report.resumed += sum(end == "resumed" for _, end in seen.uploads)
            self.report.gone += sum(end == "gone" for _, end in seen.uploads)

    async def _observe(self, name: str, keys: set[Key], far: list[str]) -> Observations:
        async with self._wire(name) as wire:
            try:
                return await observe(wire, keys, heads=False, far=far)
            except* (NoAnswer, NotDone, Surprise):
                pass  # what it was is among the surprises
        return Observations()

    async def _compare(self) -> None:
        found = await self._cluster.agree()
        if len(set(found.values())) > 1:
            raise _Broken((Violation("diverged", str(found)),))

    async def _clean_restart(self) -> None:
        for name, node in self._cluster.nodes.items():
            if status := await asyncio.to_thread(node.stop):
                raise _Broken((Violation("refused", f"SIGTERM ended {name} with {status}: {node.log_tail()}"),))
        await self._cluster.start()
        await self._audit(self._bounded(list(self._history.writes)))
        await self._compare()
        self._tell(f"clean restart: {self._summary()}")

    # Counting

    def _wire(self, name: str) -> Wire:
        return Wire(self._cluster.nodes[name].address, self._history)

    def _sample(self) -> set[Key]:
        older = [key for key in self._history.writes if key not in self._history.touched]
        return self._bounded([*self._history.touched, *self._chance.sample(older, min(_SAMPLE, len(older)))])

    def _bounded(self, keys: Sequence[Key]) -> set[Key]:
        """All tags and all that is in doubt; of the rest as many as an audit has time for."""
        writes = self._history.writes
        first = {key for key in keys if key.kind == "tag" or not all(each.acknowledged for each in writes[key])}
        others = [key for key in keys if key not in first]
        return first | set(self._chance.sample(others, min(_MOST, len(others))))

    def _in_doubt(self) -> int:
        return sum(not write.acknowledged for key in self._history.touched for write in self._history.writes[key])

    def _count(self, before: int, after: int) -> None:
        self.report.terms += after - before
        self.report.snapshots = self._cluster.snapshots()
        for name, node in self._cluster.nodes.items():
            self.report.trims += node.first_kept > self._first.get(name, 1)
            self._first[name] = node.first_kept

    def _summary(self) -> str:
        report = self.report
        elections = sorted(report.elections) or [0.0]
        return (
            f"{report.acknowledged} writes acknowledged, {report.in_doubt} in doubt, {report.read} answers read, "
            f"uploads {report.resumed} resumed and {report.gone} gone, {report.snapshots} snapshots installed, "
            f"{report.trims} trims seen, {report.terms} elections, a new leader after "
            f"{elections[len(elections) // 2]:.1f} s (longest {elections[-1]:.1f}), "
            f"longest gap elsewhere {max(report.gaps, default=0.0):.2f} s"
        )


class _Broken(Exception):
    def __init__(self, violations: tuple[Violation, ...]) -> None:
        super().__init__(len(violations))
        self.violations = violations


def _violations(group: BaseExceptionGroup[Exception]) -> Iterator[Violation]:
    for each in group.exceptions:
        if isinstance(each, _Broken):
            yield from each.violations
        elif isinstance(each, ExceptionGroup):
            yield from _violations(each)
        else:
            yield Violation("refused", str(each))
