"""Real nodes in network namespaces at real distances, and the same through relays on loopback."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from chaos.lab.errors import TopologyError
from chaos.lab.laboratory import Lab, lab
from chaos.lab.namespaces import namespaces_missing
from chaos.lab.remains import remains
from chaos.lab.topology import load, parse
from tests.clients.layouts import Layout, tagged
from tests.node.running import digest_of, eventually, push_blob

PLAIN = "application/vnd.example.plain"
needs_namespaces = pytest.mark.skipif(bool(namespaces_missing()), reason=namespaces_missing() or "-")

CONNECT = """
import socket, sys, time
times = []
for _ in range(5):
    began = time.monotonic()
    with socket.create_connection((sys.argv[1], sys.argv[2])) as connection:
        times.append(time.monotonic() - began)
        congestion_control = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
print(min(times) * 1e3, congestion_control.rstrip(b"\\0").decode())
"""
SINK = """
import socket, time
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink:
    sink.bind(("", 7000))
    print("bound", flush=True)
    began, size = None, 0
    while packet := sink.recv(2000):
        size += len(packet) + 28 if began else 0
        began = began or time.monotonic()
        ended = time.monotonic()
print(size * 8 / 1e6 / (ended - began))
"""
SOURCE = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as source:
    for _ in range(300):
        source.sendto(bytes(1000), (sys.argv[1], 7000))
    source.sendto(b"", (sys.argv[1], 7000))
"""


def client(it: Lab, region: str) -> httpx.Client:
    return httpx.Client(base_url=f"http://{it.nodes[region].address}", timeout=20, trust_env=False)


def round_trip(it: Lab, source: str, sink: str) -> tuple[float, str]:
    """Milliseconds that a connection takes, and what does its congestion control."""
    host, port = it.nodes[sink].address.split(":")
    said = it.run(source, sys.executable, "-c", CONNECT, host, port, capture_output=True, text=True).stdout
    milliseconds, congestion_control = said.split()
    return float(milliseconds), congestion_control


@needs_namespaces
def test_regions_are_as_far_from_each_other_as_the_topology_says(world: Lab) -> None:
    for source, sink in (("eu", "us"), ("us", "ap"), ("ap", "eu")):
        took, congestion_control = round_trip(world, source, sink)
        distance = world.topology.round_trip_ms(source, sink)
        assert distance <= took < distance + 6, (source, sink)
        assert congestion_control == "cubic"
    assert round_trip(world, "eu", "eu")[0] < 5


@needs_namespaces
def test_this_machine_is_near_to_every_region(world: Lab) -> None:
    for region in world.nodes:
        with client(world, region) as near:
            near.get("/v2/")
            began = time.monotonic()
            assert near.get("/v2/").status_code == 200
            assert time.monotonic() - began < 0.035


@needs_namespaces
def test_what_is_pushed_in_one_region_is_pulled_in_the_others(world: Lab) -> None:
    layer = bytes(range(256)) * 4000
    with client(world, "eu") as eu, client(world, "us") as us, client(world, "ap") as ap:
        digest = push_blob(eu, layer)
        pushed = eu.put("/v2/team/app/manifests/v1", content=b"manifest", headers={"content-type": PLAIN})
        assert pushed.status_code == 201, pushed.text
        before = world.counters()
        for region in (us, ap):
            assert region.get("/v2/team/app/manifests/v1").content == b"manifest"
            assert region.get(f"/v2/team/app/blobs/{digest}").content == layer
    for sink, sources in (("us", ["eu"]), ("ap", ["eu", "us"])):  # us has a copy then, and is nearer to ap
        carried = sum((world.counters()[each, sink].bytes or 0) - (before[each, sink].bytes or 0) for each in sources)
        assert carried > len(layer), f"to {sink} by another way"


@needs_namespaces
def test_a_way_changes_while_the_lab_runs(restored: Lab) -> None:
    restored.set("eu", "us", delay_ms=5)
    assert 45 <= round_trip(restored, "eu", "us")[0] < 51
    restored.set("us", "eu", delay_ms=5)
    assert 10 <= round_trip(restored, "us", "eu")[0] < 16
    with pytest.raises(TopologyError, match="no region 'mars'"):
        restored.set("mars", delay_ms=5)
    with pytest.raises(TopologyError, match=r"loss"):
        restored.set("eu", "us", delay_ms=1, loss=2)
    assert restored.links["eu", "us"].delay_ms == 5


@needs_namespaces
def test_the_rate_is_that_of_the_line(restored: Lab) -> None:
    restored.set("eu", "us", rate_mbit=10, queue_ms=1000)
    sink = subprocess.Popen(
        restored.command("us", sys.executable, "-c", SINK), stdout=subprocess.PIPE, text=True, bufsize=1
    )
    with sink:
        assert sink.stdout
        assert sink.stdout.readline() == "bound\n"
        restored.run("eu", sys.executable, "-c", SOURCE, restored.nodes["us"].address.partition(":")[0])
        assert 9 < float(sink.stdout.readline()) < 11


