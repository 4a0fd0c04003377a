import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from consensus.names import RepositoryName
from consensus.views import Views
from node.config import Config, Node
from node.identity import Identity
from node.launch import Launch
from node.rpc import KeeperClient
from tests.node.commands import clean_environment


@contextmanager
def keeper(data: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The process alone, and the pipe on which it says that it is ready."""
    reader, writer = os.pipe()
    launch = Launch(
        name="keeper",
        config=Config(node=Node(data=str(data))),
        runtime=str(data),
        incarnation="0",
        started_ms=0,
        ready_descriptor=writer,
    )
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "node.keeper"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=(writer,),
        env=clean_environment({}),
    )
    os.close(writer)
    assert process.stdin
    try:
        process.stdin.write(launch.encode())
        process.stdin.close()
        yield process, reader
    finally:
        os.close(reader)
        process.kill()
        process.wait(10)
        assert process.stderr
        process.stderr.close()


def refusal(process: subprocess.Popen[bytes]) -> dict[str, str]:
    """What it says when it ends by itself."""
    assert process.stderr
    lines = [json.loads(line) for line in process.stderr if line.startswith(b"{")]
    assert process.wait(20) == 1
    return next(line for line in lines if line["event"] == "keeper_refused")


async def enrol(data: Path) -> tuple[int, int]:
    client = KeeperClient(data / "keeper.sock")
    try:
        identity = await client.enrol("test")
        return identity, (await client.status()).applied
    finally:
        await client.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_it_keeps_what_it_answered(tmp_path: Path, number: signal.Signals) -> None:
    Identity.load_or_create(tmp_path)
    last = 0
    for _ in range(2):
        with keeper(tmp_path) as (process, ready):
            assert os.read(ready, 1) == b"1"
            identity, applied = asyncio.run(enrol(tmp_path))
            assert applied >= identity > last
            last = identity
            process.send_signal(number)
            assert process.wait(20) == (0 if number == signal.SIGTERM else -number)
        (tmp_path / "keeper.sock").unlink(missing_ok=True)
    views = Views(tmp_path / "state")
    assert views.applied() == last
    assert not views.has_repository(RepositoryName("team/app"))
    views.close()


def test_a_state_of_another_cluster_is_refused(tmp_path: Path) -> None:
    identity = Identity.load_or_create(tmp_path)
    with keeper(tmp_path) as (process, ready):
        assert os.read(ready, 1) == b"1"
    path = tmp_path / "identity"
    path.write_text(path.read_text().replace(identity.cluster_id, "f" * 32))
    with keeper(tmp_path) as (process, ready):
        assert os.read(ready, 1) == b""
        said = refusal(process)
    assert (said["error"], "data folder of its own" in said["reason"]) == ("StateRefused", True)


def test_a_damaged_identity_is_refused(tmp_path: Path) -> None:
    (tmp_path / "identity").write_text("{}")
    with keeper(tmp_path) as (process, _):
        assert refusal(process)["error"] == "IdentityRefused"
