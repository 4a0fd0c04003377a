"""The controlling end of the relay between members: how far they are from each other, and what is cut."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Self, cast

from chaos.relay import CutKind

_CLOSE_SECONDS = 5.0

Pair = tuple[str, str]  # from, to


@dataclass(frozen=True, slots=True)
class Shape:
    """One way between two members. Up to the jitter is added to the delay; 0 bytes_per_second: no bound."""

    delay_seconds: float = 0.0
    jitter_seconds: float = 0.0
    bytes_per_second: float = 0.0


class Ways:
    """Relays between members, each given by its name and the host:ports it listens at, while the context lasts.

    `addresses[a, b]` is where a has to look for those of b. Ways are as fast as loopback until they are shaped.
    """

    def __init__(self, members: Mapping[str, Sequence[str]], *, seed: int = 1) -> None:
        self._members = {name: list(listening) for name, listening in members.items()}
        self._seed = seed
        self._process: subprocess.Popen[str] | None = None
        self._shapes: dict[Pair, Shape] = {}
        self._cuts: dict[Pair, CutKind] = {}
        self.addresses: dict[Pair, tuple[str, ...]] = {}

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "chaos.relay", json.dumps(self._members), str(self._seed)]
        # Its own session: an interrupt from the terminal must reach the nodes that use it first.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        for name, addresses in self._answer().items():
            source, _, sink = name.partition(">")
            self.addresses[source, sink] = tuple(map(str, cast(list[str], addresses)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        finally:
            self._process.stdout.close()

    @property
    def pid(self) -> int:
        """Of the relay."""
        assert self._process is not None
        return self._process.pid

    @property
    def pairs(self) -> list[Pair]:
        """Every way there is."""
        return list(self.addresses)

    def shape(self, pairs: Iterable[Pair], shape: Shape) -> None:
        """What is sent from now on travels so."""
        for pair in pairs:
            self._shapes[pair] = shape
            self._order(pair)

    def distance(self, one: str, other: str, round_trip_seconds: float, *, jitter: float = 0.0) -> None:
        """Both ways take half of the round trip; `jitter` is a share of that."""
        delay = round_trip_seconds / 2
        self.shape([(one, other), (other, one)], Shape(delay, delay * jitter))

    def cut(self, pairs: Iterable[Pair], kind: CutKind = "hold") -> None:
        """Nothing arrives on these ways any more; see chaos.relay for the kinds."""
        for pair in pairs:
            self._cuts[pair] = kind
            self._order(pair)

    def heal(self) -> None:
        """No way is cut any more."""
        for pair in list(self._cuts):
            del self._cuts[pair]
            self._order(pair)

    def around(self, member: str) -> list[Pair]:
        """The ways to and from a member."""
        return [pair for pair in self.pairs if member in pair]

    def passed_bytes(self) -> int:
        """So many bytes have arrived, over all ways."""
        return sum(self.passed().values())

    def passed(self) -> dict[Pair, int]:
        """How many bytes have arrived on each way."""
        counts = {name: int(str(count)) for name, count in self._send({}).items()}
        return {(source, sink): counts[f"{source}>{sink}"] for source, sink in self.pairs}

    def _order(self, pair: Pair) -> None:
        shape = asdict(self._shapes.get(pair, Shape()))
        self._send({"from": pair[0], "to": pair[1], "cut": self._cuts.get(pair, ""), "shape": shape})

    def _send(self, order: dict[str, object]) -> dict[str, object]:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, object]:
        assert self._process is not None
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the relay ended with {self._process.wait()}")
        return dict(json.loads(answer))
