from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.gateway.ranges import Slice, parse_content_range, parse_range
from node.gateway.refusals import LengthMismatch, MalformedRange, RangeUnsatisfiable
from node.uploads import Span


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("bytes=0-0", Slice(0, 1)),
        ("bytes=0-9", Slice(0, 10)),
        ("bytes=0-99999999999999999999", Slice(0, 10)),
        ("bytes=3-", Slice(3, 10)),
        ("bytes=-3", Slice(7, 10)),
        ("bytes=-30", Slice(0, 10)),
        ("Bytes = 9-", Slice(9, 10)),
        # The whole is the right answer to these.
        (None, None),
        ("", None),
        ("bytes", None),
        ("bytes=", None),
        ("bytes=-", None),
        ("bytes=0-1,3-4", None),
        ("bytes=a-b", None),
        ("bytes=1_0-2", None),
        ("bytes=\u0663-\u0664", None),
        ("bytes=+1-2", None),
        ("lines=1-2", None),
        ("bytes=0-" + "9" * 31, None),
    ],
)
def test_range(text: str | None, part: Slice | None) -> None:
    assert parse_range(text, 10) == part


@pytest.mark.parametrize("text", ["bytes=10-", "bytes=10-20", "bytes=5-4", "bytes=-0", "bytes=999999999999999999999-"])
def test_unsatisfiable(text: str) -> None:
    with pytest.raises(RangeUnsatisfiable) as caught:
        parse_range(text, 10)
    assert caught.value.size_bytes == 10


def test_of_an_empty_blob() -> None:
    assert parse_range("bytes=-5", 0) is None
    with pytest.raises(RangeUnsatisfiable):
        parse_range("bytes=0-", 0)


@given(st.text(max_size=20), st.integers(0, 5))
def test_any_text_is_a_part_of_the_blob_or_refused(text: str, size_bytes: int) -> None:
    try:
        part = parse_range("bytes=" + text, size_bytes)
    except RangeUnsatisfiable:
        return
    assert part is None or 0 <= part.start < part.stop <= size_bytes


@pytest.mark.parametrize(
    ("text", "length", "span"),
    [
        (None, 5, None),
        ("0-4", 5, Span(0, 5)),
        ("0-4", None, Span(0, 5)),
        ("7-7", 1, Span(7, 1)),
        ("999999999999999999-999999999999999999", 1, Span(999999999999999999, 1)),
    ],
)
def test_content_range(text: str | None, length: int | None, span: Span | None) -> None:
    assert parse_content_range(text, length) == span


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "5",
        "5-",
        "-5",
        "4-0",
        "0-4/5",
        "bytes 0-4/5",
        "bytes=0-4",
        "0 - 4",
        "+0-4",
        "\u0660-\u0664",
        "0-4\n",
        "1_0-2_0",
    ]
    + ["0-" + "9" * 19],
)
def test_malformed_content_range(text: str) -> None:
    with pytest.raises(MalformedRange):
        parse_content_range(text, None)


def test_content_range_contradicts_the_length() -> None:
    with pytest.raises(LengthMismatch):
        parse_content_range("0-4", 6)
