"""Rounds of kill -9 under load: push, kill everything at a random moment, restart, audit; the data live on.

On the lossy file system the kill is a power failure too: what was not synced is gone. The seed decides what is pushed
and when the kill comes; what the clients saw still depends on scheduling, so a seed repeats a kind of run, not a run.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from chaos.audit import Violation, audit, settle
from chaos.faults import Fault
from chaos.history import History, Key
from chaos.mount import LossyMount
from chaos.observe import Observations, observe
from chaos.pushers import run_pushers
from chaos.region import NodeRefused, RegionFolders, RegionNode
from chaos.wire import NoAnswer, NotDone, Surprise, Wire
from consensus.clock import monotonic

_FIRST_ANSWER_SECONDS = 20.0
_SAMPLE = 150  # older registers read again in each audit; the last audit reads all
_INTERRUPTED_RECOVERIES = 0.2
_POWER_STAYS = 0.2  # kills on the lossy file system that are no power failure: what was written is there, unsynced


@dataclass(frozen=True, slots=True)
class Plan:
    """What a campaign does. The last four need `lossy`."""

    rounds: int
    seed: int = 1
    pushers: int = 8
    most_seconds: float = 1.5  # from the first acknowledged write of a round to the kill
    product: Path | None = None
    lossy: bool = False
    kept: float = 0.0  # the chance that an unsynced sector or entry survives a power failure
    slow_seconds: float = 0.0  # what each fsync takes, so that kills come before some and after others
    full: float = 0.0  # the chance that a write finds the disk full


@dataclass(slots=True)
class Report:
    """How a campaign went; it stops at the first round with a violation."""

    rounds: int = 0
    acknowledged: int = 0
    in_doubt: int = 0
    read: int = 0
    resumed: int = 0
    gone: int = 0
    seconds: float = 0.0
    violations: tuple[Violation, ...] = ()


async def run_campaign(plan: Plan, work: Path, tell: Callable[[str], None]) -> Report:
    """All rounds of the plan below `work` (made, and left if there was a violation), a line told after each."""
    started = monotonic()
    with contextlib.ExitStack() as stack:
        mount = stack.enter_context(LossyMount(work / "disk")) if plan.lossy else None
        campaign = _Campaign(plan, work, mount)
        stack.callback(campaign.end)
        await campaign.run(tell)
    campaign.report.seconds = monotonic() - started
    if not campaign.report.violations:
        shutil.rmtree(work)
    return campaign.report


class _Campaign:
    def __init__(self, plan: Plan, work: Path, mount: LossyMount | None) -> None:
        self.report = Report()
        self._plan = plan
        self._mount = mount
        self._chance = Random(plan.seed)
        self._history = History()
        folders = RegionFolders(data=(mount.folder if mount else work) / "data", work=work / "node")
        self._node = RegionNode(folders, product=plan.product) if plan.product else RegionNode(folders)

    async def run(self, tell: Callable[[str], None]) -> None:
        if self._mount:
            self._mount.write_back(self._plan.kept / 5)
        try:
            await self._start()
            for number in range(1, self._plan.rounds + 1):
                await self._round(number)
                self.report.rounds = number
                tell(f"round {number}: {self._summary()}")
            await self._clean_restart()
            tell(f"clean restart: {self._summary()}")
        except _Broken as broken:
            self.report.violations = broken.violations

    def end(self) -> None:
        if self._node.is_running:
            self._node.kill()

    async def _start(self) -> None:
        self._node.start()
        try:
            await self._node.wait_ready()
        except NodeRefused as refused:
            raise _Broken((Violation("refused", str(refused)),)) from refused

    async def _round(self, number: int) -> None:
        self._history.progress.clear()
        self._make_trouble()
        async with self._wire() as wire, asyncio.TaskGroup() as group:
            group.create_task(run_pushers(wire, seed=f"{self._plan.seed}-{number}", count=self._plan.pushers))
            await self._moment()
            wire.severed = True
            self._crash()
        self._end_trouble()
        self.report.acknowledged = self._history.acknowledged
        self.report.in_doubt += sum(
            not write.acknowledged for key in self._history.touched for write in self._history.writes[key]
        )
        if self._chance.random() < _INTERRUPTED_RECOVERIES:
            self._node.start()
            await asyncio.sleep(self._chance.random() * 1.5)
            self._crash()
        await self._start()
        await self._audit(self._sample())

    async def _moment(self) -> None:
        """Some time after the round's first acknowledged write."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._history.progress.wait(), _FIRST_ANSWER_SECONDS)
        await asyncio.sleep(self._chance.random() * self._plan.most_seconds)

    def _crash(self) -> None:
        self._node.kill()
        if self._mount and self._chance.random() >= _POWER_STAYS:
            self._mount.crash(kept=self._plan.kept, seed=self._chance.getrandbits(32))

    def _make_trouble(self) -> None:
        slow, full = self._plan.slow_seconds, self._plan.full
        faults = [Fault(each, delay_seconds=slow) for each in ("fsync", "fsyncdir") if slow]
        faults += [Fault(each, "ENOSPC", probability=full) for each in ("write", "create") if full]
        if self._mount and faults:
            self._mount.fail(faults)
            self._history.tolerant = bool(full)

    def _end_trouble(self) -> None:
        if self._mount:
            self._mount.fail([])
        self._history.tolerant = False

    def _wire(self) -> Wire:
        return Wire(self._node.address, self._history)

    def _sample(self) -> set[Key]:
        older = [key for key in self._history.writes if key not in self._history.touched]
        return self._history.touched | set(self._chance.sample(older, min(_SAMPLE, len(older))))

    async def _audit(self, keys: set[Key]) -> None:
        async with self._wire() as wire:
            try:
                seen = await observe(wire, keys)
            except* (NoAnswer, NotDone, Surprise):
                seen = Observations()  # what it was is among the surprises
        if violations := audit(self._history, seen):
            raise _Broken(tuple(violations))
        settle(self._history, seen)
        self.report.read += len(seen.answers)
        self.report.resumed += sum(end == "resumed" for _, end in seen.uploads)
        self.report.gone += sum(end == "gone" for _, end in seen.uploads)

    async def _clean_restart(self) -> None:
        if status := self._node.stop():
            raise _Broken((Violation("refused", f"SIGTERM ended it with {status}: {self._node.log_tail()}"),))
        await self._start()
        await self._audit(set(self._history.writes))

    def _summary(self) -> str:
        report = self.report
        return (
            f"{report.acknowledged} writes acknowledged, {report.in_doubt} in doubt, {report.read} answers read, "
            f"uploads {report.resumed} resumed and {report.gone} gone"
        )


class _Broken(Exception):
    def __init__(self, violations: tuple[Violation, ...]) -> None:
        super().__init__(len(violations))
        self.violations = violations
