"""`meridian lab` as a person uses it, and what is left of a lab whose process, or whose start, came to a bad end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click.testing
import pytest

import chaos.regions
from chaos.lab.cli import lab as command
from chaos.lab.errors import LabRefused
from chaos.lab.folder import LabFolder
from chaos.lab.namespaces import namespaces_missing
from chaos.lab.process import serve
from chaos.lab.remains import remains
from chaos.lab.topology import WORLD, load
from tests.node.running import eventually

PRODUCT = Path(__file__).parent.parent.parent.parent
LAB = [sys.executable, "-m", "chaos.lab.cli"]
TWO = 'regions = ["left", "right"]\n[default]\nround_trip_ms = 10\n'
needs_namespaces = pytest.mark.skipif(bool(namespaces_missing()), reason=namespaces_missing() or "-")


class Person:
    """At a terminal, with a folder for a lab."""

    def __init__(self, folder: Path) -> None:
        self.work = folder / "lab"
        self.topology = folder / "two.toml"
        self.topology.write_text(TWO)

    def types(self, verb: str, *words: str) -> tuple[int, str, str]:
        """Exit code, what is printed, what is said about errors."""
        line = [verb, "--work", str(self.work), *words]
        if verb not in {"up", "run"}:
            result = click.testing.CliRunner().invoke(command, line)
            return result.exit_code, result.stdout, result.stderr
        done = subprocess.run([*LAB, *line], cwd=PRODUCT, capture_output=True, text=True, timeout=90, check=False)
        return done.returncode, done.stdout, done.stderr

    def gets(self, verb: str, *words: str) -> str:
        """What is printed by a command that has to succeed."""
        code, printed, said = self.types(verb, *words)
        assert code == 0, said
        return printed

    def refused(self, verb: str, *words: str) -> str:
        """What is said by one that must not."""
        code, _, said = self.types(verb, *words)
        assert code in {1, 2}, said
        return said

    def starts(self, *options: str) -> str:
        return self.gets("up", "--detach", "--topology", str(self.topology), *options)

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self.gets("status", "--json")))

    def record(self) -> dict[str, Any]:
        return dict(json.loads((self.work / "lab.json").read_text()))


@pytest.fixture
def person(tmp_path: Path) -> Iterator[Person]:
    made = Person(tmp_path)
    yield made
    made.types("down")


def interfaces(lab_id: str) -> list[str]:
    return [path.name for path in Path("/sys/class/net").iterdir() if path.name.startswith(f"mlab{lab_id[:6]}")]


@needs_namespaces
def test_a_lab_from_up_to_down(person: Person) -> None:
    said = person.starts().splitlines()
    assert said[-1] == "ready"
    record = person.record()
    assert (
        said[1]
        == f"region left: http://{record['regions']['left']['registry']}, admin http://"
        + (record["regions"]["left"]["admin"])
    )
    assert "a lab is up in" in person.refused("up")
    status = person.status()
    assert [(region["region"], region["state"]) for region in status["regions"]] == [
        ("left", "running"),
        ("right", "running"),
    ]
    assert all(len(region["pids"]) == 4 for region in status["regions"])
    assert [(way["from"], way["to"], way["delay_ms"]) for way in status["ways"]] == [
        ("left", "right", 5),
        ("right", "left", 5),
    ]
    assert "  DELAY_MS  JITTER_MS  LOSS" in person.gets("status")

    changed = person.gets("set", "left", "right", "--delay", "40", "--loss", "0.25", "--rate", "3", "--queue-ms", "8")
    assert changed.splitlines()[1].split()[:8] == ["left", "right", "40.0", "0.0", "0.25", "3.0", "3000", "no"]
    assert "<= 1.0" in person.refused("set", "left", "--loss", "7")
    assert "nothing to change" in person.refused("set", "left")
    assert "no region 'up'" in person.refused("set", "up", "--cut")
    person.gets("set", "--cut")
    assert {way["cut"] for way in person.status()["ways"]} == {True}
    person.gets("set", "--heal", "--loss", "0")

    environment = person.gets("run", "right", "--", "sh", "-c", "echo $REGISTRY $REGISTRY_LEFT; ls /sys/class/net")
    assert environment.split()[:2] == [record["regions"][name]["registry"] for name in ("right", "left")]
    assert person.types("run", "left", "--", "sh", "-c", "exit 7")[0] == 7
    assert "no region 'up'" in person.refused("run", "up", "--", "true")

    assert person.gets("down") == "down\n"
    assert_gone(person, record)


@needs_namespaces
def test_down_clears_up_after_a_lab_that_was_killed(person: Person) -> None:
    person.starts()
    record = person.record()
    with subprocess.Popen(
        [*LAB, "run", "--work", str(person.work), "left", "--", "sleep", "600"], cwd=PRODUCT
    ) as inside:
        eventually(lambda: inside.pid in remains(record["id"]))
        os.kill(record["pid"], signal.SIGKILL)
        eventually(lambda: remains(record["id"]) == [inside.pid])  # the nodes have gone with it
        assert "has died" in person.refused("status")
        assert person.gets("down") == "down\n"
        assert inside.wait(1) == -signal.SIGTERM
    assert_gone(person, record)
    assert person.gets("down") == "no lab was up\n"


def assert_gone(person: Person, record: dict[str, Any]) -> None:
    assert not remains(record["id"])
    assert not interfaces(record["id"])
    assert not (person.work / "lab.json").exists()
    assert not (person.work / "lab.sock").exists()
    assert "no lab is up" in person.refused("status")


def test_a_lab_on_loopback_says_what_it_is_not(person: Person) -> None:
    person.topology.write_text(TWO + "loss = 0.1\n")
    line = [*LAB, "up", "--work", str(person.work), "--topology", str(person.topology), "--loopback"]
    with subprocess.Popen(line, cwd=PRODUCT, stdout=subprocess.PIPE, text=True) as foreground:
        assert foreground.stdout is not None
        assert "loss is not emulated on loopback" in foreground.stdout.readline()
        assert list(iter(foreground.stdout.readline, "ready\n"))
        record = person.record()
        look_around(person)
        foreground.send_signal(signal.SIGINT)
        assert foreground.wait(20) == 0
    assert_gone(person, record)


def look_around(person: Person) -> None:
    status = person.status()
    assert status["kind"] == "loopback"
    assert status["not_emulated"] == ["loss", "queue_bytes", "queue_ms"]
    assert {(way["loss"], way["packets"], way["queue_bytes"]) for way in status["ways"]} == {(None, None, None)}
    assert "cannot be emulated" in person.refused("set", "left", "right", "--loss", "0.1")
    person.gets("set", "left", "right", "--delay", "20", "--cut")
    assert [(way["delay_ms"], way["cut"]) for way in person.status()["ways"]] == [(20, True), (5, False)]


@needs_namespaces
async def test_who_sees_that_it_is_ready_can_read_that_it_is(tmp_path: Path) -> None:
    topology = tmp_path / "two.toml"
    topology.write_text(TWO)
    folder, recorded = LabFolder(tmp_path / "lab"), list[bool]()

    def tell(line: str) -> None:
        if line == "ready":
            record = folder.record()
            assert record is not None
            recorded.append(record.ready)
            os.kill(os.getpid(), signal.SIGINT)

    await serve(load(topology), folder, "namespaces", tell)
    assert recorded == [False]


async def test_a_start_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chaos.regions, "READY_SECONDS", 0.2)
    folder, said = LabFolder(tmp_path / "lab"), list[str]()
    with pytest.raises(LabRefused, match=r"not ready within 0\.2 s"):
        await serve(load(), folder, "loopback" if namespaces_missing() else "namespaces", said.append)
    lab_id = said[0].split()[1].rstrip(":")
    assert len(said) == 1
    assert folder.record() is None
    assert not interfaces(lab_id)
    assert not remains(lab_id)


def test_a_folder_that_holds_something_else_is_not_touched(person: Person) -> None:
    person.work.mkdir()
    (person.work / "thesis.txt").write_text("all of it")
    assert "no lab made it" in person.refused("up")
    assert "no lab made it" in person.refused("up", "--detach")
    assert [path.name for path in person.work.iterdir()] == ["thesis.txt"]


def test_a_topology_that_is_wrong_is_refused_before_anything_is_made(person: Person) -> None:
    person.topology.write_text("regions = []")
    assert "expected 2 to 7" in person.refused("up", "--topology", str(person.topology))
    assert not person.work.exists()


def test_the_topology_to_begin_with_is_printed() -> None:
    done = click.testing.CliRunner().invoke(command, ["topology"])
    assert done.output == WORLD.read_text()


@pytest.mark.parametrize("verb", ["up", "down", "status", "set", "run", "topology"])
def test_every_command_has_help(verb: str) -> None:
    done = click.testing.CliRunner().invoke(command, [verb, "--help"])
    assert done.exit_code == 0
    assert len(done.output.splitlines()) > 4
