from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from node.gateway.gateway import MAX_BUFFERED_BYTES, Buffered
from node.gateway.refusals import Overloaded
from tests.node.gateway.rig import DOCKER, INDEX, MANIFEST, Rig, code, descriptor, digest_of, image, index, running

UNKNOWN = "sha256:" + "0" * 64


async def test_a_manifest_is_there_by_tag_and_by_digest(rig: Rig) -> None:
    layer = await rig.push_blob("team/app", b"layer")
    await rig.push_blob("team/app", b"{}")
    content = image(layer)
    digest = digest_of(content)
    pushed = await rig.push_manifest("team/app", "v1", content)
    assert pushed.status_code == 201
    assert pushed.headers["location"] == f"/v2/team/app/manifests/{digest}"
    assert pushed.headers["docker-content-digest"] == digest
    assert pushed.headers["etag"] == f'"{digest}"'
    assert "oci-subject" not in pushed.headers
    for reference in ("v1", digest):
        got = await rig.client.get(f"/v2/team/app/manifests/{reference}")
        assert (got.status_code, got.content) == (200, content)
        assert got.headers["content-type"] == MANIFEST
        assert got.headers["docker-content-digest"] == digest
        assert got.headers["etag"] == f'"{digest}"'
        assert ("immutable" in got.headers.get("cache-control", "")) == (reference == digest)
        head = await rig.client.head(f"/v2/team/app/manifests/{reference}")
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == str(len(content))
        assert {**head.headers, "x-request-id": ""} == {**got.headers, "x-request-id": ""}


async def test_bytes_are_kept_exactly(rig: Rig) -> None:
    await rig.push_blob("a", b"{}")
    content = image() + b" \n\t "
    assert (await rig.push_manifest("a", "v1", content)).status_code == 201
    assert (await rig.client.get("/v2/a/manifests/v1")).content == content


async def test_unknown_manifests(rig: Rig) -> None:
    await rig.push_image("a", "v1")
    for path in ("/v2/a/manifests/v2", f"/v2/a/manifests/{UNKNOWN}", "/v2/b/manifests/v1"):
        for method in ("GET", "DELETE"):
            response = await rig.client.request(method, path)
            assert (response.status_code, code(response)) == (404, "MANIFEST_UNKNOWN")
            assert response.json()["errors"][0]["detail"] == {"reference": path.rpartition("/")[2]}
        assert (await rig.client.head(path)).status_code == 404


@pytest.mark.parametrize(
    "reference", ["sha256:short", "md5:" + "0" * 32, "sha256:" + "A" * 64, "sha256:..%5cx", "sha256:"]
)
async def test_digests_that_cannot_be(rig: Rig, reference: str) -> None:
    for method in ("GET", "PUT", "DELETE"):
        response = await rig.client.request(method, f"/v2/a/manifests/{reference}")
        assert (response.status_code, code(response)) == (400, "DIGEST_INVALID")


@pytest.mark.parametrize("tag", [".INVALID_MANIFEST_NAME", "x" * 129, "a%20b", "%F0%9F%90%B3", ""])
async def test_tags_that_cannot_be_name_nothing_and_cannot_be_pushed(rig: Rig, tag: str) -> None:
    await rig.push_image("a", "v1")
    for method in ("GET", "DELETE"):
        response = await rig.client.request(method, f"/v2/a/manifests/{tag}")
        assert (response.status_code, code(response)) == (404, "MANIFEST_UNKNOWN")
        assert response.json()["errors"][0]["detail"]["kind"] == "tag"
    assert (await rig.client.head(f"/v2/a/manifests/{tag}")).status_code == 404
    pushed = await rig.push_manifest("a", tag, image())
    assert (pushed.status_code, code(pushed)) == (400, "MANIFEST_INVALID")


async def test_the_longest_tag(rig: Rig) -> None:
    tag = "_" + "x" * 127
    digest = await rig.push_image("a", tag)
    assert (await rig.client.head(f"/v2/a/manifests/{tag}")).headers["docker-content-digest"] == digest


