"""If-Match and If-None-Match on pushes: tags that several clients move."""

from __future__ import annotations

import asyncio

import pytest

from tests.node.gateway.rig import Rig, code, digest_of, image

UNKNOWN = "sha256:" + "0" * 64


async def _image(rig: Rig, seed: str) -> bytes:
    layer = await rig.push_blob("a", seed.encode())
    await rig.push_blob("a", b"{}")
    return image(layer)


async def test_only_a_tag_that_does_not_exist_is_made(rig: Rig) -> None:
    one, two = await _image(rig, "1"), await _image(rig, "2")
    assert (await rig.push_manifest("a", "v1", one, if_none_match="*")).status_code == 201
    again = await rig.push_manifest("a", "v1", one, if_none_match="*")
    assert again.status_code == 201  # it is what this client wanted, and it may not have seen the first answer
    refused = await rig.push_manifest("a", "v1", two, if_none_match="*")
    assert (refused.status_code, code(refused)) == (412, "DENIED")
    assert refused.headers["etag"] == f'"{digest_of(one)}"'
    assert refused.json()["errors"][0]["detail"] == {"current": digest_of(one)}
    assert (await rig.client.head("/v2/a/manifests/v1")).headers["etag"] == f'"{digest_of(one)}"'


async def test_only_the_expected_manifest_is_replaced(rig: Rig) -> None:
    one, two, three = [await _image(rig, seed) for seed in "123"]
    absent = await rig.push_manifest("a", "v1", two, if_match=f'"{digest_of(one)}"')
    assert (absent.status_code, absent.json()["errors"][0]["detail"]) == (412, {"current": None})
    assert "etag" not in absent.headers
    await rig.push_manifest("a", "v1", one)
    assert (await rig.push_manifest("a", "v1", two, if_match=f'"{digest_of(one)}"')).status_code == 201
    refused = await rig.push_manifest("a", "v1", three, if_match=f'"{digest_of(one)}"')
    assert (refused.status_code, refused.headers["etag"]) == (412, f'"{digest_of(two)}"')


async def test_any_of_several_or_any_at_all(rig: Rig) -> None:
    one, two, three = [await _image(rig, seed) for seed in "123"]
    assert (await rig.push_manifest("a", "v1", one, if_match="*")).status_code == 412
    await rig.push_manifest("a", "v1", one)
    assert (await rig.push_manifest("a", "v1", two, if_match="*")).status_code == 201
    either = f'"{digest_of(one)}", "{digest_of(three)}"'
    assert (await rig.push_manifest("a", "v1", three, if_match=either)).status_code == 412
    assert (await rig.push_manifest("a", "v1", one, if_none_match=either)).status_code == 201
    assert (await rig.push_manifest("a", "v1", two, if_none_match=either)).status_code == 412
    assert (await rig.push_manifest("a", "v1", two, if_match=f'W/"{digest_of(one)}"')).status_code == 412


async def test_a_malformed_condition_is_refused(rig: Rig) -> None:
    response = await rig.push_manifest("a", "v1", b"", if_match="latest")
    assert (response.status_code, code(response)) == (400, "UNSUPPORTED")
    several = await rig.push_manifest("a", f"{UNKNOWN}?tag=a&tag=b", b"", if_match="*")
    assert (several.status_code, code(several)) == (400, "UNSUPPORTED")


async def test_a_condition_means_nothing_without_a_tag(rig: Rig) -> None:
    content = await _image(rig, "1")
    assert (await rig.push_manifest("a", digest_of(content), content, if_match="*")).status_code == 201


@pytest.mark.parametrize("excluding", [{"if-match": f'"{UNKNOWN}"'}, {"if-none-match": "*"}])
async def test_what_its_condition_excludes_is_not_deleted(rig: Rig, excluding: dict[str, str]) -> None:
    digest, blob = await rig.push_image("a", "v1"), await rig.push_blob("a", b"unused")
    for path in (f"/v2/a/manifests/{digest}", "/v2/a/manifests/v1", f"/v2/a/blobs/{blob}"):
        refused = await rig.client.delete(path, headers=excluding)
        assert (refused.status_code, code(refused)) == (412, "DENIED")
        etag = refused.headers["etag"]
        assert refused.json()["errors"][0]["detail"] == {"current": etag.strip('"')}
        assert (await rig.client.head(path)).headers["etag"] == etag
        assert (await rig.client.delete(path, headers={"if-match": etag})).status_code == 202
        await rig.push_image("a", "v1")


async def test_what_is_absent_is_not_found_whatever_the_condition(rig: Rig) -> None:
    await rig.push_image("a", "v1")
    for path in (f"/v2/a/manifests/{UNKNOWN}", f"/v2/a/blobs/{UNKNOWN}"):
        for method in ("GET", "DELETE"):
            answer = await rig.client.request(method, path, headers={"if-match": f'"{digest_of(b"")}"'})
            assert answer.status_code == 404


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_reads_that_expect_something_else_are_refused(rig: Rig, method: str) -> None:
    digest, blob = await rig.push_image("a", "v1"), await rig.push_blob("a", b"blob")
    for path, current in (("/v2/a/manifests/v1", digest), (f"/v2/a/blobs/{blob}", blob)):
        for expected, status in ((f'"{UNKNOWN}"', 412), (f'W/"{current}"', 412), (f'"{current}"', 200), ("*", 200)):
            answer = await rig.client.request(method, path, headers={"if-match": expected})
            assert (answer.status_code, answer.headers["etag"]) == (status, f'"{current}"')


async def test_one_of_many_that_race_wins(rig: Rig) -> None:
    contents = [await _image(rig, str(number)) for number in range(8)]
    made = await asyncio.gather(*(rig.push_manifest("a", "race", it, if_none_match="*") for it in contents))
    assert sorted(response.status_code for response in made) == [201] + [412] * 7
    winner = next(response for response in made if response.status_code == 201).headers["docker-content-digest"]
    others = [it for it in contents if digest_of(it) != winner]
    moved = await asyncio.gather(*(rig.push_manifest("a", "race", it, if_match=f'"{winner}"') for it in others))
    assert sorted(response.status_code for response in moved) == [201] + [412] * 6


async def test_everybody_who_accepts_any_digest_succeeds_in_a_race(rig: Rig) -> None:
    contents = [await _image(rig, str(number)) for number in range(4)]
    await rig.push_manifest("a", "race", contents[0])
    made = await asyncio.gather(*(rig.push_manifest("a", "race", it, if_match="*") for it in contents))
    assert {response.status_code for response in made} == {201}
