from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.node.gateway.rig import INDEX, MANIFEST, Rig, code, descriptor, digest_of, image, index, running

SUBJECT = b"what is referred to"
PATH = f"/v2/a/referrers/{digest_of(SUBJECT)}"
SBOM, SIGNATURE = "application/spdx+json", "application/vnd.example.signature"


async def attach(rig: Rig, number: int, artifact_type: str, **fields: Any) -> str:
    """A manifest that refers to SUBJECT; its digest."""
    await rig.push_blob("a", b"{}")
    content = image(subject=descriptor(SUBJECT, MANIFEST), artifactType=artifact_type, number=number, **fields)
    assert (await rig.push_manifest("a", digest_of(content), content)).status_code == 201
    return digest_of(content)


async def pages(rig: Rig, path: str) -> list[list[dict[str, Any]]]:
    """Follows the links to the end."""
    found = []
    response = await rig.client.get(path)
    while True:
        assert response.status_code == 200
        assert response.headers["content-type"] == INDEX
        body = response.json()
        assert (body["schemaVersion"], body["mediaType"]) == (2, INDEX)
        found.append(body["manifests"])
        if "link" not in response.headers:
            return found
        response = await rig.client.get(response.links["next"]["url"])


@pytest.mark.parametrize("digest", [digest_of(SUBJECT), "sha256:" + "0" * 64, digest_of(SUBJECT, "sha512")])
async def test_nothing_refers_to_it(rig: Rig, digest: str) -> None:
    assert await pages(rig, f"/v2/nowhere/referrers/{digest}") == [[]]
    await rig.push_image("a", "v1")
    assert await pages(rig, f"/v2/a/referrers/{digest}") == [[]]
    assert (await rig.client.head(f"/v2/a/referrers/{digest}")).status_code == 200


async def test_a_digest_that_cannot_be(rig: Rig) -> None:
    for digest in ("latest", "sha256:x", "md5:" + "0" * 32):
        response = await rig.client.get(f"/v2/a/referrers/{digest}")
        assert (response.status_code, code(response)) == (400, "DIGEST_INVALID")


async def test_descriptors(rig: Rig) -> None:
    annotations = {"org.example": "<é>"}
    attached = await attach(rig, 1, SBOM, annotations=annotations)
    size = int((await rig.client.head(f"/v2/a/manifests/{attached}")).headers["content-length"])
    assert await pages(rig, PATH) == [
        [{"mediaType": MANIFEST, "digest": attached, "size": size, "artifactType": SBOM, "annotations": annotations}]
    ]
    content = index(subject=descriptor(SUBJECT, MANIFEST))
    await rig.push_manifest("a", digest_of(content), content, media_type=INDEX)
    plain = {"mediaType": INDEX, "digest": digest_of(content), "size": len(content)}
    assert plain in (await pages(rig, PATH))[0]


async def test_only_of_one_type(rig: Rig) -> None:
    sboms = {await attach(rig, number, SBOM) for number in range(3)}
    signature = await attach(rig, 9, SIGNATURE)
    for encoded in ("application/spdx%2Bjson", "application/spdx+json"):
        response = await rig.client.get(f"{PATH}?artifactType={encoded}")
        assert {found["digest"] for found in response.json()["manifests"]} == sboms
        assert response.headers["oci-filters-applied"] == "artifactType"
    assert [found["digest"] for found in (await pages(rig, f"{PATH}?artifactType={SIGNATURE}"))[0]] == [signature]
    assert await pages(rig, f"{PATH}?artifactType=application/x") == [[]]
    unfiltered = await rig.client.get(f"{PATH}?artifactType=")
    assert len(unfiltered.json()["manifests"]) == 4
    assert "oci-filters-applied" not in unfiltered.headers


@pytest.mark.parametrize(("size", "lengths"), [(1, [1] * 5), (2, [2, 2, 1]), (5, [5]), (9, [5])])
async def test_pages_with_and_without_a_filter(rig: Rig, size: int, lengths: list[int]) -> None:
    sboms = {await attach(rig, number, SBOM) for number in range(5)}
    signatures = {await attach(rig, number, SIGNATURE) for number in range(5)}
    filtered = await pages(rig, f"{PATH}?n={size}&artifactType={SBOM}")
    assert [len(page) for page in filtered] == lengths
    assert {found["digest"] for page in filtered for found in page} == sboms
    everything = await pages(rig, f"{PATH}?n={size}")
    assert {found["digest"] for page in everything for found in page} == sboms | signatures


async def test_no_page_is_larger_than_clients_read(rig: Rig) -> None:
    annotations = {"a": "x" * 45_000}
    attached = {await attach(rig, number, SBOM, annotations=annotations) for number in range(96)}
    found = await pages(rig, PATH)
    assert [len(page) for page in found] == [92, 4]
    assert {entry["digest"] for page in found for entry in page} == attached
    assert 4 * 1024 * 1024 - 45_000 < len((await rig.client.get(PATH)).content) <= 4 * 1024 * 1024


async def test_more_than_one_batch_and_the_bound_of_a_page(data: Path) -> None:
    async with running(data, limits={"page_size": 60}) as rig:
        attached = {await attach(rig, number, SBOM) for number in range(61)}
        found = await pages(rig, PATH)
        assert [len(page) for page in found] == [60, 1]
        assert {entry["digest"] for page in found for entry in page} == attached


async def test_none_at_all(rig: Rig) -> None:
    await attach(rig, 1, SBOM)
    assert await pages(rig, f"{PATH}?n=0") == [[]]


async def test_what_to_go_on_from_has_to_be_a_digest(rig: Rig) -> None:
    response = await rig.client.get(f"{PATH}?last=latest")
    assert (response.status_code, code(response)) == (400, "DIGEST_INVALID")


async def test_a_deleted_referrer_is_gone(rig: Rig) -> None:
    attached = await attach(rig, 1, SBOM)
    await rig.client.delete(f"/v2/a/manifests/{attached}")
    assert await pages(rig, PATH) == [[]]
