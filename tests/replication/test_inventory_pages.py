"""What is taken for a page of an inventory, and how pages follow each other."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replication.directory import PeerWrong
from replication.inventory import PAGE_ENTRIES, Page, Standing

STORE, ONE, TWO = "a" * 32, "1" * 32, "2" * 32


def page(begin: int, end: int, *, incarnation: str = ONE, more: bool = False, walked: bool = True) -> Page:
    held = tuple(b"\x01" + bytes(28) + number.to_bytes(4, "big") for number in range(begin, end))
    return Page(
        store_id=STORE,
        incarnation=incarnation,
        begin=begin,
        end=end,
        forgotten=0,
        more=more,
        walked=walked,
        held=held,
        gone=(),
    )


def test_pages_follow_each_other() -> None:
    standing = Standing().after(page(0, 5, more=True))
    assert standing == Standing(ONE, 5, round=1, settled=False)
    standing = standing.after(page(5, 9, walked=False))
    assert not standing.settled
    standing = standing.after(page(9, 9))
    assert standing == Standing(ONE, 9, round=1, settled=True)
    assert standing.after(page(9, 12, more=True)) == Standing(ONE, 12, round=1, settled=True)


def test_another_incarnation_or_a_beginning_anew_is_another_round() -> None:
    standing = Standing(ONE, 9, round=1, settled=True)
    assert standing.after(page(0, 3, incarnation=TWO, more=True)) == Standing(TWO, 3, round=2, settled=False)
    assert standing.after(page(0, 3)) == Standing(ONE, 3, round=2, settled=True)


@pytest.mark.parametrize("begin", [1, 5, 8, 10])
@pytest.mark.parametrize("incarnation", [ONE, TWO])
def test_a_page_from_the_middle_is_refused(begin: int, incarnation: str) -> None:
    with pytest.raises(PeerWrong):
        Standing(ONE, 9, round=1, settled=True).after(page(begin, 12, incarnation=incarnation))


def test_the_largest_page_is_no_more_than_what_is_read_of_an_answer() -> None:
    long = tuple(b"\x02" + bytes(60) + number.to_bytes(4, "big") for number in range(PAGE_ENTRIES))
    full = msgspec.structs.replace(page(0, 0), held=long, end=1 << 61, begin=1 << 60)
    assert len(full.encode()) < 256 * 1024
    assert Page.decode(full.encode()) == full


def wrong(**changes: object) -> bytes:
    fields = msgspec.to_builtins(page(3, 7), builtin_types=(bytes,))
    return msgspec.msgpack.encode({**fields, **changes})


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"\xc1" * 1000,
        b"\xdd\xff\xff\xff\xff",
        b"\x91" * 100_000,
        page(3, 7).encode()[:-1],
        page(3, 7).encode() + b"x",
        wrong(store_id="../../etc"),
        wrong(store_id="a" * 31 + "\n"),
        wrong(incarnation="1" * 33),
        wrong(begin=-1),
        wrong(begin=8),
        wrong(end=1 << 63),
        wrong(end=5),
        wrong(end=7.0),
        wrong(held=None),
        wrong(held=["text"]),
        wrong(held=[b"\x01" + bytes(31)]),
        wrong(held=[b"\x03" + bytes(32)]),
        wrong(held=[b""]),
        wrong(gone=[bytes(33)]),
        wrong(held=[], more=True),
        wrong(more=1),
        wrong(held=[b"\x01" + bytes(32)] * (PAGE_ENTRIES + 1), end=1 << 40),
        wrong(held=[b"\x01" + bytes(32)] * PAGE_ENTRIES, gone=[b"\x01" + bytes(32)] * PAGE_ENTRIES, end=1 << 40),
    ],
)
def test_what_is_no_page_is_refused(body: bytes) -> None:
    with pytest.raises(PeerWrong, match="inventory"):
        Page.decode(body)


@given(st.binary(max_size=300))
def test_garbage_is_refused(body: bytes) -> None:
    with pytest.raises(PeerWrong):
        Page.decode(body)
