"""Finding all processes of a node."""

from __future__ import annotations

import subprocess
import sys

from chaos.region import _family

RESTLESS = """
import subprocess, sys, threading
child = subprocess.Popen(["sleep", "60"])
print(child.pid, flush=True)
while child.poll() is None:
    thread = threading.Thread(target=sum, args=([],))
    thread.start()
    thread.join()
"""


def test_a_process_whose_threads_come_and_go_is_found_each_time_and_so_are_its_children() -> None:
    with subprocess.Popen([sys.executable, "-c", RESTLESS], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            child = int(process.stdout.readline())
            for _ in range(5000):
                assert list(_family(process.pid)) == [process.pid, child]
        finally:
            process.kill()
            subprocess.run(["kill", str(child)], check=True)
    assert list(_family(process.pid)) == []
