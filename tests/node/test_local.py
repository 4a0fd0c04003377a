from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chaos.ports import free_base_port
from consensus import clock
from node.identity import Identity
from node.local import Cluster, LocalError, RegionFolder, stop
from node.local_up import foreground
from tests.node.commands import MERIDIAN, clean_environment, files_of, meridian
from tests.node.descent import descendants, is_alive

QUICK = {"MERIDIAN_NODE_IGNORED": "places are the cluster's own", "MERIDIAN_SUPERVISOR_DRAIN_SECONDS": "2"}


def eventually(holds: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = clock.monotonic() + seconds
    while not holds():
        assert clock.monotonic() < deadline, "not in time"
        signal.sigtimedwait([], 0.02)


class Machine:
    """A data folder and a BASE_PORT; everything that runs on it is ended with the test."""

    def __init__(self, folder: Path, regions: str = "eu") -> None:
        self.folder = folder
        self.base_port = free_base_port()
        self.variables = {
            "MERIDIAN_DATA": ".meridian",
            "BASE_PORT": str(self.base_port),
            "REGIONS": regions,
            **QUICK,
        }
        self.terminals: list[subprocess.Popen[str]] = []
        self.cluster = Cluster.from_environment({**self.variables, "MERIDIAN_DATA": str(folder / ".meridian")})

    @property
    def eu(self) -> RegionFolder:
        return self.cluster.regions[0].folder

    def local(self, *arguments: str, code: int = 0, **extra: str) -> str:
        answer = meridian("local", *arguments, cwd=self.folder, **{**self.variables, **extra})
        assert answer.returncode == code, answer
        return answer.stderr if code else answer.stdout

    def up(self) -> subprocess.Popen[str]:
        terminal = subprocess.Popen(
            [*MERIDIAN, "local", "up"],
            cwd=self.folder,
            env=clean_environment(self.variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.terminals.append(terminal)
        return terminal

    def status(self) -> dict[str, dict[str, Any]]:
        return {row["region"]: row for row in json.loads(self.local("status", "--json"))}

    def processes(self, region: int = 0) -> list[int]:
        pid = self.cluster.regions[region].folder.supervisor()
        assert pid is not None
        return [pid, *descendants(pid)]

    def all_processes(self) -> list[int]:
        return [pid for number in range(len(self.cluster.regions)) for pid in self.processes(number)]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """One region, which stands alone: quick."""
    yield from ended(Machine(tmp_path))


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Machine]:
    yield from ended(Machine(tmp_path, "eu,us,ap"))


def ended(made: Machine) -> Iterator[Machine]:
    try:
        yield made
    finally:
        stop(made.cluster.folders())
        for terminal in made.terminals:
            terminal.kill()
            terminal.communicate()


def read_until(terminal: subprocess.Popen[str], start: str) -> list[str]:
    assert terminal.stdout is not None
    lines: list[str] = []
    for line in terminal.stdout:
        lines.append(line.rstrip())
        if line.startswith(start):
            return lines
    raise AssertionError(f"no line starts with {start!r}: {lines}")


# --- what the environment says ---


def test_ports_and_folders_follow_from_the_environment(tmp_path: Path) -> None:
    cluster = Cluster.from_environment({"REGIONS": "b, a", "BASE_PORT": "7000", "MERIDIAN_DATA": str(tmp_path)})
    first, second = cluster.regions
    assert (first.name, first.address, first.admin) == ("b", "127.0.0.1:7001", "127.0.0.1:7101")
    assert (second.name, second.address, second.admin) == ("a", "127.0.0.1:7002", "127.0.0.1:7102")
    assert first.folder.path == tmp_path / "b"
    assert (second.peers, second.transfers, second.member) == ("127.0.0.1:7202", "127.0.0.1:7302", "a-1")


def test_defaults(tmp_path: Path) -> None:
    cluster = Cluster.from_environment({})
    assert [region.name for region in cluster.regions] == ["eu", "us", "ap"]
    assert cluster.regions[2].address == "127.0.0.1:5103"
    assert cluster.data == Path.cwd() / ".meridian"


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"REGIONS": ""}, "REGIONS: '': a lower-case letter"),
        ({"REGIONS": "eu,,us"}, "REGIONS: '': a lower-case letter"),
        ({"REGIONS": "eu,../us"}, "REGIONS: '../us': a lower-case letter"),
        ({"REGIONS": "eu,eu"}, "REGIONS: names a region twice"),
        ({"REGIONS": ",".join(f"r{i}" for i in range(8))}, "REGIONS: more than 7"),
        ({"BASE_PORT": "http"}, "BASE_PORT: expected a whole number of at most 65232, got 'http'"),
        ({"BASE_PORT": "-1"}, "BASE_PORT: expected"),
        ({"BASE_PORT": "65233"}, "BASE_PORT: expected"),
        ({"BASE_PORT": "9" * 5000}, "BASE_PORT: expected"),
    ],
)
def test_what_cannot_be_a_cluster_is_refused(variables: dict[str, str], message: str) -> None:
    with pytest.raises(LocalError) as caught:
        Cluster.from_environment(variables)
    assert str(caught.value).startswith(message)


