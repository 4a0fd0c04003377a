import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import pytest

from node.identity import Identity
from tests.node.commands import MERIDIAN, clean_environment
from tests.node.descent import is_alive
from tests.node.running import RunningNode, eventually, push_blob, push_image, running


@pytest.fixture
def node(tmp_path: Path) -> Iterator[RunningNode]:
    with running(tmp_path) as node:
        yield node


def test_a_node_serves_and_ends_with_everything_kept(node: RunningNode) -> None:
    with node.client() as client:
        manifest = push_image(client, "v1")
    assert len(node.children()) == 3
    began = time.monotonic()
    children = node.children()
    assert node.stop() == 0
    assert time.monotonic() - began < 10
    assert not any(map(is_alive, children))
    node.start()
    with node.client() as client:
        assert client.get("/v2/team/app/manifests/v1").content == manifest
    assert node.stop() == 0


def test_a_killed_gateway_is_replaced_and_the_others_go_on(node: RunningNode) -> None:
    with node.client() as client:
        manifest = push_image(client, "v1")
    for number, pid in enumerate(node.children()):
        os.kill(pid, signal.SIGKILL)
        node.wait_for("process_started", 4 + number)
        eventually(lambda: node.admin("/readyz").status_code == 200)
        with node.client() as client:
            assert client.get("/v2/team/app/manifests/v1").content == manifest
            push_image(client, f"again-{number}")
    assert "meridian_process_restarts_total" in node.admin("/metrics").text


def test_reads_go_on_without_a_keeper_and_writes_wait_for_it(node: RunningNode) -> None:
    with node.client() as client:
        manifest = push_image(client, "v1")
        os.kill(node.child("keeper"), signal.SIGKILL)
        assert client.get("/v2/team/app/manifests/v1").content == manifest
        push_image(client, "v2")
        assert client.get("/v2/team/app/tags/list").json()["tags"] == ["v1", "v2"]


