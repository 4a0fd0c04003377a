"""A whole node on a disk that fails: clients get an OCI error, nothing half-made shows, nothing is lost."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import httpx
import pytest

from chaos import content
from chaos.content import Described
from chaos.faults import Fault
from chaos.mount import LossyMount, fuse_missing
from chaos.region import RegionFolders, RegionNode
from consensus.clock import monotonic

pytestmark = pytest.mark.skipif(bool(fuse_missing()), reason=f"FUSE: {fuse_missing()}")

REPOSITORY = "library/faulty"


class Disk:
    """A node on a lossy file system, and a client of it."""

    def __init__(self, mount: LossyMount, node: RegionNode) -> None:
        self.mount = mount
        self.node = node
        self.chance = Random(1)

    async def ask(self, method: str, url: str, body: bytes = b"", **headers: str) -> httpx.Response:
        async with httpx.AsyncClient(base_url=f"http://{self.node.address}", timeout=30, trust_env=False) as client:
            return await client.request(method, url, content=body, headers=headers)

    async def push_blob(self, data: bytes) -> httpx.Response:
        return await self.ask("POST", f"/v2/{REPOSITORY}/blobs/uploads/?digest={content.digest_of(data)}", data)

    async def push_manifest(self, blob: bytes, tag: str) -> httpx.Response:
        manifest = content.image([Described(content.digest_of(blob), len(blob))], self.chance)
        headers = {"content-type": manifest.media_type}
        return await self.ask("PUT", f"/v2/{REPOSITORY}/manifests/{tag}", manifest.content, **headers)

    async def push_until(self, blob: bytes, tag: str, status: int, seconds: float = 20.0) -> httpx.Response:
        """Repeats the push of a manifest until it is answered so."""
        deadline = monotonic() + seconds
        while (response := await self.push_manifest(blob, tag)).status_code != status:
            assert monotonic() < deadline, response.text
        return response

    async def get(self, what: str) -> httpx.Response:
        return await self.ask("GET", f"/v2/{REPOSITORY}/{what}", accept=content.ANY_MANIFEST)

    async def fail_power(self) -> None:
        self.node.kill()
        self.mount.fail([])
        self.mount.crash()
        self.node.start()
        await self.node.wait_ready()


@pytest.fixture
async def disk(tmp_path: Path) -> AsyncIterator[Disk]:
    with LossyMount(tmp_path / "disk") as mount:
        node = RegionNode(RegionFolders(mount.folder / "data", tmp_path / "work"))
        node.start()
        try:
            await node.wait_ready()
            yield Disk(mount, node)
        finally:
            node.kill()


def _assert_oci_error(response: httpx.Response, status: int) -> None:
    assert response.status_code == status, response.text
    (error,) = json.loads(response.content)["errors"]
    assert error["code"]
    assert error["message"]


async def test_full_disk(disk: Disk) -> None:
    kept, refused = b"kept" * 1000, b"refused" * 1000
    assert (await disk.push_blob(kept)).status_code == 201
    disk.mount.fail([Fault(operation, "ENOSPC") for operation in ("write", "create", "mkdir")])
    _assert_oci_error(await disk.push_blob(refused), 507)
    _assert_oci_error(await disk.push_manifest(kept, "full"), 507)
    assert (await disk.get(f"blobs/{content.digest_of(kept)}")).content == kept
    disk.mount.fail([])
    assert (await disk.get("manifests/full")).status_code == 404
    assert (await disk.get(f"blobs/{content.digest_of(refused)}")).status_code == 404
    assert (await disk.push_manifest(kept, "roomy")).status_code == 201
    await disk.fail_power()
    assert (await disk.get("manifests/full")).status_code == 404
    assert (await disk.get("manifests/roomy")).status_code == 200
    assert (await disk.get(f"blobs/{content.digest_of(kept)}")).content == kept


async def test_free_space_watermark(disk: Disk) -> None:
    kept = b"kept" * 1000
    assert (await disk.push_blob(kept)).status_code == 201
    disk.mount.report_free(1024 * 1024)
    _assert_oci_error(await disk.push_blob(b"refused" * 1000), 507)
    assert (await disk.get(f"blobs/{content.digest_of(kept)}")).content == kept
    disk.mount.report_free(1 << 40)
    assert (await disk.push_blob(b"refused" * 1000)).status_code == 201


async def test_blob_that_cannot_be_synced(disk: Disk) -> None:
    data = b"data" * 1000
    for operation, match in (("fsync", "uploads"), ("fsyncdir", "blobs"), ("write", "uploads"), ("rename", "blobs")):
        disk.mount.fail([Fault(operation, "EIO", match=match)])
        _assert_oci_error(await disk.push_blob(data), 503)
        assert (await disk.get(f"blobs/{content.digest_of(data)}")).status_code == 404
    disk.mount.fail([])
    assert (await disk.push_blob(data)).status_code == 201
    await disk.fail_power()
    assert (await disk.get(f"blobs/{content.digest_of(data)}")).content == data


async def test_a_log_that_cannot_be_synced_stops_the_keeper_and_acknowledges_nothing(disk: Disk) -> None:
    data = b"data" * 1000
    assert (await disk.push_blob(data)).status_code == 201
    before = set(disk.node.pids())
    disk.mount.fail([Fault("fsync", "EIO", match="/wal/")])
    _assert_oci_error(await disk.push_manifest(data, "unsynced"), 503)
    assert (await disk.get(f"blobs/{content.digest_of(data)}")).content == data, "reading goes on"
    disk.mount.fail([])
    await disk.push_until(data, "synced", 201)
    assert before - set(disk.node.pids()), "the keeper went on with a log that had failed"
    await disk.fail_power()
    assert (await disk.get("manifests/synced")).status_code == 200
    assert (await disk.get(f"blobs/{content.digest_of(data)}")).content == data
