from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.node.gateway.rig import Rig, code, digest_of, image, running

TAGS = ["1.0", "1.1", "A", "_x", "a", "b"]  # in ASCII order


async def tagged(rig: Rig, repository: str = "a") -> None:
    await rig.push_blob(repository, b"{}")
    content = image()
    query = "&".join(f"tag={tag}" for tag in reversed(TAGS))
    assert (await rig.push_manifest(repository, f"{digest_of(content)}?{query}", content)).status_code == 201


async def pages(rig: Rig, path: str, key: str) -> list[list[str]]:
    """Follows the links to the end."""
    found = []
    response = await rig.client.get(path)
    while True:
        assert response.status_code == 200
        found.append(response.json()[key])
        if "link" not in response.headers:
            return found
        assert response.headers["link"].endswith('>; rel="next"')
        response = await rig.client.get(response.links["next"]["url"])


async def test_all_tags_in_order(rig: Rig) -> None:
    await tagged(rig)
    response = await rig.client.get("/v2/a/tags/list")
    assert (response.status_code, response.json()) == (200, {"name": "a", "tags": TAGS})
    assert response.headers["content-type"] == "application/json"
    assert "link" not in response.headers
    head = await rig.client.head("/v2/a/tags/list")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(response.content))


@pytest.mark.parametrize("size", range(1, 8))
async def test_pages(rig: Rig, size: int) -> None:
    await tagged(rig, "team/app")
    expected = [TAGS[start : start + size] for start in range(0, len(TAGS), size)]
    assert await pages(rig, f"/v2/team/app/tags/list?n={size}", "tags") == expected


async def test_none_at_all(rig: Rig) -> None:
    await tagged(rig)
    response = await rig.client.get("/v2/a/tags/list?n=0")
    assert (response.json()["tags"], "link" in response.headers) == ([], False)
    assert (await rig.client.get("/v2/b/tags/list?n=0")).status_code == 404


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("last=A", ["_x", "a", "b"]),
        ("last=A&n=1", ["_x"]),
        ("last=9", ["A", "_x", "a", "b"]),
        ("last=%00", TAGS),
        ("last=", TAGS),
        ("last=%F0%9F%90%B3", []),
        ("last=zzz", []),
        ("n=2&n=2", ["1.0", "1.1"]),
    ],
)
async def test_what_follows(rig: Rig, query: str, expected: list[str]) -> None:
    await tagged(rig)
    assert (await rig.client.get(f"/v2/a/tags/list?{query}")).json()["tags"] == expected


async def test_a_page_is_no_larger_than_the_bound(data: Path) -> None:
    async with running(data, limits={"page_size": 2}) as rig:
        await tagged(rig)
        for path in (
            "/v2/a/tags/list",
            "/v2/a/tags/list?n=5",
            f"/v2/a/tags/list?n={2**63 - 1}",
            f"/v2/a/tags/list?n={10**400}",
        ):
            assert await pages(rig, path, "tags") == [TAGS[:2], TAGS[2:4], TAGS[4:]]


@pytest.mark.parametrize("path", ["/v2/a/tags/list", "/v2/_catalog", "/v2/a/referrers/sha256:" + "0" * 64])
@pytest.mark.parametrize(
    "query",
    ["n=", "n=-1", "n=x", "n=1_0", "n=%2B1", "n=+1", "n=%201", "n=1.0", "n=%EF%BC%91", "n=1&n=2"]
    + ["last=" + "x" * 513, "last=%ff", "n=%ed%a0%80", "n=%c3%28"],
)
async def test_parameters_that_do_not_parse(rig: Rig, path: str, query: str) -> None:
    await tagged(rig)
    response = await rig.client.get(f"{path}?{query}")
    assert (response.status_code, code(response)) == (400, "UNSUPPORTED")


async def test_too_many_parameters(rig: Rig) -> None:
    await tagged(rig)
    assert (await rig.client.get("/v2/a/tags/list?" + "&".join(["x"] * 128))).status_code == 200
    assert (await rig.client.get("/v2/a/tags/list?" + "&".join(["x"] * 129))).status_code == 414


async def test_an_unknown_repository(rig: Rig) -> None:
    response = await rig.client.get("/v2/nowhere/at/all/tags/list")
    assert (response.status_code, code(response)) == (404, "NAME_UNKNOWN")


async def test_a_repository_arises_at_its_first_push(rig: Rig) -> None:
    await rig.push_blob("deep/er/and/deep/er", b"{}")
    assert (await rig.client.get("/v2/deep/er/and/deep/er/tags/list")).json()["tags"] == []


@pytest.mark.parametrize("name", ["A", "a%2fb", "a/%2e%2e/b", "a%00", "a%0A", "x" * 256])
async def test_names_that_cannot_be(rig: Rig, name: str) -> None:
    for path in (f"/v2/{name}/tags/list", f"/v2/{name}/manifests/x", f"/v2/{name}/blobs/uploads/"):
        # httpx would tidy such a path up: it is put into the request as it is.
        request = httpx.Request("GET", "http://registry/")
        request.url = httpx.URL(scheme="http", host="registry", raw_path=path.encode())
        response = await rig.client.send(request)
        assert (response.status_code, code(response)) == (400, "NAME_INVALID")


async def test_the_catalog(rig: Rig) -> None:
    assert (await rig.client.get("/v2/_catalog")).json() == {"repositories": []}
    names = ["a", "a/b", "b-c", "z"]
    for name in reversed(names):
        await rig.push_blob(name, b"{}")
    assert (await rig.client.get("/v2/_catalog")).json() == {"repositories": names}
    assert await pages(rig, "/v2/_catalog?n=3", "repositories") == [names[:3], names[3:]]
    assert (await rig.client.get("/v2/_catalog?last=a/b&n=1")).json() == {"repositories": ["b-c"]}
    assert (await rig.client.get("/v2/_catalog?n=0")).json() == {"repositories": []}