def test_commands_refuse_in_one_line(tmp_path: Path) -> None:
    for command in (["up"], ["down"], ["status"], ["start", "eu"], ["stop", "eu"]):
        answer = meridian("local", *command, cwd=tmp_path, REGIONS="EU")
        assert (answer.returncode, len(answer.stderr.splitlines())) == (1, 1)
    answer = meridian("local", "start", "mars", cwd=tmp_path)
    assert answer.stderr == "meridian: no region 'mars'; REGIONS names eu, us, ap\n"


# --- whom a pid file is believed about ---


@pytest.mark.parametrize("text", ["", "x", "-1", "0", "1", "999999999", "1 2", "9" * 5000])
def test_a_pid_file_that_names_no_supervisor_of_this_folder_means_nothing(text: str, tmp_path: Path) -> None:
    folder = RegionFolder(tmp_path)
    folder.pid_file.write_text(text)
    assert folder.supervisor() is None
    assert stop([folder]) == []


def test_a_pid_that_belongs_to_another_program_now_is_left_alone(tmp_path: Path) -> None:
    folder = RegionFolder(tmp_path)
    folder.pid_file.write_text(f"{os.getpid()}\n")
    assert stop([folder]) == []


def test_nothing_runs(tmp_path: Path) -> None:
    assert meridian("local", "down", cwd=tmp_path).stdout == ""
    assert meridian("local", "stop", "eu", cwd=tmp_path).stdout == "region eu: was not running\n"
    rows = json.loads(meridian("local", "status", "--json", cwd=tmp_path).stdout)
    assert [(row["region"], row["state"], row["pid"]) for row in rows] == [
        ("eu", "stopped", None),
        ("us", "stopped", None),
        ("ap", "stopped", None),
    ]
    assert not (tmp_path / ".meridian").exists()


def test_a_foreground_is_who_holds_the_lock(tmp_path: Path) -> None:
    assert foreground(tmp_path) is None
    with (tmp_path / "up.pid").open("a+b") as file:
        file.write(b"7\n")
        file.flush()
        assert foreground(tmp_path) is None
        fcntl.flock(file, fcntl.LOCK_EX)
        assert foreground(tmp_path) == 7


# --- a cluster ---


def test_the_life_of_a_cluster_in_a_terminal(machine: Machine) -> None:
    terminal = machine.up()
    lines = read_until(terminal, "ready")
    assert re.fullmatch(rf"region eu: starts, pid \d+, http://127.0.0.1:{machine.base_port + 1}, admin .*", lines[0])
    assert sorted(path.name for path in machine.cluster.data.iterdir() if path.is_dir()) == ["eu"]
    assert {"meridian.toml", "meridian.log", "meridian.pid", "data"} <= {
        path.name for path in machine.eu.path.iterdir()
    }
    first = machine.processes()
    assert machine.eu.pid_file.read_text() == f"{first[0]}\n"
    assert os.getsid(first[0]) == first[0]
    row = machine.status()["eu"]
    assert (row["state"], row["pid"], row["ready"]) == ("running", first[0], True)
    assert isinstance(row["applied"], int)

    os.kill(first[0], signal.SIGKILL)
    assert read_until(terminal, "region")[-1].startswith("region eu: down")
    eventually(lambda: not any(map(is_alive, first)))
    assert machine.status()["eu"]["state"] == "stopped"
    assert machine.local("start", "eu").startswith("region eu: ready, pid ")
    second = machine.processes()
    assert read_until(terminal, "region")[-1] == f"region eu: runs, pid {second[0]}"

    os.killpg(terminal.pid, signal.SIGTERM)
    os.killpg(terminal.pid, signal.SIGINT)
    assert read_until(terminal, "stopped")[-2:] == ["stopping", "stopped"]
    assert terminal.wait(30) == 0
    eventually(lambda: not any(map(is_alive, second)), 5)


def test_regions_outlive_their_terminal_and_are_adopted_and_ended(machine: Machine) -> None:
    machine.eu.path.mkdir(parents=True)
    machine.eu.pid_file.write_text(f"{os.getpid()}\n")
    first = machine.up()
    read_until(first, "ready")
    first.kill()
    first.wait()
    pid = machine.eu.supervisor()
    assert pid is not None
    second = machine.up()
    assert read_until(second, "ready")[0].startswith(f"region eu: runs already, pid {pid}, ")
    assert "another `meridian local up` runs on" in machine.local("up", code=1)
    everything = machine.processes()
    assert machine.local("down", REGIONS="other") == "region eu: stopped\n"
    assert second.wait(5) == 0
    eventually(lambda: not any(map(is_alive, everything)), 5)