def test_a_keeper_that_cannot_start_leaves_the_reads(node: RunningNode) -> None:
    with node.client() as client:
        manifest = push_image(client, "v1")
        push_image(client, "v2")
        segment = next((node.folder / "data" / "wal").glob("*.log"))
        content = bytearray(segment.read_bytes())
        content[len(content) // 4] ^= 0xFF
        segment.write_bytes(content)
        os.kill(node.child("keeper"), signal.SIGKILL)
        refused = node.wait_for("keeper_refused", 2)
        assert refused["error"] == "LogCorrupt"
        assert str(segment.name) in refused["reason"]
        assert client.get("/v2/team/app/manifests/v1").content == manifest
        ready = node.admin("/readyz")
        assert (ready.status_code, ready.json()["keeper"]) == (503, "does not answer")
        assert node.admin("/livez").status_code == 200
        answer = client.post("/v2/team/app/blobs/uploads/", params={"mount": "sha256:" + "0" * 64, "from": "team/b"})
        assert answer.status_code in {202, 503}
        assert node.stop() == 0


def is_live(node: RunningNode) -> bool:
    """Whether a gateway is there, which may not serve yet."""
    with contextlib.suppress(httpx.TransportError):
        return node.admin("/livez").status_code == 200
    return False


def test_nothing_is_answered_from_a_state_that_lacks_what_the_log_has(node: RunningNode) -> None:
    with node.client() as client:
        push_image(client, "v1")
        assert node.stop() == 0
        before = node.folder / "before"
        shutil.copytree(node.folder / "data" / "state", before)
        node.start()
        manifest = push_image(client, "v2")
    node.kill()
    shutil.rmtree(node.folder / "data" / "state")
    before.rename(node.folder / "data" / "state")  # as a power loss may leave it: the log is what is durable
    with (node.folder / "data" / "wal" / "lock").open("ab") as lock, ThreadPoolExecutor(1) as thread:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the keeper has to wait
        node.start(wait=False)
        with node.client() as client:
            eventually(lambda: is_live(node))
            asked = thread.submit(client.get, "/v2/team/app/manifests/v2")
            with pytest.raises(TimeoutError):
                asked.result(3)
            fcntl.flock(lock, fcntl.LOCK_UN)
            assert asked.result(30).content == manifest
    assert node.stop() == 0


def test_everything_dies_with_the_supervisor_and_starts_again_at_once(node: RunningNode) -> None:
    with node.client() as client:
        manifest = push_image(client, "v1")
    children = node.kill()
    assert len(children) == 3
    eventually(lambda: not any(map(is_alive, children)))
    assert list((node.folder / "data" / "run").glob("*.sock"))
    node.start()
    with node.client() as client:
        assert client.get("/v2/team/app/manifests/v1").content == manifest
        push_image(client, "v2")


def test_a_download_under_way_survives_sigterm(node: RunningNode) -> None:
    content = os.urandom(1024) * 32 * 1024
    with node.client() as client:
        digest = push_blob(client, content)
        with client.stream("GET", f"/v2/team/app/blobs/{digest}") as download:
            parts = download.iter_bytes(65536)
            received = [next(parts)]
            assert node.process
            node.process.terminate()
            node.wait_for("node_draining")
            eventually(lambda: not _accepts(node.port))
            drains = eventually(lambda: node.admin("/readyz"))
            assert (drains.status_code, drains.json()["registry"]) == (503, "drains")
            assert node.admin("/livez").status_code == 200
            received += parts
    assert b"".join(received) == content
    assert node.process.wait(20) == 0


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True


def test_a_download_that_takes_too_long_is_cut_off(tmp_path: Path) -> None:
    with running(tmp_path, gateways=1) as node:
        node.configure()
        node.config_file.write_text(node.config_file.read_text().replace("drain_seconds = 10", "drain_seconds = 0.5"))
        node.signal(signal.SIGHUP)
        node.wait_for("node_reloaded")
        with node.client() as client:
            digest = push_blob(client, os.urandom(1024) * 32 * 1024)
            with client.stream("GET", f"/v2/team/app/blobs/{digest}"):
                began = time.monotonic()
                assert node.stop() == 0
                assert time.monotonic() - began < 6
        assert node.events("gateway_stopped")[-1]["clean"] is False


class Load:
    """Clients that never pause, each on kept-alive connections; `failures` is what they did not like."""

    def __init__(self, node: RunningNode, manifest: bytes) -> None:
        self.requests = 0
        self.failures: list[str] = []
        self._node = node
        self._manifest = manifest
        self._over = threading.Event()
        self._threads = [threading.Thread(target=work) for work in (self._pull, self._pull, self._push, self._connect)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(30)

    def _pull(self) -> None:
        with self._node.client() as client:
            while not self._over.is_set():
                self._check(lambda: client.get("/v2/team/app/manifests/v1").content == self._manifest)

    def _connect(self) -> None:
        while not self._over.is_set():
            with self._node.client() as client:
                self._check(partial(self._is_served, client))

    def _push(self) -> None:
        with self._node.client() as client:
            while not self._over.is_set():
                self._check(lambda: push_image(client, f"v{self.requests}"))

    @staticmethod
    def _is_served(client: httpx.Client) -> bool:
        return client.get("/v2/team/app/manifests/v1").status_code == 200

    def _check(self, request: Callable[[], object]) -> None:
        self.requests += 1
        try:
            if not request():
                self.failures.append("wrong answer")
        except (httpx.HTTPError, AssertionError) as error:
            self.failures.append(repr(error))


def test_a_reload_under_load_loses_no_request(node: RunningNode) -> None:
    with node.client() as client:
        manifest = push_image(client, "v1")
    with Load(node, manifest) as load:
        for number in range(1, 4):
            node.configure(f"[log]\nkeep_bytes = {100_000_000 + number}\n" if number == 3 else "")
            node.signal(signal.SIGHUP)
            node.wait_for("node_reloaded", number)
            eventually(lambda: len(node.children()) == 3)
        count = load.requests
        eventually(lambda: load.requests > count + 50)
    assert load.failures == []
    assert [line["child"] for line in node.events("process_started")].count("keeper") == 2
    assert node.stop() == 0


def test_a_configuration_that_is_wrong_changes_nothing(node: RunningNode) -> None:
    before = set(node.children())
    node.configure("[limits]\nurl_bites = 7\n")
    node.signal(signal.SIGHUP)
    assert "url_bites" in node.wait_for("reload_refused")["reason"]
    assert set(node.children()) == before
    os.kill(node.child("gateway-0"), signal.SIGKILL)
    node.wait_for("gateway_serving", 3)
    with node.client() as client:
        push_image(client, "v1")


def test_gateways_that_cannot_serve_do_not_replace_those_that_do(node: RunningNode) -> None:
    before = set(node.children())
    identity = node.folder / "data" / "identity"
    identity.rename(identity.with_name("away"))
    node.signal(signal.SIGHUP)
    assert "go on" in node.wait_for("reload_refused")["reason"]
    eventually(lambda: set(node.children()) == before)
    assert not node.events("message")
    with node.client() as client:
        push_image(client, "v1")


def test_what_needs_a_restart_is_named_and_kept(node: RunningNode) -> None:
    port, node.port = node.port, 1
    node.configure()
    node.port = port
    node.signal(signal.SIGHUP)
    assert node.wait_for("reload_needs_restart")["keys"].startswith("listen.address")
    node.wait_for("node_reloaded")
    with node.client() as client:
        assert client.get("/v2/").status_code == 200


def test_a_second_node_on_the_same_data_is_refused_by_name_of_the_first(node: RunningNode) -> None:
    second = subprocess.run(
        [*MERIDIAN, "serve", "--config", str(node.config_file)],
        env=clean_environment({"MERIDIAN_LISTEN_ADDRESS": "127.0.0.1:0", "MERIDIAN_LISTEN_ADMIN": "127.0.0.1:0"}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert second.returncode == 1
    assert f"pid {node.pid}" in second.stderr
    with node.client() as client:
        assert client.get("/v2/").status_code == 200


def test_a_predecessor_that_is_just_ending_is_waited_for(node: RunningNode) -> None:
    first = node.process
    node.signal(signal.SIGTERM)
    node.start()
    assert first
    assert first.wait(10) == 0
    with node.client() as client:
        assert client.get("/v2/").status_code == 200


def test_an_open_node_listens_on_loopback_only(tmp_path: Path) -> None:
    program = (
        "import msgspec, sys\n"
        "from node.config import Config, Listen, Node\n"
        "from node.supervisor import run\n"
        f"sys.exit(run(Config(node=Node(data={str(tmp_path)!r}), listen=Listen(address='0.0.0.0:0')), None))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "allow_remote_open" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_supervisor_imports_nothing_heavy() -> None:
    program = "import sys, node.supervisor, node.cli; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    modules = {name.partition(".")[0] for name in done.stdout.split()}
    assert not modules & {"grpc", "uvloop", "httptools", "starlette", "httpx", "prometheus_client"}


def test_a_new_node_whose_keeper_cannot_start_is_not_ready_and_ends_when_asked(tmp_path: Path) -> None:
    node = RunningNode(tmp_path, gateways=1)
    (tmp_path / "data").mkdir()
    Identity.load_or_create(tmp_path / "data")
    (tmp_path / "data" / "wal").write_bytes(b"not a folder")
    try:
        node.start(wait=False)
        node.wait_for("keeper_refused")
        node.wait_for("gateway_waiting")
        assert node.admin("/readyz").json()["state"] == "cannot be read"
        assert node.stop() == 0
    finally:
        if node.process and node.process.poll() is None:
            node.kill()


def test_blobs_of_another_store_are_refused(tmp_path: Path) -> None:
    node = RunningNode(tmp_path, gateways=1)
    (tmp_path / "data").mkdir()
    Identity.load_or_create(tmp_path / "data")
    (tmp_path / "data" / "blobs").mkdir()
    (tmp_path / "data" / "blobs" / "STORE").write_text("0" * 32)
    try:
        node.start(wait=False)
        assert node.wait_for("gateway_refused")["error"] == "StoreRefused"
    finally:
        node.kill()


def test_blobs_that_are_gone_are_not_begun_anew(node: RunningNode) -> None:
    with node.client() as client:
        push_image(client, "v1")
    node.stop()
    blobs = node.folder / "data" / "blobs"
    blobs.rename(node.folder / "away")
    blobs.mkdir()  # as where a disk is not mounted
    node.start(wait=False)
    refused = node.wait_for("gateway_refused")
    assert (refused["error"], "is their disk mounted?" in refused["reason"]) == ("StoreRefused", True)
    assert node.stop() == 0
    assert list(blobs.iterdir()) == []
    blobs.rmdir()
    (node.folder / "away").rename(blobs)
    node.start()
    with node.client() as client:
        assert client.get("/v2/team/app/manifests/v1").status_code == 200