async def test_a_manifest_is_known_only_where_it_was_pushed(rig: Rig) -> None:
    digest = await rig.push_image("a", "v1")
    await rig.push_image("b", "v1", seed="other")
    assert (await rig.client.get(f"/v2/b/manifests/{digest}")).status_code == 404


async def test_a_client_that_names_types_gets_only_those(rig: Rig) -> None:
    await rig.push_image("a", "v1")
    several = [("accept", DOCKER), ("accept", f"{INDEX}, {MANIFEST};q=0.5")]
    assert (await rig.client.get("/v2/a/manifests/v1", headers=several)).status_code == 200
    refused = await rig.client.get("/v2/a/manifests/v1", headers=[("accept", DOCKER), ("accept", INDEX)])
    assert (refused.status_code, code(refused)) == (404, "MANIFEST_UNKNOWN")
    assert refused.json()["errors"][0]["detail"] == {"mediaType": MANIFEST}
    assert (await rig.client.head("/v2/a/manifests/v1", headers={"accept": DOCKER})).status_code == 404
    assert (await rig.client.get("/v2/a/manifests/v1", headers={"accept": "text/html"})).status_code == 200


async def test_a_client_that_has_it_is_told_so(rig: Rig) -> None:
    digest = await rig.push_image("a", "v1")
    for reference in ("v1", digest):
        for method in ("GET", "HEAD"):
            fresh = await rig.client.request(
                method, f"/v2/a/manifests/{reference}", headers={"if-none-match": f'W/"x", "{digest}"'}
            )
            assert (fresh.status_code, fresh.content, fresh.headers["etag"]) == (304, b"", f'"{digest}"')
            assert "content-length" not in fresh.headers
    changed = await rig.client.get("/v2/a/manifests/v1", headers={"if-none-match": f'"{UNKNOWN}"'})
    assert changed.status_code == 200


async def test_a_tag_moves_and_the_old_manifest_stays(rig: Rig) -> None:
    first = await rig.push_image("a", "v1", seed="1")
    second = await rig.push_image("a", "v1", seed="2")
    assert (await rig.client.head("/v2/a/manifests/v1")).headers["docker-content-digest"] == second
    assert (await rig.client.get(f"/v2/a/manifests/{first}")).status_code == 200


async def test_pushing_the_same_again_is_no_error(rig: Rig) -> None:
    assert await rig.push_image("a", "v1") == await rig.push_image("a", "v1")


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
async def test_by_digest_with_tags(rig: Rig, algorithm: str) -> None:
    await rig.push_blob("a", b"{}")
    content = image()
    digest = digest_of(content, algorithm)
    tags = [f"1.{number}" for number in range(20)]
    query = "&".join(f"tag={tag}" for tag in [*tags, "1.0"])
    pushed = await rig.push_manifest("a", f"{digest}?{query}", content)
    assert pushed.status_code == 201
    assert pushed.headers.get_list("oci-tag", split_commas=True) == tags
    assert pushed.headers["docker-content-digest"] == digest
    for tag in tags:
        assert (await rig.client.head(f"/v2/a/manifests/{tag}")).headers["docker-content-digest"] == digest


async def test_the_answer_to_many_tags_has_few_headers(rig: Rig) -> None:
    """Python's http.client, and with it requests and urllib3, reads at most 100 lines."""
    await rig.push_blob("a", b"{}")
    content = image()
    tags = [f"{number:03}{'x' * 60}" for number in range(100)]
    pushed = await rig.push_manifest("a", f"{digest_of(content)}?" + "&".join(f"tag={tag}" for tag in tags), content)
    assert pushed.status_code == 201
    assert pushed.headers.get_list("oci-tag", split_commas=True) == tags
    assert len(pushed.headers.raw) < 50
    assert max(len(value) for _, value in pushed.headers.raw) < 4096