def test_start_and_stop(machine: Machine) -> None:
    assert machine.local("start", "eu").startswith("region eu: ready, pid ")
    pid = machine.eu.supervisor()
    assert machine.local("start", "eu") == f"region eu: runs already, pid {pid}\n"
    assert machine.eu.supervisor() == pid
    table = machine.local("status").splitlines()
    assert table[0].split() == ["REGION", "STATE", "PID", "ADDRESS", "READY", "APPLIED"]
    assert table[1].split()[:5] == ["eu", "running", str(pid), f"127.0.0.1:{machine.base_port + 1}", "yes"]
    everything = machine.processes()
    assert machine.local("stop", "eu") == "region eu: stopped\n"
    assert not any(map(is_alive, everything))
    assert machine.local("stop", "eu") == "region eu: was not running\n"


def test_a_region_that_runs_on_other_ports_is_not_taken_for_ours(machine: Machine) -> None:
    machine.local("start", "eu")
    for command in (["start", "eu"], ["up"]):
        error = machine.local(*command, code=1, BASE_PORT=str(machine.base_port + 3))
        assert f"runs already, at 127.0.0.1:{machine.base_port + 1} and not at" in error
    assert machine.status()["eu"]["ready"]


def test_a_region_that_does_not_start_shows_the_end_of_its_log(machine: Machine) -> None:
    broken = {"MERIDIAN_LOG_KEEP_BYTES": "few"}
    for command in (["start", "eu"], ["up"]):
        error = machine.local(*command, code=1, **broken)
        assert "region eu: ended while it started; " in error
        last = error.splitlines()[-1]
        assert last == "meridian: MERIDIAN_LOG_KEEP_BYTES: expected a whole number at least 65536, got 'few'"
    assert machine.eu.supervisor() is None


def test_a_port_of_another_program_is_named(machine: Machine, unused_listener: Callable[[int], None]) -> None:
    unused_listener(machine.base_port + 101)
    address = f"127.0.0.1:{machine.base_port + 101}"
    assert f"{address} is in use by another program" in machine.local("start", "eu", code=1)


@pytest.fixture
def unused_listener() -> Iterator[Callable[[int], None]]:
    import socket

    sockets: list[socket.socket] = []

    def listen(port: int) -> None:
        sockets.append(socket.create_server(("127.0.0.1", port)))

    yield listen
    for each in sockets:
        each.close()


def test_a_long_log_is_put_aside_at_the_start(machine: Machine) -> None:
    machine.eu.path.mkdir(parents=True)
    with machine.eu.log_file.open("wb") as file:
        file.truncate(64 * 1024 * 1024 + 1)
    machine.local("start", "eu", code=1, MERIDIAN_LOG_KEEP_BYTES="few")
    assert (machine.eu.path / "meridian.log.1").stat().st_size == 64 * 1024 * 1024 + 1
    assert machine.eu.log_bytes() < 4096


# --- three regions ---


def test_the_life_of_three_regions(three: Machine) -> None:
    terminal = three.up()
    lines = read_until(terminal, "ready")
    for line, name in zip(lines, ("eu", "us", "ap"), strict=False):
        assert line.startswith(f"region {name}: starts, pid ")
    assert sorted(path.name for path in three.cluster.data.iterdir() if path.is_dir()) == ["ap", "eu", "us"]
    assert {row["state"] for row in three.status().values()} == {"running"}
    first = three.all_processes()
    for pid in first:
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: not any(map(is_alive, first)))
    assert {row["state"] for row in three.status().values()} == {"stopped"}
    terminal.kill()
    terminal.wait()

    # The same cluster again, a region at a time, whatever was left behind.
    before = {name: files_of(three.cluster.data / name / "tls") for name in ("eu", "us", "ap")}
    waits = three.local("start", "us")
    assert waits.startswith("region us: runs, but waits for a majority of the regions, pid ")
    assert three.status()["us"]["state"] == "waiting"
    assert three.local("start", "ap").startswith("region ap: ready, pid ")
    eventually(lambda: three.status()["us"]["state"] == "running")
    assert three.local("start", "eu").startswith("region eu: ready, pid ")
    assert before == {name: files_of(three.cluster.data / name / "tls") for name in ("eu", "us", "ap")}

    assert three.local("stop", "eu") == "region eu: stopped\n"
    assert [row["state"] for row in three.status().values()] == ["stopped", "running", "running"]
    last = three.processes(1) + three.processes(2)
    assert three.local("down") == "region ap: stopped\nregion us: stopped\n"
    eventually(lambda: not any(map(is_alive, last)), 5)


def test_a_region_that_began_alone_goes_on_alone(machine: Machine) -> None:
    (machine.eu.path / "data").mkdir(parents=True)
    Identity.load_or_create(machine.eu.path / "data")
    machine.variables["REGIONS"] = "eu,us,ap"
    assert machine.local("start", "eu").startswith("region eu: ready, pid ")
    refusal = machine.local("start", "us", code=1)
    assert "began alone, and goes on alone; move it away" in refusal
    assert [row["state"] for row in machine.status().values()] == ["running", "unused", "unused"]
    lines = read_until(machine.up(), "ready")
    assert lines[0].startswith("region eu: runs already, pid ")
    assert [line.partition(":")[0] for line in lines[1:3]] == ["region us", "region ap"]
