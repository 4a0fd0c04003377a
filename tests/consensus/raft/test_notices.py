from __future__ import annotations

import logging

import pytest

from consensus.raft.notices import Notices


def test_one_line_of_a_kind_in_a_while_and_how_many_were_left_out(caplog: pytest.LogCaptureFixture) -> None:
    notices = Notices(logging.getLogger("test"), pause_seconds=0.0)
    notices.warning("peer_refused", "a", peer="x")
    slow = Notices(logging.getLogger("test"), pause_seconds=3600)
    for _ in range(100):
        slow.warning("peer_refused", "a", peer="x")
    slow.warning("peer_refused", "b", peer="y")
    slow._pause = 0.0
    slow.warning("peer_refused", "a", peer="z")
    lines = [(record.getMessage(), vars(record)["peer"], vars(record)["suppressed"]) for record in caplog.records]
    assert lines == [
        ("peer_refused", "x", 0),
        ("peer_refused", "x", 0),
        ("peer_refused", "y", 0),
        ("peer_refused", "z", 99),
    ]


def test_kinds_without_end_do_not_fill_the_memory() -> None:
    notices = Notices(logging.getLogger("test"))
    for n in range(10_000):
        notices.warning("peer_refused", n)
    assert len(notices._kinds) <= 256
