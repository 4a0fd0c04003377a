"""Whatever is asked, the answer is one that the client has caused: never a 5xx, and errors always in the OCI form."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.node.gateway.rig import DOCKER, INDEX, MANIFEST, Rig, digest_of, image, running

ZEROS = "sha256:" + "0" * 64
NAMES = [
    "a",
    "a/b",
    "A",
    "..",
    "%2e%2e",
    "a%2fb",
    "a%00",
    "%ff",
    "%F0%9F%90%B3",
    "",
    "x" * 300,
    "blobs",
    "uploads",
    "-",
]
REFERENCES = ["v1", ZEROS, digest_of(b"{}"), digest_of(image()), "sha256:x", ".", "x" * 200, "%00", "", "sha512:0", ":"]
TAILS = [
    "manifests/{}",
    "blobs/{}",
    "blobs/uploads/{}",
    "blobs/uploads/",
    "tags/list",
    "referrers/{}",
    "{}",
    "_catalog",
]
NUMBERS = ["0", "1", "-1", "9" * 18, "9" * 40, "1_0", "x", "%EF%BC%91", ""]
VALUES = [*NUMBERS, *REFERENCES, "md5", "sha512", "a", MANIFEST, "%ff", "%"]
KEYS = ["n", "last", "digest", "mount", "from", "tag", "artifactType", "digest-algorithm", "ns", "%ff", ""]
TYPES = [MANIFEST, INDEX, DOCKER, "text/html", "nonsense", "", "*/*", "*/*;q=0", f"{MANIFEST};q=0", ",;=", "é"]
TAGS = ["*", f'"{ZEROS}"', f'W/"{ZEROS}"', '"x"', "x", "", ",", f'"{digest_of(image())}"']
SPANS = ["0-0", "0-1", "5-4", "bytes 0-1/2", "-", "\u0660-\u0664", "1_0-2", "9" * 18 + "-" + "9" * 18, "9" * 30 + "-1"]
RANGES = ["bytes=0-0", "bytes=-1", "bytes=5-", "bytes=9-1", "bytes=0-1,2-3", "x", "bytes=" + "9" * 40 + "-"]
HEADERS = {
    "accept": TYPES,
    "content-type": TYPES,
    "if-match": TAGS,
    "if-none-match": TAGS,
    "if-range": TAGS,
    "content-range": SPANS,
    "range": RANGES,
    "x-request-id": ["ok", "not ok", "x" * 500],
    "authorization": ["Basic x", "Bearer " + "x" * 5000, "é"],
}
BODIES = [b"", b"{}", b"[" * 5000, image(), image(manifests=[]), b"\xff", b'{"mediaType":"a/b"}', b"null"]

paths = st.builds(
    lambda name, tail, reference: f"/v2/{name}/{tail.format(reference)}",
    st.sampled_from(NAMES),
    st.sampled_from(TAILS),
    st.sampled_from(REFERENCES) | st.text(st.characters(codec="ascii"), max_size=30),
)
queries = st.lists(
    st.builds("{}={}".format, st.sampled_from(KEYS), st.sampled_from(VALUES) | st.text(max_size=20)), max_size=4
).map("&".join)
headers = st.lists(st.sampled_from(sorted(HEADERS)), max_size=5).flatmap(
    lambda names: st.tuples(*(st.tuples(st.just(name), st.sampled_from(HEADERS[name])) for name in names))
)
methods = st.sampled_from(["GET", "HEAD", "PUT", "POST", "PATCH", "DELETE", "OPTIONS", "", "x" * 100])


async def ask(
    rig: Rig, method: str, path: bytes, query: bytes, lines: Any, body: bytes
) -> tuple[int, dict[Any, Any], bytes]:
    """As a server would, below what an HTTP client lets through."""
    incoming = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[Any] = []

    async def receive() -> Any:
        return incoming.pop() if incoming else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    encoded = [(name.encode(), value.encode()) for name, value in lines]
    encoded.append((b"content-length", str(len(body)).encode()))
    scope = {"type": "http", "method": method, "path": "", "raw_path": path, "query_string": query, "headers": encoded}
    await rig.app(scope, receive, send)
    start, *rest = sent
    return start["status"], dict(start["headers"]), b"".join(message["body"] for message in rest)


def check(method: str, status: int, found: dict[Any, Any], body: bytes) -> None:
    assert 200 <= status < 500
    assert found[b"x-request-id"]
    for name, value in found.items():
        assert not set(b"\r\n\0") & set(name + value)
    if method == "HEAD" or status in (204, 304):
        assert body == b""
    else:
        assert int(found[b"content-length"]) == len(body)
    if status >= 400 and method != "HEAD":
        assert body.startswith(b'{"errors":[{"code":"')


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Examples are synchronous to hypothesis; all of them use one node on one loop."""
    with asyncio.Runner() as runner:
        yield runner.get_loop()


@pytest.fixture
def fuzzed(data: Path, loop: asyncio.AbstractEventLoop) -> Iterator[Rig]:
    """A node with an image."""
    node = running(data)
    rig = loop.run_until_complete(node.__aenter__())
    loop.run_until_complete(rig.push_image("a", "v1"))
    yield rig
    loop.run_until_complete(node.__aexit__(None, None, None))


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(methods, paths, queries, headers, st.sampled_from(BODIES)), min_size=1, max_size=8))
def test_requests_that_nearly_make_sense(fuzzed: Rig, loop: asyncio.AbstractEventLoop, requests: list[Any]) -> None:
    for method, path, query, lines, body in requests:
        encoded = path.encode(), query.encode("utf-8", "replace")
        check(method, *loop.run_until_complete(ask(fuzzed, method, *encoded, lines, body)))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=40), st.binary(max_size=40), methods, headers)
def test_any_bytes(
    fuzzed: Rig, loop: asyncio.AbstractEventLoop, path: bytes, query: bytes, method: str, lines: Any
) -> None:
    check(method, *loop.run_until_complete(ask(fuzzed, method, b"/v2/" + path, query, lines, b"")))
