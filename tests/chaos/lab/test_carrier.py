"""The WAN alone, in both its makes: what it does to packets that come and go through sockets instead of regions."""

from __future__ import annotations

import shutil
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from chaos.lab.errors import LinesBroken
from chaos.lab.lines import Count, Lines, Port, compiled
from chaos.lab.topology import Link

ADDRESSES = {"eu": "10.0.0.1", "us": "10.0.0.2", "ap": "10.0.0.3"}
FORTH, BACK = ("eu", "us"), ("us", "eu")
FAST = Link(rate_mbit=10_000, queue_limit_bytes=1 << 28)


class World:
    """Three ends that talk in packets: a header of IPv4 in which only the destination is right, and a number."""

    def __init__(self, lines: Lines, ends: dict[str, socket.socket]) -> None:
        self.lines = lines
        self.ends = ends

    def send(self, way: tuple[str, str], number: int, size: int = 100) -> None:
        head = b"\x45" + bytes(15) + socket.inet_aton(ADDRESSES[way[1]]) + struct.pack("!Q", number)
        self.ends[way[0]].send(head.ljust(size, b"\0"))

    def receive(self, name: str, seconds: float = 2.0) -> int | None:
        """The number of the next packet, None if none comes."""
        self.ends[name].settimeout(seconds)
        try:
            return int(struct.unpack("!Q", self.ends[name].recv(65536)[20:28])[0])
        except TimeoutError:
            return None

    def pass_on(self, way: tuple[str, str], count: int) -> list[int | None]:
        """Sends so many; the numbers of those that arrive."""
        for number in range(count):
            self.send(way, number)
        return list(iter(lambda: self.receive(way[1], 0.3), None))

    def delay(self, way: tuple[str, str], number: int = 0) -> float:
        began = time.monotonic()
        self.send(way, number)
        assert self.receive(way[1]) == number
        return time.monotonic() - began

    def count(self, way: tuple[str, str]) -> Count:
        return self.lines.counts()[way]


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    return compiled(tmp_path_factory.mktemp("bin"))


@pytest.fixture(params=["c", "python"])
def world(request: pytest.FixtureRequest, program: Path | None) -> Iterator[World]:
    if request.param == "c" and program is None:
        pytest.skip("cc is not installed")
    with ExitStack() as stack:
        world = stack.enter_context(_world(program if request.param == "c" else None))
        world.lines.shape(world.lines.counts(), FAST)
        yield world


class _world:  # noqa: N801  a context manager
    def __init__(self, program: Path | None, seed: int = 1) -> None:
        self._program, self._seed = program, seed
        self._stack = ExitStack()

    def __enter__(self) -> World:
        ends, ports = {}, {}
        for name, address in ADDRESSES.items():
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            theirs.setblocking(False)
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)  # a reader that lags loses nothing
            ends[name] = self._stack.enter_context(ours)
            ports[name] = Port(self._stack.enter_context(theirs).fileno(), address)
        return World(self._stack.enter_context(Lines(ports, self._program, seed=self._seed)), ends)

    def __exit__(self, *_: Any) -> None:
        self._stack.close()


def test_packets_go_where_they_are_sent(world: World) -> None:
    world.send(("eu", "us"), 1)
    world.send(("us", "ap"), 2)
    world.send(("ap", "eu"), 3)
    assert [world.receive(name) for name in ("us", "ap", "eu")] == [1, 2, 3]


def test_what_is_no_packet_of_theirs_goes_nowhere(world: World) -> None:
    for nonsense in (b"\x45", b"\x60" + bytes(60), b"\x45" + bytes(15) + socket.inet_aton("10.0.0.9") + bytes(8)):
        world.ends["eu"].send(nonsense)
    world.send(("eu", "eu"), 5)
    world.send(FORTH, 6)
    assert world.receive("us") == 6
    assert world.receive("eu", 0.05) is None
    assert {way for way, count in world.lines.counts().items() if count != Count(0, 0, 0, 0)} == {FORTH}


def test_each_direction_has_its_delay(world: World) -> None:
    world.lines.shape([FORTH], Link(50))
    world.lines.shape([BACK], Link(10))
    for way, seconds in ((FORTH, 0.050), (BACK, 0.010)):
        assert seconds <= min(world.delay(way, number) for number in range(8)) < seconds + 0.003


def test_jitter_reorders_nothing(world: World) -> None:
    world.lines.shape([FORTH], Link(5, jitter_ms=30))
    began = time.monotonic()
    sent: list[float] = []
    took = []
    for number in range(100):
        sent.append(time.monotonic())
        world.send(FORTH, number)
        time.sleep(0.001)
    for number in range(100):
        assert world.receive("us") == number
        took.append(time.monotonic() - sent[number])
    assert min(took) >= 0.005
    assert time.monotonic() - began < 1


