"""Layers that come from other regions, at real distances, while the nodes that hold them die.

MERIDIAN_IMAGES says how many images, and half as many deaths; a soak takes 100.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import httpx
import pytest

from chaos.lab.laboratory import Lab
from chaos.lab.namespaces import namespaces_missing
from tests.clients.layouts import Layout, tagged
from tests.node.running import digest_of, eventually, push_blob

IMAGES = int(os.environ.get("MERIDIAN_IMAGES", "2"))
MIB = 1024 * 1024

pytestmark = [
    pytest.mark.skipif(bool(namespaces_missing()), reason=namespaces_missing() or "-"),
    pytest.mark.timeout(180 + 30 * IMAGES),
]

PUSH = ("sh", "-c", 'exec skopeo copy --dest-tls-verify=false "$0" "docker://$REGISTRY/$1"')
PULL = ("sh", "-c", 'exec skopeo copy --src-tls-verify=false "docker://$REGISTRY/$1" "$0"')


def client(it: Lab, region: str) -> httpx.Client:
    return httpx.Client(base_url=f"http://{it.nodes[region].address}", timeout=30, trust_env=False)


def start(it: Lab, region: str) -> None:
    async def ready() -> None:
        await it.nodes[region].wait_ready()

    it.nodes[region].start()
    asyncio.run(ready())


@pytest.fixture
def narrow(restored: Lab) -> Lab:
    """So that a pull takes a second or two."""
    restored.set(rate_mbit=50)
    return restored


def test_images_are_pulled_in_the_second_of_their_push(world: Lab, tmp_path: Path) -> None:
    if shutil.which("skopeo") is None:
        pytest.skip("skopeo is not installed")
    for number in range(IMAGES):
        images, name = Layout(tmp_path / f"{number}"), f"team/app:v{number}"
        digest = images.tag("it", images.add_image(seed=f"lab {number}"))
        world.run("eu", *PUSH, f"oci:{images.folder}:it", name, capture_output=True)
        pushed = time.monotonic()
        backs = {region: tmp_path / f"{number}-{region}" for region in ("us", "ap")}
        pulls = [
            subprocess.Popen(world.command(region, *PULL, f"oci:{back}:it", name), stderr=subprocess.PIPE)
            for region, back in backs.items()
        ]
        assert time.monotonic() - pushed < 1
        for pull in pulls:
            assert pull.communicate()[1] == b""
            assert pull.returncode == 0
        for back in backs.values():
            assert tagged(back) == digest
            assert Layout(back).tree(digest) == images.tree(digest)


def kill_during(it: Lab, region: str, digest: str, after: float) -> tuple[int, bytes]:
    """eu dies while `region` pulls, so long after the first byte; the status, and what came."""
    received = bytearray()
    with client(it, region) as near, near.stream("GET", f"/v2/team/app/blobs/{digest}") as answer:
        killing = threading.Timer(after, it.nodes["eu"].kill)
        killing.start()
        try:
            for chunk in answer.iter_raw(65536):
                received += chunk
        finally:
            killing.join()
    return answer.status_code, bytes(received)


def test_a_pull_goes_on_from_another_holder_when_the_one_that_gives_dies(narrow: Lab) -> None:
    chance = random.Random(4)
    for _ in range(max(1, IMAGES // 2)):
        layer = chance.randbytes(8 * MIB)
        with client(narrow, "eu") as eu, client(narrow, "ap") as ap:
            digest = push_blob(eu, layer)
            assert ap.get(f"/v2/team/app/blobs/{digest}").content == layer
        assert kill_during(narrow, "us", digest, chance.uniform(0, 1)) == (200, layer)
        start(narrow, "eu")


def test_a_pull_outlives_the_keeper_of_the_only_holder(narrow: Lab) -> None:
    layer = random.Random(5).randbytes(8 * MIB)
    with client(narrow, "eu") as eu, client(narrow, "us") as us:
        digest = push_blob(eu, layer)
        with us.stream("GET", f"/v2/team/app/blobs/{digest}") as answer:
            chunks = answer.iter_raw(65536)
            received = bytearray(next(chunks))
            status = httpx.get(f"http://{narrow.nodes['eu'].admin_address}/meridian/v1/status", trust_env=False)
            os.kill(status.json()["keeper_pid"], signal.SIGKILL)
            for chunk in chunks:
                received += chunk
    assert (answer.status_code, digest_of(bytes(received))) == (200, digest)


def test_without_another_holder_a_pull_is_refused_and_works_once_it_is_back(narrow: Lab) -> None:
    layer = random.Random(6).randbytes(2 * MIB)
    with client(narrow, "eu") as eu:
        digest = push_blob(eu, layer)
    narrow.nodes["eu"].kill()
    with client(narrow, "us") as us:
        refused = us.get(f"/v2/team/app/blobs/{digest}")
        assert refused.status_code == 503, refused.text
        assert int(refused.headers["retry-after"]) > 0
        assert digest in refused.text
        start(narrow, "eu")
        found = eventually(lambda: (got := us.get(f"/v2/team/app/blobs/{digest}")).status_code == 200 and got)
        assert found.content == layer