@needs_namespaces
def test_a_region_that_is_cut_off_is_alone_until_it_is_healed(restored: Lab) -> None:
    with client(restored, "eu") as eu, client(restored, "ap") as ap:
        restored.set("ap", both=True, cut=True)
        content = b"while ap is away"
        eventually(
            lambda: eu.put("/v2/team/app/manifests/cut", content=content, headers={"content-type": PLAIN}).is_success
        )
        assert ap.get("/v2/team/app/manifests/cut").status_code == 503
        lost = restored.counters()["eu", "ap"].lost
        assert lost
        restored.set(cut=False)
        assert not any(link.cut for link in restored.links.values())
        answer = eventually(lambda: (found := ap.get("/v2/team/app/manifests/cut")).is_success and found)
        assert answer.headers["docker-content-digest"] == digest_of(content)


@needs_namespaces
async def test_a_node_dies_freezes_and_comes_back(world: Lab) -> None:
    node = world.nodes["us"]
    node.freeze()
    with pytest.raises(httpx.ReadTimeout):
        await asyncio.to_thread(httpx.get, f"http://{node.address}/v2/", timeout=0.3, trust_env=False)
    node.thaw()
    thawed = await asyncio.to_thread(httpx.get, f"http://{node.address}/v2/", timeout=10, trust_env=False)
    assert thawed.status_code == 200
    node.kill()
    assert not node.is_running
    node.start()
    await node.wait_ready()
    assert round_trip(world, "us", "eu")[0] >= 80


@needs_namespaces
def test_clients_run_in_their_region(world: Lab, tmp_path: Path) -> None:
    if shutil.which("skopeo") is None:
        pytest.skip("skopeo is not installed")
    images = Layout(tmp_path / "images")
    digest = images.tag("it", images.add_image(seed="lab"))
    push = ("sh", "-c", 'exec skopeo copy --dest-tls-verify=false "$0" "docker://$REGISTRY/team/skopeo:1"')
    pull = ("sh", "-c", 'exec skopeo copy --src-tls-verify=false "docker://$REGISTRY_US/team/skopeo:1" "$0"')
    world.run("us", *push, f"oci:{images.folder}:it", capture_output=True)
    world.run("ap", *pull, f"oci:{tmp_path / 'back'}:it", capture_output=True)
    assert tagged(tmp_path / "back") == digest


@needs_namespaces
def test_labs_do_not_collide_and_leave_nothing_behind(world: Lab, tmp_path: Path) -> None:
    topology = parse('regions = ["left", "right"]\ncongestion_control = "bbr"\n[default]\nround_trip_ms = 20')
    with lab(topology, tmp_path) as it:
        places = {place.registry for place in (*world.wan.places.values(), *it.wan.places.values())}
        assert len(places) == 5
        sleeper = subprocess.Popen(it.command("left", "sleep", "600"))
        server = subprocess.Popen(
            it.command("left", sys.executable, "-m", "http.server", "5000"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        eventually(lambda: _connects(it), 10)
        took, congestion_control = round_trip(it, "right", "left")
        assert 20 <= took < 26
        assert congestion_control == "bbr"
        assert len(_interfaces(it)) == 2
    assert sleeper.wait(1) < 0
    assert server.wait(1) < 0
    assert not remains(it.id)
    assert not _interfaces(it)
    assert _interfaces(world)


def _connects(it: Lab) -> bool:
    try:
        return httpx.get(f"http://{it.nodes['left'].address}/", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def _interfaces(it: Lab) -> list[str]:
    return [path.name for path in Path("/sys/class/net").iterdir() if path.name.startswith(f"mlab{it.id[:6]}")]


async def test_on_loopback_the_nodes_are_as_far_from_each_other(tmp_path: Path) -> None:
    with lab(load(), tmp_path, kind="loopback") as it:
        try:
            await it.start()
            leader = await it.steward()
            other = next(name for name in it.nodes if name != leader)
            with client(it, other) as far:
                far.get("/v2/team/app/tags/list")
                began = time.monotonic()
                assert far.get("/v2/team/app/tags/list").status_code == 404
                nearest = min(it.topology.round_trip_ms(other, name) for name in it.nodes if name != other)
                assert time.monotonic() - began > nearest / 1e3
            with pytest.raises(TopologyError, match="loss: cannot be emulated"):
                it.set("eu", "us", loss=0.1)
            it.set(other, both=True, cut=True)
            it.set("", other, cut=False)
            assert [pair for pair, link in it.links.items() if link.cut] == it.pairs(other)
            said = it.run(other, "sh", "-c", "echo $REGISTRY", capture_output=True, text=True).stdout.strip()
            assert said == it.nodes[other].address
            assert sum(count.bytes or 0 for count in it.counters().values()) > 0
        finally:
            await it.close()
    assert not remains(it.id)