async def test_tag_parameters_that_cannot_be(rig: Rig) -> None:
    await rig.push_blob("a", b"{}")
    content = image()
    for reference, status, expected in [
        (f"{digest_of(content)}?tag=.bad", 400, "MANIFEST_INVALID"),
        ("v1?tag=v2", 400, "UNSUPPORTED"),
        (f"{digest_of(content)}?" + "&".join(f"tag=t{number}" for number in range(101)), 414, "UNSUPPORTED"),
        (f"{digest_of(content)}?" + "&".join(f"tag=t{number}" for number in range(500)), 414, "UNSUPPORTED"),
    ]:
        response = await rig.push_manifest("a", reference, content)
        assert (response.status_code, code(response)) == (status, expected)
    assert (await rig.client.get("/v2/a/tags/list")).json()["tags"] == []


async def test_bytes_that_are_not_what_the_digest_says(rig: Rig) -> None:
    content = image()
    response = await rig.push_manifest("a", UNKNOWN, content)
    assert (response.status_code, code(response)) == (400, "DIGEST_INVALID")
    assert response.json()["errors"][0]["detail"] == {"expected": UNKNOWN, "actual": digest_of(content)}


async def test_everything_that_is_missing_is_named(rig: Rig) -> None:
    here = await rig.push_blob("a", b"here")
    missing = [digest_of(text) for text in (b"1", b"2")]
    response = await rig.push_manifest("a", "v1", image(here, *missing))
    assert (response.status_code, code(response)) == (400, "MANIFEST_BLOB_UNKNOWN")
    assert [error["detail"]["digest"] for error in response.json()["errors"]] == [digest_of(b"{}"), *missing]
    child = await rig.push_manifest("a", "v1", index(UNKNOWN), media_type=INDEX)
    assert (child.status_code, code(child)) == (400, "MANIFEST_BLOB_UNKNOWN")
    assert child.json()["errors"][0]["detail"] == {"digest": UNKNOWN}


async def test_another_repositorys_blobs_are_missing_too(rig: Rig) -> None:
    await rig.push_image("a", "v1", seed="s")
    content = (await rig.client.get("/v2/a/manifests/v1")).content
    response = await rig.push_manifest("b", "v1", content)
    assert (response.status_code, code(response)) == (400, "MANIFEST_BLOB_UNKNOWN")


async def test_a_sparse_index_where_it_is_allowed(data: Path) -> None:
    async with running(data, registry={"sparse_indexes": True}) as rig:
        response = await rig.push_manifest("a", "v1", index(UNKNOWN), media_type=INDEX)
        assert response.status_code == 201


async def test_an_index_of_images(rig: Rig) -> None:
    children = [await rig.push_image("a", "*", seed=seed) for seed in "12"]
    content = index(*children)
    assert (await rig.push_manifest("a", "all", content, media_type=INDEX)).status_code == 201
    assert (await rig.client.get("/v2/a/manifests/all")).headers["content-type"] == INDEX


@pytest.mark.parametrize("sparse", [False, True])
async def test_children_of_an_unknown_type_may_have_been_pushed_either_way(data: Path, sparse: bool) -> None:
    """Clients push what they do not know as a blob (oras), or as a manifest."""
    async with running(data, registry={"sparse_indexes": sparse}) as rig:
        as_blob = await rig.push_blob("a", b"of a kind")
        await rig.push_manifest("a", "kind", b"of another kind", media_type="application/vnd.x.y")
        kind = {"mediaType": "application/vnd.x.y", "size": 9}
        children = [{**kind, "digest": digest} for digest in (as_blob, digest_of(b"of another kind"))]
        pushed = await rig.push_manifest("a", "v1", index(manifests=children), media_type=INDEX)
        assert pushed.status_code == 201
        deleted = await rig.client.delete(f"/v2/a/blobs/{as_blob}")
        assert (deleted.status_code, code(deleted)) == (405, "DENIED")


