"""Power cuts at every single change of the disk, for each part of what a node keeps (`chaos.durable`).

Kills of a whole node hit the narrow moments between two syncs only by luck; here each of them is hit. Four stories:

    power            work, power fails at change n, check
    power, partly    the same on a disk that kept some of what was not synced
    kill, power      work, killed at change n, started again and at work, power fails, check
    power twice      work, power fails at n, started again, power fails at m, check; the disk keeps some
    full, power      work on a disk that is full now and then and writes back at once, power fails at n, check
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from chaos.durable import PARTS, LogPart
from chaos.faults import Fault
from chaos.mount import LossyMount
from chaos.part import Part, Promise, Tell
from consensus.disk import sync_folder

STORIES = ("power", "power, partly", "kill, power", "power twice", "full, power")
_BY_CHANCE = {"power, partly", "power twice"}
_STRIDE = 127  # for the changes that are nearly all alike: making hundreds of folders, or a database


@dataclass(frozen=True, slots=True)
class Cut:
    """One case: everything needed to repeat it."""

    part: str
    story: str
    change: int
    seed: int

    def __str__(self) -> str:
        return f"{self.part}: {self.story} at change {self.change}, seed {self.seed}"


class CutShort(Exception):
    """A broken promise: the cut and what was found."""


def cut_everywhere(
    mount: LossyMount,
    *,
    parts: Sequence[Part] = PARTS,
    stride: int = 1,
    tell: Callable[[str], None] = lambda _: None,
) -> int:
    """Every story of these parts at every `stride`-th change; returns how many cases there were.

    Raises CutShort at the first that breaks a promise.
    """
    cases = 0
    for part in parts:
        sparse, dense = _changes(mount, part, stride)
        for story in STORIES:
            if story == "full, power" and type(part) is not LogPart:
                continue
            before = cases
            changes = sparse + dense * (part.repeats if story in _BY_CHANCE else 1)
            for change in changes:
                cases += 1
                cut(mount, part, Cut(part.name, story, change, seed=cases))
            tell(f"{part.name}: {story}: {cases - before} cases")
    return cases


def _changes(mount: LossyMount, part: Part, stride: int) -> tuple[list[int], list[int]]:
    """Where to cut: at few of the changes of its work, and at every one of the last `part.dense`."""
    folder = _new_folder(mount, f"count-{part.name}")
    case = Cut(part.name, "counting", 0, 0)
    _run(case, [], lambda _: part.prepare(folder))
    before = mount.cut_power(None)
    _run(case, [], lambda tell: part.act(folder, tell))
    total = mount.cut_power(None) - before
    dense = max(0, total - part.dense)
    return [*range(0, dense, _STRIDE * stride)], [*range(dense, total + 1, stride)]


def _new_folder(mount: LossyMount, name: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=mount.folder))
    sync_folder(mount.folder)
    return folder


def cut(mount: LossyMount, part: Part, case: Cut) -> None:
    """Plays one case. Raises CutShort."""
    chance = Random(case.seed)
    folder = _new_folder(mount, f"case-{case.seed}")
    promises: list[Promise] = []
    _run(case, promises, lambda _: part.prepare(folder))
    if case.story == "full, power":
        mount.fail([Fault("write", "ENOSPC", match="/wal/", probability=0.3)])
        mount.write_back(1.0)
    mount.cut_power(case.change)
    _run(case, promises, lambda tell: part.act(folder, tell), may_fail=True)
    mount.fail([])
    mount.write_back(0.0)
    kept = 0.5 if case.story in _BY_CHANCE else 0.0
    if case.story == "kill, power":
        mount.cut_power(None)
        _run(case, promises, lambda tell: part.go_on(folder, tell))
    elif case.story == "power twice":
        mount.crash(kept=kept, seed=case.seed)
        mount.cut_power(chance.randint(0, 12))
        _run(case, promises, lambda tell: part.go_on(folder, tell), may_fail=True)
    mount.crash(kept=kept, seed=case.seed)
    _run(case, promises, lambda _: part.check(folder, promises))


def _run(case: Cut, promises: list[Promise], work: Callable[[Tell], None], *, may_fail: bool = False) -> None:
    """In a process of its own, which ends without any clean-up."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _child(writing, work)
    os.close(writing)
    with os.fdopen(reading) as told:
        lines: list[list[object]] = [json.loads(line) for line in told]
    _, status = os.waitpid(child, 0)
    promises += [tuple(line[1:]) for line in lines if line[0] == "promise"]
    failures = [str(line[1]) for line in lines if line[0] == "failure"]
    if failures and not may_fail:
        raise CutShort(f"{case}: {failures[0].strip().splitlines()[-1]}")
    if status and not failures:
        raise CutShort(f"{case}: the process ended with {status}")


def _child(writing: int, work: Callable[[Tell], None]) -> None:
    def tell(kind: str, values: Sequence[object]) -> None:
        line = memoryview(json.dumps([kind, *values]).encode() + b"\n")
        while line:
            line = line[os.write(writing, line) :]

    try:
        work(lambda promise: tell("promise", promise))
    except BaseException:
        tell("failure", [traceback.format_exc()])
    os._exit(0)


def parts_covering(path: str) -> list[Part]:
    """The parts that depend on the syncs of a source file; all for ""."""
    return [part for part in PARTS if any(path.startswith(covered) for covered in part.covers) or not path]


if __name__ == "__main__":
    with LossyMount(Path(tempfile.mkdtemp(prefix="meridian-powercuts-"))) as mounted:
        try:
            count = cut_everywhere(mounted, parts=parts_covering("".join(sys.argv[1:2])))
        except CutShort as broken:
            print(broken)
            sys.exit(1)
    print(f"{count} power cuts, no promise broken")
