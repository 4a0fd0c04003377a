from __future__ import annotations

import threading

from consensus.raft.inbox import Inbox


def nobody() -> None:
    pass


def test_what_was_put_is_taken_once_and_in_order() -> None:
    woken: list[None] = []
    inbox = Inbox(lambda: woken.append(None))
    for n in range(3):
        inbox.put("a", {"n": n})
        inbox.put("b", {"n": n})
    assert len(woken) == 6
    assert inbox.take() == [(peer, {"n": n}) for n in range(3) for peer in "ab"]
    assert inbox.take() == []
    assert inbox.dropped == 0


def test_a_full_inbox_drops_after_its_patience_and_takes_again_once_emptied() -> None:
    inbox = Inbox(nobody, most_messages=2, patience_seconds=0.01)
    for n in range(5):
        inbox.put("a", {"n": n})
    inbox.put("b", {"n": "another's room"})
    assert [message["n"] for _, message in inbox.take()] == [0, 1, "another's room"]
    assert inbox.dropped == 3
    inbox.put("a", {"n": 5})
    assert inbox.take() == [("a", {"n": 5})]


def test_patience_is_spent_once_not_for_each_message() -> None:
    inbox = Inbox(nobody, most_messages=1, patience_seconds=0.05)
    for n in range(2000):  # would take 100 s
        inbox.put("a", {"n": n})
    assert inbox.dropped == 1999


def test_room_is_counted_in_bytes_but_one_message_fits_always() -> None:
    inbox = Inbox(nobody, most_bytes=1000, patience_seconds=0.0)
    inbox.put("a", {"n": bytes(5000)})
    inbox.put("a", {"n": 1})
    assert inbox.take() == [("a", {"n": bytes(5000)})]
    inbox.put("a", {"n": ({"inside": bytes(600)},)})
    inbox.put("a", {"n": "x" * 600})
    inbox.put("a", {"n": 1})
    assert len(inbox.take()) == 2
    assert inbox.dropped == 2


def test_who_is_held_back_goes_on_when_there_is_room() -> None:
    inbox = Inbox(nobody, most_messages=1, patience_seconds=30)
    inbox.put("a", {"n": 0})
    thread = threading.Thread(target=inbox.put, args=("a", {"n": 1}), daemon=True)
    thread.start()
    assert inbox.take() == [("a", {"n": 0})]
    thread.join(30)
    assert inbox.take() == [("a", {"n": 1})]


def test_closing_lets_go_who_is_held_back_and_takes_nothing_more() -> None:
    inbox = Inbox(nobody, most_messages=1, patience_seconds=30)
    inbox.put("a", {"n": 0})
    thread = threading.Thread(target=inbox.put, args=("a", {"n": 1}), daemon=True)
    thread.start()
    inbox.close()
    thread.join(30)
    assert not thread.is_alive()
    inbox.put("b", {"n": 2})
    assert inbox.take() == []
