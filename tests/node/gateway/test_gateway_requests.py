from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.gateway.pages import Page, next_link, parse_page
from node.gateway.refusals import ClientGone, MalformedRequest
from node.gateway.requests import Request


def request(query: bytes = b"", *headers: tuple[bytes, bytes], messages: list[dict[str, Any]] | None = None) -> Request:
    scope = {"type": "http", "method": "GET", "path": "/a b", "query_string": query, "headers": headers}

    async def receive() -> Any:
        return (messages or []).pop(0)

    async def send(message: Any) -> None:
        raise BrokenPipeError

    return Request(scope, receive, send)


def test_headers() -> None:
    asked = request(b"", (b"accept", b"a"), (b"x", b"\xe9"), (b"accept", b"b"))
    assert asked.header_lines(b"accept") == ["a", "b"]
    assert asked.header_lines(b"range") == []
    assert (asked.header(b"x"), asked.header(b"range")) == ("é", None)


def test_a_path_that_came_decoded_is_encoded_again() -> None:
    assert request().path == b"/a%20b"


@pytest.mark.parametrize(
    ("query", "found"),
    [
        (b"x=1", ["1"]),
        (b"x=1&y=2&x=3", ["1", "3"]),
        (b"x=a+b%2Bc%20d", ["a+b+c d"]),
        (b"x", [""]),
        (b"%78=1", ["1"]),
        (b"x=1=2", ["1=2"]),
        (b"x=%", ["%"]),
        (b"x=%00", ["\0"]),
        (b"", []),
        (b"&&&", []),
    ],
)
def test_parameters(query: bytes, found: list[str]) -> None:
    assert request(query).parameters("x") == found


@pytest.mark.parametrize("query", [b"x=%ff", b"%ff=x", b"x=\xff", b"x=%ed%a0%80", b"&" * 128, b"x=1&x=2"])
def test_malformed_parameters(query: bytes) -> None:
    with pytest.raises(MalformedRequest):
        request(query).parameter("x")


@given(st.binary(max_size=60))
def test_any_query_parses_or_is_malformed(query: bytes) -> None:
    with suppress(MalformedRequest):
        assert request(query).parameter("x") is None or query


@pytest.mark.parametrize(("text", "length"), [(b"0", 0), (b"12", 12), (b"9" * 18, int("9" * 18))])
def test_content_length(text: bytes, length: int) -> None:
    assert request(b"", (b"content-length", text)).content_length == length


@pytest.mark.parametrize("text", [b"", b"-1", b"+1", b"1_0", b"1.0", b"9" * 19, "\u0661".encode()])
def test_malformed_content_length(text: bytes) -> None:
    with pytest.raises(MalformedRequest):
        _ = request(b"", (b"content-length", text)).content_length


@pytest.mark.parametrize(
    ("headers", "has_body"),
    [([], False), ([(b"content-length", b"0")], False), ([(b"content-length", b"1")], True)]
    + [([(b"transfer-encoding", b"chunked")], True)],
)
def test_whether_there_is_a_body(headers: list[tuple[bytes, bytes]], has_body: bool) -> None:
    assert request(b"", *headers).has_body == has_body


async def test_the_body_comes_as_it_arrives() -> None:
    first = {"type": "http.request", "body": b"ab", "more_body": True}
    asked = request(messages=[first, {"type": "http.request", "body": b"c"}])
    assert [chunk async for chunk in asked.chunks()] == [b"ab", b"c"]
    assert [chunk async for chunk in asked.chunks()] == []
    assert (asked.bytes_in, asked.body_read) == (3, True)


async def test_a_client_that_leaves() -> None:
    asked = request(messages=[{"type": "http.disconnect"}])
    with pytest.raises(ClientGone):
        _ = [chunk async for chunk in asked.chunks()]
    with pytest.raises(ClientGone):
        await asked.send({"type": "http.response.start"})


@pytest.mark.parametrize(
    ("query", "page"),
    [
        (b"", Page(10, None)),
        (b"n=3&last=x", Page(3, "x")),
        (b"n=0", Page(0, None)),
        (b"n=" + b"0" * 30 + b"7", Page(7, None)),
        (b"n=11&last=", Page(10, None)),
    ],
)
def test_pages(query: bytes, page: Page) -> None:
    assert parse_page(request(query), 10) == page


def test_the_link_to_the_next_page_is_encoded() -> None:
    name, value = next_link("/v2/a/referrers/x", 5, "sha256:0", artifactType='a/b+c">,\r\n')
    assert name == b"link"
    assert value == b'</v2/a/referrers/x?n=5&last=sha256:0&artifactType=a/b%2Bc%22%3E%2C%0D%0A>; rel="next"'