async def test_children_that_nobody_has_or_that_have_to_be_manifests_are_missing(rig: Rig) -> None:
    blob = await rig.push_blob("a", b"no manifest")
    for media_type, digest in ((MANIFEST, blob), (INDEX, blob), ("application/vnd.x.y", UNKNOWN)):
        content = index(manifests=[{"mediaType": media_type, "digest": digest, "size": 1}])
        refused = await rig.push_manifest("a", "v1", content, media_type=INDEX)
        assert (refused.status_code, code(refused)) == (400, "MANIFEST_BLOB_UNKNOWN")
        assert refused.json()["errors"][0]["detail"] == {"digest": digest}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not json",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}).encode(),
        image(layers=[{"mediaType": "a/b", "digest": "sha256:x", "size": 1}]),
        image(layers=[{"mediaType": "a/b", "digest": UNKNOWN, "size": -1}]),
        image(layers=[{"mediaType": "a/b", "digest": UNKNOWN, "size": 1}] * 1001),
        image(manifests=[]),
        b'{"schemaVersion":2,"schemaVersion":2}',
        image(annotations={"a": "x" * 70_000}, subject=descriptor(b"of another", MANIFEST)),
    ],
    ids=range(12),
)
async def test_manifests_that_no_registry_should_keep(rig: Rig, content: bytes) -> None:
    response = await rig.push_manifest("a", "v1", content)
    assert (response.status_code, code(response)) == (400, "MANIFEST_INVALID")


async def test_without_a_content_type_the_manifest_says_what_it_is(rig: Rig) -> None:
    await rig.push_blob("a", b"{}")
    assert (await rig.client.put("/v2/a/manifests/v1", content=image())).status_code == 201
    assert (await rig.client.head("/v2/a/manifests/v1")).headers["content-type"] == MANIFEST
    for content in (b"", b"{}", b"[" * 100_000, b'{"mediaType": 7}', b'{"mediaType":"nonsense"}', b"\xff"):
        response = await rig.client.put("/v2/a/manifests/v1", content=content)
        assert (response.status_code, code(response)) == (400, "MANIFEST_INVALID")


async def test_parameters_of_the_content_type_are_dropped(rig: Rig) -> None:
    await rig.push_blob("a", b"{}")
    await rig.push_manifest("a", "v1", image(), media_type=f"{MANIFEST}; charset=utf-8")
    assert (await rig.client.head("/v2/a/manifests/v1")).headers["content-type"] == MANIFEST
    response = await rig.push_manifest("a", "v1", image(), media_type="no type")
    assert (response.status_code, code(response)) == (400, "MANIFEST_INVALID")


async def test_a_manifest_pushed_again_as_something_else_stays_what_it_is(rig: Rig) -> None:
    await rig.push_image("a", "v1")
    content = (await rig.client.get("/v2/a/manifests/v1")).content
    for media_type in ("application/json", "application/octet-stream", DOCKER):
        response = await rig.push_manifest("a", "v1", content, media_type=media_type)
        assert (response.status_code, code(response)) == (400, "MANIFEST_INVALID")
    assert (await rig.push_manifest("a", "v2", content, media_type=MANIFEST.upper())).status_code == 201
    for tag in ("v1", "v2"):
        got = await rig.client.get(f"/v2/a/manifests/{tag}", headers={"accept": MANIFEST})
        assert (got.status_code, got.headers["content-type"]) == (200, MANIFEST)


async def test_any_media_type_may_be_stored_and_none_runs_in_a_browser(rig: Rig) -> None:
    content = b"<script>alert(1)</script>"
    assert (await rig.push_manifest("a", "v1", content, media_type="text/html")).status_code == 201
    response = await rig.client.get("/v2/a/manifests/v1", headers={"accept": "text/html"})
    assert (response.content, response.headers["content-type"]) == (content, "text/html")
    assert response.headers["content-security-policy"] == "default-src 'none'; sandbox"
    assert response.headers["x-content-type-options"] == "nosniff"


async def test_a_manifest_over_the_bound_is_refused_before_it_is_read(data: Path) -> None:
    async with running(data, limits={"manifest_bytes": 1024}) as rig:
        read = 0

        async def endless() -> AsyncIterator[bytes]:
            nonlocal read
            while True:
                read += 512
                yield b"x" * 512

        announced = await rig.push_manifest("a", "v1", b"x" * 1025)
        assert (announced.status_code, code(announced)) == (413, "SIZE_INVALID")
        assert announced.json()["errors"][0]["detail"] == {"limit": 1024}
        unannounced = await rig.client.put("/v2/a/manifests/v1", content=endless())
        assert (unannounced.status_code, code(unannounced)) == (413, "SIZE_INVALID")
        assert read <= 4096


