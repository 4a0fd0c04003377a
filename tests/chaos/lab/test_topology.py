"""What a topology file may say, and what is said about one that may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaos.lab.errors import TopologyError
from chaos.lab.topology import Change, Link, load, parse

TWO = 'regions = ["eu", "us"]\n'


def test_the_world_is_the_one_that_is_promised() -> None:
    world = load()
    assert world.regions == ("eu", "us", "ap")
    assert [world.round_trip_ms(*pair) for pair in (("eu", "us"), ("us", "ap"), ("eu", "ap"))] == [80, 150, 220]
    assert {link.rate_mbit for link in world.links.values()} == {200}
    assert {(link.jitter_ms, link.loss, link.cut) for link in world.links.values()} == {(0, 0, False)}
    assert set(world.congestion_control.values()) == {"cubic"}
    assert world.links["eu", "us"].queue_bytes == 2_500_000


def test_links_are_applied_over_the_default_and_each_other() -> None:
    found = parse(
        f"""{TWO}
        [default]
        rate_mbit = 50
        jitter_ms = 2
        [[links]]
        between = ["eu", "us"]
        round_trip_ms = 30
        queue_bytes = 100_000
        [[links]]
        from = "us"
        to = "eu"
        delay_ms = 45
        loss = 0.01
        queue_ms = 10
        """
    )
    assert found.links["eu", "us"] == Link(15, 2, 0, 50, queue_limit_bytes=100_000)
    assert found.links["us", "eu"] == Link(45, 2, 0.01, 50, 10)
    assert found.links["us", "eu"].queue_bytes == 62_500
    assert found.round_trip_ms("eu", "us") == 60


def test_congestion_control_is_one_for_all_or_one_for_each() -> None:
    assert parse(f'{TWO}congestion_control = "bbr"').congestion_control == {"eu": "bbr", "us": "bbr"}
    assert parse(f'{TWO}congestion_control = {{us = "bbr"}}').congestion_control == {"eu": "cubic", "us": "bbr"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "missing required field `regions`"),
        ("regions = [", "Invalid"),
        ('regions = ["eu"]', "regions: expected 2 to 7, got 1"),
        ('regions = ["eu", "eu"]', "regions: names one twice"),
        ('regions = ["eu", "U S"]', "regions: 'U S'"),
        (f"{TWO}[default]\ndistance = 3", "unknown field `distance` - at `$.default`"),
        (f"{TWO}[default]\nloss = 1.5", "<= 1.0 - at `$.default.loss`"),
        (f"{TWO}[default]\ndelay_ms = -1", ">= 0.0 - at `$.default.delay_ms`"),
        (f"{TWO}[default]\nrate_mbit = 0", "> 0.0 - at `$.default.rate_mbit`"),
        (f"{TWO}[default]\nqueue_bytes = 10", ">= 3000 - at `$.default.queue_bytes`"),
        (f"{TWO}[default]\ndelay_ms = 1\nround_trip_ms = 2", "default: round_trip_ms and delay_ms: expected one"),
        (f"{TWO}[default]\nqueue_ms = 1\nqueue_bytes = 9999", "default: queue_bytes and queue_ms: expected one"),
        (f"{TWO}[[links]]\nloss = 0", "links, number 1: expected either between"),
        (f'{TWO}[[links]]\nfrom = "eu"', "links, number 1: expected either between"),
        (f'{TWO}[[links]]\nbetween = ["eu", "mars"]', "links, number 1: eu to mars: expected two of eu, us"),
        (f'{TWO}[[links]]\nbetween = ["eu", "eu"]', "links, number 1: eu to eu: expected two of eu, us"),
        (f'{TWO}[[links]]\nfrom = "eu"\nto = "us"\nround_trip_ms = 3', "round_trip_ms is of both directions"),
        (f'{TWO}congestion_control = "tahoe"', "congestion_control"),
        (f'{TWO}congestion_control = {{mars = "bbr"}}', "congestion_control: mars: not among the regions"),
    ],
)
def test_what_is_wrong_is_said(text: str, message: str) -> None:
    with pytest.raises(TopologyError) as refused:
        parse(text)
    assert message in str(refused.value)


def test_the_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TopologyError, match="no-such-file"):
        load(tmp_path / "no-such-file")
    (tmp_path / "bad.toml").write_text("regions = []")
    with pytest.raises(TopologyError, match=r"bad\.toml: regions: expected 2 to 7"):
        load(tmp_path / "bad.toml")


def test_a_change_touches_only_what_it_names() -> None:
    link = Link(40, 1, 0.1, 200, queue_limit_bytes=9000)
    assert link.changed(Change(loss=0.0)) == Link(40, 1, 0, 200, queue_limit_bytes=9000)
    assert link.changed(Change(queue_ms=20)).queue_bytes == 500_000
    assert link.changed(Change(cut=True)).cut
    assert Change().is_empty
    assert not Change(cut=False).is_empty
