"""Parsing is the only way in: what is well formed comes back as it was, everything else is refused."""

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.errors import InvalidName
from consensus.names import Digest, Region, RepositoryName, Tag, parse_media_type, parse_reference

SHA256 = "sha256:" + "0123456789abcdef" * 4
SHA512 = "sha512:" + "0123456789abcdef" * 8


@pytest.mark.parametrize("text", [SHA256, SHA512])
def test_a_digest_comes_back_from_text_and_from_bytes(text: str) -> None:
    digest = Digest.parse(text)
    assert str(digest) == text
    assert Digest.from_bytes(digest.packed) == digest
    assert len(digest.packed) == 1 + len(digest.hex) // 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256",
        "sha256:",
        SHA256[:-1],
        SHA256 + "0",
        SHA256.upper(),
        SHA256[:-1] + "g",
        SHA256[:-1] + "\n",
        SHA256[:-1] + "٣",
        "SHA256:" + "a" * 64,
        "md5:" + "a" * 32,
        "sha512:" + "a" * 64,
        "sha256:../../../../etc/passwd",
        "sha256:" + "a" * 10_000,
    ],
)
def test_what_is_no_digest_is_refused(text: str) -> None:
    with pytest.raises(InvalidName) as refusal:
        Digest.parse(text)
    assert refusal.value.kind == "digest"
    assert len(refusal.value.text) <= 300


@pytest.mark.parametrize("packed", [b"", b"\x01", b"\x01" * 32, b"\x01" * 34, b"\x02" * 33, b"\x03" * 33])
def test_what_is_no_packed_digest_is_refused(packed: bytes) -> None:
    with pytest.raises(InvalidName):
        Digest.from_bytes(packed)


@pytest.mark.parametrize("text", ["a", "0", "a/b/c/d/e/f", "a.b_c__d-e---f", "library/app", "a" * 255])
def test_a_repository_name_comes_back(text: str) -> None:
    assert str(RepositoryName.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A",
        "a/",
        "/a",
        "a//b",
        "a/../b",
        "..",
        ".a",
        "a.",
        "a..b",
        "a___b",
        "-a",
        "a\n",
        "a b",
        "a%2fb",
        "ä",
        "a" * 256,
    ],
)
def test_what_is_no_repository_name_is_refused(text: str) -> None:
    with pytest.raises(InvalidName):
        RepositoryName.parse(text)


@pytest.mark.parametrize("text", ["a", "_", "v1.0-rc_1", "Z" * 128, "9"])
def test_a_tag_comes_back_and_is_a_reference(text: str) -> None:
    assert str(Tag.parse(text)) == text
    assert parse_reference(text) == Tag(text)


@pytest.mark.parametrize("text", ["", ".a", "-a", "a/b", "a\n", "a b", "ü", "a" * 129])
def test_what_is_no_tag_is_refused(text: str) -> None:
    with pytest.raises(InvalidName):
        Tag.parse(text)


def test_a_reference_with_a_colon_is_a_digest_or_nothing() -> None:
    assert parse_reference(SHA256) == Digest.parse(SHA256)
    with pytest.raises(InvalidName):
        parse_reference("latest:1")


def test_a_region_is_a_short_word() -> None:
    assert str(Region.parse("eu-west-1")) == "eu-west-1"
    for text in ("", "1eu", "EU", "eu_west", "eu\n", "e" * 33):
        with pytest.raises(InvalidName):
            Region.parse(text)


def test_a_media_type_loses_its_parameters() -> None:
    assert parse_media_type("application/vnd.x+json; charset=utf-8") == "application/vnd.x+json"
    for text in ("", "text", "text/", "/x", "a/b/c", "text/plain\r\nX: y", "text/" + "x" * 128, "*/*"):
        with pytest.raises(InvalidName):
            parse_media_type(text)


@settings(deadline=None)
@given(st.text(max_size=80))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    for parse in (Digest.parse, RepositoryName.parse, Tag.parse, Region.parse, parse_reference):
        with suppress(InvalidName):
            assert str(parse(text)) == text