async def test_a_manifest_of_the_largest_size(rig: Rig) -> None:
    await rig.push_blob("a", b"{}")
    content = image(padding="")
    content = image(padding="x" * (4 * 1024 * 1024 - len(content)))
    assert len(content) == 4 * 1024 * 1024
    assert (await rig.push_manifest("a", "big", content)).status_code == 201
    assert (await rig.client.get("/v2/a/manifests/big")).content == content
    assert (await rig.push_manifest("a", "big", content + b" ")).status_code == 413


def test_all_manifests_under_way_share_one_bound() -> None:
    buffered = Buffered()
    buffered.take(MAX_BUFFERED_BYTES)
    with pytest.raises(Overloaded):
        buffered.take(1)
    buffered.release(1)
    buffered.take(1)


async def test_a_subject_is_acknowledged(rig: Rig) -> None:
    await rig.push_blob("a", b"{}")
    content = image(subject=descriptor(b"not here", MANIFEST))
    response = await rig.push_manifest("a", "v1", content)
    assert (response.status_code, response.headers["oci-subject"]) == (201, digest_of(b"not here"))


# Deleting


async def test_a_deleted_tag_leaves_its_manifest(rig: Rig) -> None:
    digest = await rig.push_image("a", "v1")
    deleted = await rig.client.delete("/v2/a/manifests/v1")
    assert (deleted.status_code, deleted.content) == (202, b"")
    assert (await rig.client.get("/v2/a/manifests/v1")).status_code == 404
    assert (await rig.client.get(f"/v2/a/manifests/{digest}")).status_code == 200


async def test_a_deleted_manifest_takes_its_tags_along(rig: Rig) -> None:
    digest = await rig.push_image("a", "v1")
    await rig.push_image("a", "v2")
    other = await rig.push_image("a", "v3", seed="other")
    assert (await rig.client.delete(f"/v2/a/manifests/{digest}")).status_code == 202
    assert (await rig.client.get("/v2/a/tags/list")).json()["tags"] == ["v3"]
    assert (await rig.client.get(f"/v2/a/manifests/{digest}")).status_code == 404
    assert (await rig.client.get(f"/v2/a/manifests/{other}")).status_code == 200
    assert (await rig.client.delete(f"/v2/a/manifests/{digest}")).status_code == 404


@pytest.mark.parametrize(
    ("condition", "status"),
    [
        ({"if-match": '"{digest}"'}, 202),
        ({"if-match": "*"}, 202),
        ({"if-match": '"{other}", "{digest}"'}, 202),
        ({"if-none-match": '"{other}"'}, 202),
        ({"if-match": '"{other}"'}, 412),
        ({"if-none-match": "*"}, 412),
        ({"if-match": "nonsense"}, 400),
    ],
)
async def test_a_tag_is_deleted_if_it_is_as_expected(rig: Rig, condition: dict[str, str], status: int) -> None:
    digest = await rig.push_image("a", "v1")
    headers = {name: value.format(digest=digest, other=UNKNOWN) for name, value in condition.items()}
    response = await rig.client.delete("/v2/a/manifests/v1", headers=headers)
    assert response.status_code == status
    if status == 412:
        assert response.headers["etag"] == f'"{digest}"'
    assert (await rig.client.head("/v2/a/manifests/v1")).status_code == (404 if status == 202 else 200)


@pytest.mark.parametrize(("key", "by_digest"), [("delete_tags", False), ("delete_manifests", True)])
async def test_deleting_can_be_turned_off(data: Path, key: str, by_digest: bool) -> None:
    async with running(data, registry={key: False}) as rig:
        digest = await rig.push_image("a", "v1")
        for reference, status in ((digest, 405 if by_digest else 202), ("v2", 404 if by_digest else 405)):
            response = await rig.client.delete(f"/v2/a/manifests/{reference}")
            assert response.status_code == status
            if status == 405:
                assert (code(response), response.headers["allow"]) == ("UNSUPPORTED", "GET, HEAD, PUT")
