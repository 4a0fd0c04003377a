from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.errors import InvalidName
from node.gateway import routes
from node.gateway.refusals import RouteUnknown


@pytest.mark.parametrize(
    ("path", "route", "repository", "argument"),
    [
        ("/v2/a/manifests/latest", routes.MANIFEST, "a", "latest"),
        ("/v2/a/b/c/manifests/sha256:00", routes.MANIFEST, "a/b/c", "sha256:00"),
        ("/v2/a/manifests/sha256%3a00", routes.MANIFEST, "a", "sha256:00"),
        ("/v2/a/blobs/sha256:00", routes.BLOB, "a", "sha256:00"),
        ("/v2/a/blobs/uploads/", routes.UPLOADS, "a", ""),
        ("/v2/a/blobs/uploads", routes.UPLOADS, "a", ""),
        ("/v2/a/blobs/uploads/t.o.k", routes.UPLOAD, "a", "t.o.k"),
        ("/v2/a/tags/list", routes.TAGS, "a", ""),
        ("/v2/a/referrers/sha256:00", routes.REFERRERS, "a", "sha256:00"),
        # Names may hold the words that separate them from the rest.
        ("/v2/blobs/uploads/manifests/latest", routes.MANIFEST, "blobs/uploads", "latest"),
        ("/v2/manifests/manifests/manifests", routes.MANIFEST, "manifests", "manifests"),
        ("/v2/a/manifests/blobs/uploads/", routes.UPLOADS, "a/manifests", ""),
        ("/v2/tags/list/tags/list", routes.TAGS, "tags/list", ""),
        ("/v2/a/blobs/uploads/tags/list", routes.TAGS, "a/blobs/uploads", ""),
        ("/v2/referrers/blobs/blobs/x", routes.BLOB, "referrers/blobs", "x"),
        ("/v2/_catalog/tags/list", None, "", ""),
    ],
)
def test_paths_are_read_from_their_end(path: str, route: routes.Route | None, repository: str, argument: str) -> None:
    if route is None:
        with pytest.raises(InvalidName):
            routes.match(path.encode())
        return
    match = routes.match(path.encode())
    assert match.route is route
    assert [str(part) for part in match.arguments] == [repository, argument]
    assert str(match.repository) == repository


@pytest.mark.parametrize(
    "name",
    ["A", "a/../b", "..", "%2e%2e", "a%2fb", "a%2Fb", "a%00", "a%0A", "a%0a", "a//b", "", "a/", "-a", "a.", "a__-b"]
    + ["%ff", "é", "a" * 256, "a%20b", "a+b", "a:b", "a\\b", "\uff41"],
)
def test_other_names_are_invalid(name: str) -> None:
    with pytest.raises(InvalidName) as caught:
        routes.match(f"/v2/{name}/tags/list".encode())
    assert caught.value.kind == "repository"


def test_the_longest_name_is_accepted() -> None:
    name = "a/" * 127 + "a"
    assert routes.match(f"/v2/{name}/tags/list".encode()).repository


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(["a", "blobs", "uploads", "manifests", "tags", "list", "referrers", "", "%2f", ".."])))
def test_any_path_is_a_route_or_refused(segments: list[str]) -> None:
    try:
        match = routes.match("/".join(["", "v2", *segments]).encode())
    except (InvalidName, RouteUnknown):
        return
    assert match.route.name


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_a_route_or_refused(path: bytes) -> None:
    try:
        match = routes.match(b"/v2/" + path)
    except (InvalidName, RouteUnknown):
        return
    assert match.route.name
