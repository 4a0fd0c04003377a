import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import load, processes, servers
from bench.load import BLOCK_BYTES, Content, RandomRange
from chaos.ports import free_addresses


@pytest.mark.parametrize("size", [0, 1, 4096, BLOCK_BYTES, BLOCK_BYTES * 2 + 17])
def test_content_has_its_size_and_digest(size: int) -> None:
    content = Content.of("seed", size)
    assert len(content.whole()) == size
    assert load.digest_of(content.whole()) == content.digest


def test_contents_of_different_seeds_share_no_block() -> None:
    first, second = ({bytes(block) for block in Content.of(seed, 5 * BLOCK_BYTES).blocks()} for seed in "ab")
    assert len(first | second) == 10


def test_locations_may_be_relative_or_absolute() -> None:
    assert load.path_of("/v2/a/blobs/uploads/1?state=x") == "/v2/a/blobs/uploads/1?state=x"
    assert load.path_of("http://127.0.0.1:1/v2/a/blobs/uploads/1") == "/v2/a/blobs/uploads/1"


def test_the_cost_of_a_process_holds_its_descendants() -> None:
    command = [sys.executable, "-c", "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as parent:
        assert parent.stdin is not None
        while len(processes.tree(parent.pid)) < 2:
            os.sched_yield()
        assert processes.tree(os.getpid())[0] == os.getpid()
        assert set(processes.tree(parent.pid)) < set(processes.tree(os.getpid()))
        assert processes.memory_bytes(parent.pid) > processes.pss_bytes(parent.pid) > 0
        parent.stdin.close()
    assert processes.memory_bytes(parent.pid) == 0


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such thing')"]
    with (
        pytest.raises(servers.ServerFailed, match="no such thing"),
        servers.running(command, tmp_path, f"http://{free_addresses(1)[0]}/"),
    ):
        pass


def test_wrk_reads_and_refuses_errors(tmp_path: Path) -> None:
    for name in ("nginx", "wrk"):
        try:
            servers.program(name)
        except servers.ServerMissing:
            pytest.skip(f"{name} is not installed")
    with servers.nginx(tmp_path) as server:
        (tmp_path / "data/file").write_bytes(bytes(100_000))
        ranges = RandomRange(100_000, 1000)
        found = load.get(f"http://{server.address}/file", connections=2, seconds=1, ranges=ranges)
        assert found.bytes / found.requests == pytest.approx(1300, abs=300)
        with pytest.raises(load.LoadFailed):
            load.get(f"http://{server.address}/missing", connections=2, seconds=1)
