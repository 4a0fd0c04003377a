from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from consensus.names import Digest
from node.gateway.blobs import CHUNK_BYTES
from tests.node.gateway.rig import Rig, code, digest_of, image, running

UNKNOWN = "sha256:" + "0" * 64
CONTENT = bytes(range(256)) * 4


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("content", [b"", b"{}", CONTENT, b"x" * (2 * CHUNK_BYTES + 1)], ids=len)
async def test_a_blob_comes_back_as_it_was(rig: Rig, content: bytes, algorithm: str) -> None:
    digest = await rig.push_blob("team/app", content, algorithm=algorithm)
    got = await rig.client.get(f"/v2/team/app/blobs/{digest}")
    assert (got.status_code, got.content) == (200, content)
    assert got.headers["content-length"] == str(len(content))
    assert got.headers["content-type"] == "application/octet-stream"
    assert got.headers["docker-content-digest"] == digest
    assert got.headers["etag"] == f'"{digest}"'
    assert got.headers["accept-ranges"] == "bytes"
    assert "immutable" in got.headers["cache-control"]
    head = await rig.client.head(f"/v2/team/app/blobs/{digest}")
    assert (head.status_code, head.content) == (200, b"")
    assert {**head.headers, "x-request-id": ""} == {**got.headers, "x-request-id": ""}
    assert rig.records.ended[-2].bytes_out == len(content)


async def test_unknown_blobs(rig: Rig) -> None:
    digest = await rig.push_blob("a", b"only in a")
    for path in (f"/v2/a/blobs/{UNKNOWN}", f"/v2/b/blobs/{digest}"):
        for method in ("GET", "DELETE"):
            response = await rig.client.request(method, path)
            assert (response.status_code, code(response)) == (404, "BLOB_UNKNOWN")
        assert (await rig.client.head(path)).status_code == 404


@pytest.mark.parametrize("digest", ["x", "sha256:x", "md5:" + "0" * 32, "sha256:" + "A" * 64, "sha256:%2e%2e"])
async def test_digests_that_cannot_be(rig: Rig, digest: str) -> None:
    for method in ("GET", "DELETE"):
        response = await rig.client.request(method, f"/v2/a/blobs/{digest}")
        assert (response.status_code, code(response)) == (400, "DIGEST_INVALID")


@pytest.mark.parametrize(
    ("asked", "first", "stop"),
    [("bytes=0-0", 0, 1), ("bytes=5-9", 5, 10), ("bytes=1000-", 1000, 1024), ("bytes=-24", 1000, 1024)]
    + [("bytes=1000-5000", 1000, 1024), ("bytes=-5000", 0, 1024)],
)
async def test_a_part_of_a_blob(rig: Rig, asked: str, first: int, stop: int) -> None:
    digest = await rig.push_blob("a", CONTENT)
    got = await rig.client.get(f"/v2/a/blobs/{digest}", headers={"range": asked})
    assert (got.status_code, got.content) == (206, CONTENT[first:stop])
    assert got.headers["content-range"] == f"bytes {first}-{stop - 1}/1024"
    assert got.headers["content-length"] == str(stop - first)
    assert got.headers["etag"] == f'"{digest}"'


@pytest.mark.parametrize("asked", ["bytes=1-2,4-5", "lines=1-2", "bytes=x", "bytes=\u0663-\u0664"])
async def test_other_ranges_are_ignored(rig: Rig, asked: str) -> None:
    digest = await rig.push_blob("a", CONTENT)
    got = await rig.client.get(f"/v2/a/blobs/{digest}", headers={b"range": asked.encode()})
    assert (got.status_code, got.content) == (200, CONTENT)


@pytest.mark.parametrize("asked", ["bytes=1024-", "bytes=5-4", "bytes=-0"])
async def test_a_range_without_a_byte(rig: Rig, asked: str) -> None:
    digest = await rig.push_blob("a", CONTENT)
    response = await rig.client.get(f"/v2/a/blobs/{digest}", headers={"range": asked})
    assert (response.status_code, code(response)) == (416, "SIZE_INVALID")
    assert response.headers["content-range"] == "bytes */1024"


async def test_head_has_no_ranges(rig: Rig) -> None:
    digest = await rig.push_blob("a", CONTENT)
    head = await rig.client.head(f"/v2/a/blobs/{digest}", headers={"range": "bytes=5000-"})
    assert (head.status_code, head.headers["content-length"]) == (200, "1024")