def test_each_delay_of_a_jitter_is_within_it(world: World) -> None:
    world.lines.shape([FORTH], Link(5, jitter_ms=20))
    delays = sorted(world.delay(FORTH, number) for number in range(20))
    assert delays[0] >= 0.005
    assert delays[10] < 0.025
    assert delays[-1] - delays[0] > 0.005


def test_the_rate_is_kept(world: World) -> None:
    """What is asked for within a tenth, and from the first packet on: there is no bucket that begins full."""
    world.lines.shape([FORTH], Link(rate_mbit=16, queue_limit_bytes=1 << 20))
    size, count = 1000, 300  # 0.15 s
    rates = []
    for _ in range(4):  # on a busy machine one of them may be interrupted
        began = time.monotonic()
        for number in range(count):
            world.send(FORTH, number, size)
        assert [world.receive("us") for _ in range(count)] == list(range(count))
        rates.append(size * count * 8 / 1e6 / (time.monotonic() - began))
    assert 16 * 0.9 < max(rates) < 16 * 1.1


def test_what_the_queue_does_not_hold_is_dropped(world: World) -> None:
    world.lines.shape([FORTH], Link(rate_mbit=1, queue_limit_bytes=10_000))
    for number in range(30):
        world.send(FORTH, number, 1000)
    world.send(BACK, 1)
    assert world.receive("eu") == 1  # so the last one forth has been taken, or not
    arrived = list(iter(lambda: world.receive("us", 0.3), None))
    assert arrived[:10] == list(range(10))
    assert len(arrived) < 20
    assert world.count(FORTH) == Count(len(arrived), len(arrived) * 1000, 0, 30 - len(arrived))


def test_loss_has_its_share(world: World) -> None:
    world.lines.shape([FORTH], Link(loss=0.1))
    arrived = world.pass_on(FORTH, 1000)
    assert len(arrived) == len(set(arrived))
    assert 0.07 < 1 - len(arrived) / 1000 < 0.13
    assert world.count(FORTH) == Count(len(arrived), 100 * len(arrived), 1000 - len(arrived), 0)
    assert world.count(BACK) == Count(0, 0, 0, 0)


def test_a_seed_decides_what_is_lost(program: Path | None) -> None:
    """Whoever carries."""
    found = []
    for make, seed in ((program, 7), (None, 7), (None, 8)):
        with _world(make, seed) as world:
            world.lines.shape([FORTH, BACK], Link(loss=0.3))
            world.pass_on(BACK, 20)  # does not change what is lost the other way
            found.append(world.pass_on(FORTH, 200))
    assert found[0] == found[1] != found[2]


def test_nothing_passes_a_cut(world: World) -> None:
    world.lines.shape([FORTH], Link(50))
    world.send(FORTH, 1)
    time.sleep(0.01)
    world.lines.shape([FORTH], Link(50, cut=True))  # the first is on its way
    world.send(FORTH, 2)
    world.send(BACK, 3)
    assert world.receive("eu") == 3
    assert world.receive("us", 0.2) is None
    assert world.count(FORTH) == Count(0, 0, 2, 0)
    world.lines.shape([FORTH], Link(1))
    assert world.delay(FORTH) < 0.05


def test_a_way_changes_while_it_carries(world: World) -> None:
    world.lines.shape([FORTH], Link(100))
    world.send(FORTH, 1)
    time.sleep(0.01)
    world.lines.shape([FORTH], Link(1))
    began = time.monotonic()
    world.send(FORTH, 2)
    assert [world.receive("us"), world.receive("us")] == [1, 2]  # in order, although the second has less to go
    assert time.monotonic() - began > 0.05
    assert world.delay(FORTH) < 0.05


def test_a_way_that_was_not_shaped_is_cut() -> None:
    with _world(None) as world:
        assert world.count(FORTH) == Count(0, 0, 0, 0)  # it runs
        world.send(FORTH, 1)
        assert world.receive("us", 0.1) is None
        assert world.count(FORTH).lost == 1


def test_a_carrier_that_died_is_noticed(world: World) -> None:
    assert world.lines._process is not None
    world.lines._process.kill()
    with pytest.raises(LinesBroken):
        world.lines.shape([FORTH], FAST)


def test_the_source_compiles_without_a_warning(tmp_path: Path) -> None:
    import subprocess

    from chaos.lab.lines import SOURCE

    if shutil.which("cc") is None:
        pytest.skip("cc is not installed")
    command = ["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-pedantic", "-o", str(tmp_path / "it"), str(SOURCE)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
