"""What the figures between regions are compared with."""

from __future__ import annotations

import pytest

from bench.wan import Calm, Placement, Throughput, as_section, least


@pytest.mark.parametrize(
    ("region", "leader", "seconds"),
    [
        ("eu", "eu", 0.08),
        ("us", "eu", 0.16),
        ("ap", "eu", 0.3),
        ("eu", "us", 0.16),
        ("us", "us", 0.08),
        ("ap", "us", 0.23),
        ("eu", "ap", 0.37),
        ("us", "ap", 0.3),
        ("ap", "ap", 0.15),
    ],
)
def test_a_write_goes_to_the_leader_and_from_there_to_the_nearest(region: str, leader: str, seconds: float) -> None:
    assert least(region, leader) == pytest.approx(seconds)


def test_the_section_says_it_all() -> None:
    text = as_section(
        "python -m bench.wan",
        [Placement("us", "eu", (0.1, 0.2, 0.168))],
        [Throughput("us", "at the leader", 2100.4, 0.4, 0.9)],
        [Calm("idle", 600, 3, 3, 0)],
    )
    assert "| us | eu | 168 | 160 | **1.05** | 1.2 |" in text
    assert "| at the leader (us) | **2,100** | 400 | 900 | 2,000 |" in text
    assert "| idle | 10 | 0 | **0** | 0 |" in text
