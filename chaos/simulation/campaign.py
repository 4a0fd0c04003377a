"""Many seeds, in several processes, resumable; and the proof: with each guard and each sync taken away in turn, how
many seeds it takes until a promise is broken."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from chaos.simulation.guards import GUARDS, without
from chaos.simulation.omission import PRODUCT, left_out, syncs
from chaos.simulation.plan import draw
from chaos.simulation.world import Outcome, simulate

_AT_ONCE = 16  # seeds handed to a process
HEADER = "| removed | seeds | promise broken |\n| --- | ---: | --- |"


@dataclass(frozen=True, slots=True)
class Proof:
    """How the loss of something was noticed: `outcome` is that of the last seed."""

    removed: str
    seeds: int
    outcome: Outcome

    @property
    def row(self) -> str:
        """One line of the table, in Markdown."""
        without_folders = re.sub(r"(?<!\w)/\S+/(?=\S)", "", self.outcome.detail)
        detail = without_folders[:110].replace("|", "/")
        return f"| {self.removed} | {self.seeds} | {self.outcome.promise or 'none'}: {detail} |"


def run(seed: int, *, members: int | None = None, removed: str | None = None) -> Outcome:
    """One seed, with something taken away."""
    with _removing(removed):
        return simulate(draw(seed, members))


def outcomes(base: int, count: int, jobs: int, **options: object) -> Iterator[Outcome]:
    """Those of `count` seeds from `base` on, in order."""
    call = partial(run, **options)  # type: ignore[arg-type]
    if jobs == 1:
        yield from map(call, range(base, base + count))
        return
    with ProcessPoolExecutor(jobs) as pool:
        rest = iter(range(base, base + count))
        while portion := list(islice(rest, _AT_ONCE * jobs)):
            yield from pool.map(call, portion, chunksize=4)


def prove(base: int, most: int, only: str, tell: Callable[[str], None], *, jobs: int) -> list[Proof]:
    """Every guard and sync whose name contains `only`."""
    found = []
    names = [*GUARDS, *map(str, syncs())]
    with ProcessPoolExecutor(jobs) as pool:
        for proof in pool.map(partial(_prove_one, base, most), [name for name in names if only in name]):
            tell(proof.row)
            found.append(proof)
    return found


def _prove_one(base: int, most: int, removed: str) -> Proof:
    outcome = run(base, removed=removed)
    seeds = 1
    while outcome.promise is None and seeds < most:
        outcome = run(base + seeds, removed=removed)
        seeds += 1
    return Proof(removed, seeds, outcome)


def _removing(removed: str | None) -> AbstractContextManager[None]:
    if removed is None:
        return nullcontext()
    if removed in GUARDS:
        return without(removed)
    return left_out(next(each for each in syncs() if str(each) == removed))


def _sources() -> str:
    """SHA-256 (hex) of what a seed's run depends on: with other sources it is another run."""
    files = [file for folder in ("consensus", "chaos/simulation") for file in (PRODUCT / folder).rglob("*.py")]
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(files))).hexdigest()


class Progress:
    """The seed to go on with, in a small file, and the campaign that it belongs to: its base and these sources."""

    def __init__(self, file: Path | None, base: int) -> None:
        self._file = file
        self._base = base
        self._sources = _sources()

    @property
    def done(self) -> int:
        """Seeds from the base on that ran without a broken promise."""
        if self._file is None or not self._file.exists():
            return 0
        found = json.loads(self._file.read_text())
        same = (found.get("base"), found.get("sources")) == (self._base, self._sources)
        return int(found["done"]) if same else 0

    def save(self, done: int) -> None:
        """After a broken promise the same seed comes first again."""
        if self._file is not None:
            unfinished = self._file.with_suffix(".new")
            unfinished.write_text(json.dumps({"base": self._base, "sources": self._sources, "done": done}))
            unfinished.replace(self._file)
