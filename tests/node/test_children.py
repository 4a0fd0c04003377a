import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from node import config
from node.children import Backoff, Child, Kept, Program
from tests.node.descent import is_alive
from tests.node.running import eventually

QUICK = config.Supervisor(restart_first_seconds=0.05, restart_most_seconds=0.2)

# The descriptor on which to say that it is ready comes on standard input.
PATIENT = "import os, signal, sys\nos.write(int(sys.stdin.read()), b'1')\nsignal.pause()\n"
STUBBORN = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + PATIENT
FLEETING = "import os, sys\nos.write(int(sys.stdin.read()), b'1')\nsys.exit(7)\n"


def program(folder: Path, source: str) -> Callable[[int], Program]:
    """A module of its own."""
    (folder / "child_module.py").write_text(source)
    environment = os.environ | {"PYTHONPATH": str(folder)}
    return lambda ready: Program("child_module", "child", str(ready).encode(), (ready,), environment)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def test_pauses_double_up_to_the_longest_and_begin_again_after_health() -> None:
    backoff = Backoff(QUICK)
    assert [backoff.pause(0) for _ in range(4)] == [0.05, 0.1, 0.2, 0.2]
    assert backoff.pause(0.3) == 0.05
    assert backoff.pause(0) == 0.1


@pytest.mark.parametrize(("source", "status"), [(PATIENT, -signal.SIGTERM), (STUBBORN, -signal.SIGKILL)])
async def test_a_child_is_asked_to_end_and_then_made_to(tmp_path: Path, source: str, status: int) -> None:
    kept = Kept("keeper", "child", program(tmp_path, source), QUICK)
    running = asyncio.create_task(kept.run())
    async with asyncio.timeout(20):
        await kept.ready.wait()
    assert kept.child
    assert os.getpgid(kept.child.pid) == kept.child.pid
    await kept.stop(0.5)
    assert await kept.child.stop(1) == status  # again: it has ended already
    assert not is_alive(kept.child.pid)
    await asyncio.wait_for(running, 5)
    assert not kept.ready.is_set()


async def test_what_dies_is_started_again_until_it_is_stopped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = Kept("keeper", "child", program(tmp_path, FLEETING), QUICK)
    running = asyncio.create_task(kept.run())
    await until(lambda: caplog.text.count("process_died") >= 3)
    assert {record.__dict__.get("status", 7) for record in caplog.records} == {7}
    assert kept.died.is_set()
    await kept.stop(5)
    await asyncio.wait_for(running, 5)
    assert kept.child
    assert not is_alive(kept.child.pid)


async def test_what_cannot_be_started_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    too_much = {"A": "x" * 4_000_000}
    kept = Kept("keeper", "child", lambda ready: Program("none", "child", b"", (ready,), too_much), QUICK)
    running = asyncio.create_task(kept.run())
    await until(lambda: caplog.text.count("process_not_started") >= 2)
    await kept.stop(1)
    await asyncio.wait_for(running, 5)


async def test_a_child_that_does_not_read_what_it_is_told(tmp_path: Path) -> None:
    (tmp_path / "child_module.py").write_text("import os, sys\nos.close(0)\nsys.exit(3)\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    child = Child.start(Program("child_module", "child", b"x" * 60_000, (), environment))
    assert await asyncio.wait_for(child.exited, 20) == 3


def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    (tmp_path / "child_module.py").write_text("import signal\nsignal.pause()\n")
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE)
    assert parent.stdout
    with parent.stdout:
        child = int(parent.stdout.readline())
    assert is_alive(child)
    parent.kill()
    parent.wait(10)
    eventually(lambda: not is_alive(child))


PARENT = """
import asyncio, os, sys
from node.children import Child, Program

async def main():
    child = Child.start(Program("child_module", "child", b"", (), os.environ | {"PYTHONPATH": sys.argv[1]}))
    print(child.pid, flush=True)
    await child.exited

asyncio.run(main())
"""
