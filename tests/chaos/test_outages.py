"""Who is alone in which outage, and what counts as an interruption."""

from __future__ import annotations

from random import Random

import pytest

from chaos.history import History, Key
from chaos.outages import OUTAGES, acknowledged, longest_gap, outage

NAMES = ("eu", "us", "ap")
TAG = Key("tag", "library/one", "latest")


@pytest.mark.parametrize("kind", OUTAGES)
def test_only_a_leader_that_is_hit_costs_an_election(kind: str) -> None:
    happens = outage(kind, "us", NAMES, Random(1))
    assert happens.elects == ("us" in happens.alone and kind != "cut-link")
    assert all({one, other} <= set(NAMES) and one != other for one, other in happens.pairs)


@pytest.mark.parametrize(
    ("kind", "alone", "pairs"),
    [
        ("cut-leader", {"us"}, {("us", "eu"), ("eu", "us"), ("us", "ap"), ("ap", "us")}),
        ("mute-leader", {"us"}, {("us", "eu"), ("us", "ap")}),
        ("deaf-leader", {"us"}, {("eu", "us"), ("ap", "us")}),
        ("cut-followers", set(), {("eu", "ap"), ("ap", "eu")}),
        ("freeze", {"us"}, set()),
        ("all", {"eu", "us", "ap"}, set()),
    ],
)
def test_what_is_cut(kind: str, alone: set[str], pairs: set[tuple[str, str]]) -> None:
    happens = outage(kind, "us", NAMES, Random(1))
    assert (set(happens.alone), set(happens.pairs)) == (alone, pairs)


def test_one_link_leaves_both_followers_with_the_third() -> None:
    happens = outage("cut-link", "us", NAMES, Random(1))
    (alone,) = happens.alone
    assert set(happens.pairs) == {("us", alone), (alone, "us")}
    assert not happens.elects


def test_acknowledgements_are_those_of_one_place_and_time() -> None:
    history = History()
    for place, began, ended in (("here", 1, 2), ("here", 3, 5), ("here", 4, 9), ("there", 3, 4), ("here", 5, None)):
        write = history.begin(TAG, "sha256:0", began, place=place)
        if ended is not None:
            history.acknowledge(write, ended)
    assert acknowledged(history, "here", 2, 8) == [(3, 5, TAG)]
    assert acknowledged(history, "there", 2, 8) == [(3, 4, TAG)]


def test_the_longest_gap_counts_from_the_beginning_to_the_end() -> None:
    assert longest_gap([], 1, 5) == 4
    assert longest_gap([2, 4, 2.5], 1, 4.5) == 1.5
    assert longest_gap([1.5], 1, 4.5) == 3