async def test_a_part_only_of_what_the_client_began_with(rig: Rig) -> None:
    digest = await rig.push_blob("a", CONTENT)
    for condition, status in [(f'"{digest}"', 206), (f'"{UNKNOWN}"', 200), ("Tue, 15 Nov 1994 12:45:26 GMT", 200)]:
        headers = {"range": "bytes=0-9", "if-range": condition}
        assert (await rig.client.get(f"/v2/a/blobs/{digest}", headers=headers)).status_code == status


async def test_a_client_that_has_it_is_told_so(rig: Rig) -> None:
    digest = await rig.push_blob("a", CONTENT)
    for method in ("GET", "HEAD"):
        headers = {"if-none-match": f'"{digest}"', "range": "bytes=0-9"}
        fresh = await rig.client.request(method, f"/v2/a/blobs/{digest}", headers=headers)
        assert (fresh.status_code, fresh.content) == (304, b"")


async def test_bytes_that_are_with_another_node(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    digest = await rig.push_blob("a", CONTENT)
    await rig.blobs.delete(Digest.parse(digest))
    assert (await rig.client.head(f"/v2/a/blobs/{digest}")).status_code == 200
    response = await rig.client.get(f"/v2/a/blobs/{digest}")
    assert (response.status_code, code(response)) == (503, "UNAVAILABLE")
    assert response.json()["errors"][0]["detail"] == {"digest": digest}
    assert 1 <= int(response.headers["retry-after"]) <= 5
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


async def test_a_file_that_became_shorter_is_not_served_as_the_blob(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    digest = await rig.push_blob("a", CONTENT)
    hexadecimal = digest.partition(":")[2]
    os.truncate(rig.blobs.folder / "sha256" / hexadecimal[:2] / hexadecimal, 5)
    for headers in ({}, {"range": "bytes=0-9"}, {"range": f"bytes={len(CONTENT) - 1}-"}):
        response = await rig.client.get(f"/v2/a/blobs/{digest}", headers=headers)
        assert (response.status_code, code(response)) == (503, "UNAVAILABLE")
    assert "blob_damaged" in caplog.text
    await rig.push_blob("a", CONTENT)
    assert (await rig.client.get(f"/v2/a/blobs/{digest}")).content == CONTENT


async def test_a_deleted_blob_is_gone_from_its_repository_only(rig: Rig) -> None:
    digest = await rig.push_blob("a", CONTENT)
    await rig.push_blob("b", CONTENT)
    deleted = await rig.client.delete(f"/v2/a/blobs/{digest}")
    assert (deleted.status_code, deleted.content) == (202, b"")
    assert (await rig.client.head(f"/v2/a/blobs/{digest}")).status_code == 404
    assert (await rig.client.delete(f"/v2/a/blobs/{digest}")).status_code == 404
    assert (await rig.client.get(f"/v2/b/blobs/{digest}")).content == CONTENT
    await rig.push_blob("a", CONTENT)
    assert (await rig.client.get(f"/v2/a/blobs/{digest}")).content == CONTENT


async def test_a_blob_in_use_stays(rig: Rig) -> None:
    manifest = await rig.push_image("a", "v1", seed="used")
    layer = digest_of(b"layer used")
    refused = await rig.client.delete(f"/v2/a/blobs/{layer}")
    assert (refused.status_code, code(refused)) == (405, "DENIED")
    assert refused.json()["errors"][0]["detail"] == {"manifests": [manifest]}
    await rig.client.delete(f"/v2/a/manifests/{manifest}")
    assert (await rig.client.delete(f"/v2/a/blobs/{layer}")).status_code == 202
    gone = await rig.push_manifest("a", "v1", image(layer))
    assert (gone.status_code, code(gone)) == (400, "MANIFEST_BLOB_UNKNOWN")


async def test_deleting_can_be_turned_off(data: Path) -> None:
    async with running(data, registry={"delete_blobs": False}) as rig:
        for digest in (await rig.push_blob("a", CONTENT), UNKNOWN):
            response = await rig.client.delete(f"/v2/a/blobs/{digest}")
            assert (response.status_code, code(response)) == (405, "UNSUPPORTED")
            assert response.headers["allow"] == "GET, HEAD"
