"""Inventories on disk, two of which tell each other."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from consensus.names import Digest, StoreId
from node import inventory as inventories
from node.inventory import Inventory, InventoryReader, holders_of, page_of
from replication import inventory as pages
from replication.directory import PeerWrong
from replication.inventory import Page, Standing

STORE, OTHER = StoreId("a" * 32), StoreId("b" * 32)


def digest(number: int) -> Digest:
    return Digest("sha256", f"{number:064x}")


def believed(inventory: Inventory) -> set[bytes]:
    return {packed for (packed,) in inventory._connection.execute("SELECT digest FROM copies").fetchall()}


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def open_inventory(stack: ExitStack, file: Path, store: StoreId = STORE) -> Inventory:
    made = Inventory.open(file, store)
    stack.callback(made.close)
    return made


def asked(teller: Inventory, standing: Standing) -> Page:
    return teller.page(standing.incarnation, standing.reached, standing.forgotten)


def exchange(teller: Inventory, hearer: Inventory) -> int:
    """To the end; how many pages it took."""
    for count in range(1, 1000):
        standing = hearer.standing("us")
        page = Page.decode(asked(teller, standing).encode())
        hearer.take("us", page)
        if not page.more:
            return count
    raise AssertionError("it does not end")


class Telling(RuleBasedStateMachine):
    """`us` tells `ap`, whatever is lost between them, and whoever of them dies."""

    PAGE, GONE = 3, 4

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.patch = self.stack.enter_context(pytest.MonkeyPatch.context())
        self.patch.setattr(inventories, "PAGE_ENTRIES", self.PAGE)
        self.patch.setattr(inventories, "MAX_GONE", self.GONE)
        self.held: set[bytes] = set()  # in the store of us
        self.told: set[bytes] = set()  # as its inventory should have it
        self.us, self.ap = self.made(STORE), self.made(OTHER)

    def made(self, store: StoreId) -> Inventory:
        made = Inventory(Path(":memory:"), store)
        self.stack.callback(made.close)
        return made

    def teardown(self) -> None:
        self.stack.close()

    @rule(numbers=st.sets(st.integers(0, 12), max_size=6))
    def keep(self, numbers: set[int]) -> None:
        for packed in {digest(number).packed for number in numbers} - self.held:
            self.held.add(packed)
            self.us.kept(packed)

    @rule(numbers=st.sets(st.integers(0, 12), max_size=6))
    def lose(self, numbers: set[int]) -> None:
        digests = {digest(number).packed for number in numbers}
        self.held -= digests
        self.us.change(digests, held=False)

    @rule(number=st.integers(0, 12), held=st.booleans())
    def change_unseen(self, number: int, held: bool) -> None:
        """The replicator dies between what happens and its word of it. (Not where a copy has come, gone by hand, been
        found untrue, and come again: then others may not hear of it until the node starts anew.)"""
        if held and digest(number).packed in self.us.own(b"", 100):
            return
        (self.held.add if held else self.held.discard)(digest(number).packed)

    @rule()
    def walk(self) -> None:
        self.us.change(self.held, held=True)
        self.us.walked()
        self.us.change([each for each in self.us.own(b"", 100) if each not in self.held], held=False)

    @rule()
    def begin_us_anew(self) -> None:
        self.us = self.made(STORE)

    @rule()
    def begin_ap_anew(self) -> None:
        self.ap = self.made(OTHER)

    @rule(count=st.integers(1, 4))
    def hear(self, count: int) -> None:
        for _ in range(count):
            standing = self.ap.standing("us")
            self.ap.take("us", asked(self.us, standing))

    @rule()
    def lose_an_answer(self) -> None:
        standing = self.ap.standing("us")
        asked(self.us, standing)

    @rule(number=st.integers(0, 12))
    def find_untrue(self, number: int) -> None:
        found = digest(number)
        if found.packed not in self.held:
            self.ap.untrue(STORE, found)

    @invariant()
    def counts_are_right(self) -> None:
        assert self.ap.count("us") == len(believed(self.ap))
        (gone,) = self.us._connection.execute("SELECT count(*) FROM own WHERE NOT held").fetchone()
        assert gone <= self.GONE

    @invariant()
    def it_converges(self) -> None:
        """From wherever it is: seen on copies of both."""
        with ExitStack() as stack:
            us, ap = (stack.enter_context(_copied(each)) for each in (self.us, self.ap))
            us.change(self.held, held=True)
            us.walked()
            us.change([each for each in us.own(b"", 100) if each not in self.held], held=False)
            exchange(us, ap)
            assert believed(ap) == self.held
            assert ap.count("us") == len(self.held)


def _copied(inventory: Inventory) -> _Copy:
    return _Copy(inventory)


class _Copy:
    def __init__(self, inventory: Inventory) -> None:
        self.made = Inventory(Path(":memory:"), STORE)
        inventory._connection.backup(self.made._connection)

    def __enter__(self) -> Inventory:
        return self.made

    def __exit__(self, *_: object) -> None:
        self.made.close()


TestTelling = Telling.TestCase
TestTelling.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def test_many_pages_and_the_gaps_between_them(tmp_path: Path, stack: ExitStack) -> None:
    us = open_inventory(stack, tmp_path / "us" / "1.sqlite")
    ap = open_inventory(stack, tmp_path / "ap" / "1.sqlite", OTHER)
    us.change((digest(number).packed for number in range(10_000)), held=True)
    us.walked()
    assert exchange(us, ap) == 4
    assert ap.count("us") == 10_000
    assert ap.holders(digest(7)) == (STORE,)
    assert holders_of(tmp_path / "ap" / "1.sqlite", digest(7)) == (STORE,)
    assert exchange(us, ap) == 1
    us.change([digest(7).packed], held=False)
    assert exchange(us, ap) == 1
    assert ap.holders(digest(7)) == ()
    assert ap.count("us") == 9_999


def test_another_start_of_the_node_begins_another_and_what_was_known_stays_meanwhile(
    tmp_path: Path, stack: ExitStack
) -> None:
    ap = open_inventory(stack, tmp_path / "ap" / "1.sqlite", OTHER)
    us = Inventory.open(tmp_path / "us" / "1.sqlite", STORE)
    us.change([digest(1).packed, digest(2).packed], held=True)
    us.walked()
    exchange(us, ap)
    us.close()
    us = open_inventory(stack, tmp_path / "us" / "2.sqlite")
    assert [each.name for each in (tmp_path / "us").glob("*.sqlite")] == ["2.sqlite"]
    exchange(us, ap)
    assert ap.count("us") == 2
    us.change([digest(2).packed], held=True)
    exchange(us, ap)
    assert ap.count("us") == 2
    us.walked()
    exchange(us, ap)
    assert believed(ap) == {digest(2).packed}


def test_a_process_that_died_left_all_that_it_had_written(tmp_path: Path, stack: ExitStack) -> None:
    file = tmp_path / "us" / "1.sqlite"
    first = open_inventory(stack, file)
    first.change([digest(1).packed], held=True)
    first._connection.execute("BEGIN IMMEDIATE")  # and dies in the middle
    first._connection.execute("UPDATE meta SET last = 99")
    first.close()
    page = open_inventory(stack, file).page("", 0, 0)
    assert (page.begin, page.end, page.held) == (0, 1, (digest(1).packed,))
    assert page_of(file, page.incarnation, 1, 0).held == ()


def test_one_member_cannot_make_it_larger_than_is_bearable(
    tmp_path: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inventories, "MAX_COPIES", 5)
    us = open_inventory(stack, tmp_path / "us" / "1.sqlite")
    ap = open_inventory(stack, tmp_path / "ap" / "1.sqlite", OTHER)
    us.change((digest(number).packed for number in range(4)), held=True)
    exchange(us, ap)
    us.change((digest(number).packed for number in range(4, 8)), held=True)
    with pytest.raises(PeerWrong, match="more than 5"):
        exchange(us, ap)
    assert ap.count("us") == 4
    us.change((digest(number).packed for number in range(4, 8)), held=False)
    exchange(us, ap)
    assert ap.count("us") == 4


def test_a_copy_that_comes_again_is_told_again(tmp_path: Path, stack: ExitStack) -> None:
    """Somebody has removed it meanwhile, and whoever asked for it was told that it is not here."""
    us = open_inventory(stack, tmp_path / "us" / "1.sqlite")
    ap = open_inventory(stack, tmp_path / "ap" / "1.sqlite", OTHER)
    us.kept(digest(1).packed)
    exchange(us, ap)
    ap.untrue(STORE, digest(1))
    exchange(us, ap)
    assert ap.holders(digest(1)) == ()
    us.kept(digest(1).packed)
    exchange(us, ap)
    assert ap.holders(digest(1)) == (STORE,)


def test_where_there_is_none_nothing_is_known(tmp_path: Path) -> None:
    with pytest.raises(sqlite3.Error):
        InventoryReader(tmp_path / "none.sqlite")
    assert holders_of(tmp_path / "none.sqlite", digest(1)) == ()
    assert pages.NoCopies().holders(digest(1)) == ()
