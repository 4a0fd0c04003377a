from __future__ import annotations

import threading
from typing import Any

import pytest

from consensus.raft.handshake import Hello, Reason, Refused
from consensus.raft.inbound import STREAMS_OF_A_PEER, Seat
from consensus.raft.links import Message

CLUSTER = "0" * 32


class Stream:
    """As much of a gRPC context as a seat needs."""

    cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


def taken(seat: Seat, generation: int, incarnation: int = 1) -> Any:
    stream: Any = Stream()
    seat.take(Hello(CLUSTER, incarnation, generation), stream)
    return stream


def test_only_the_newest_stream_delivers_and_the_older_one_is_ended() -> None:
    seat, received = Seat(), list[Message]()

    def receive(peer: str, message: Message) -> None:
        received.append(message)

    older = taken(seat, 1)
    assert seat.deliver(older, {"n": 1}, receive, "a")
    newer = taken(seat, 2)
    assert older.cancelled
    assert not newer.cancelled
    assert not seat.deliver(older, {"n": 2}, receive, "a")
    seat.leave(older)
    assert seat.deliver(newer, {"n": 3}, receive, "a")
    assert received == [{"n": 1}, {"n": 3}]


def test_what_waited_for_its_turn_is_dropped_when_a_newer_stream_took_over_meanwhile() -> None:
    seat, received = Seat(), list[Message]()
    inside, go_on = threading.Event(), threading.Event()

    def receive(peer: str, message: Message) -> None:
        received.append(message)
        inside.set()
        assert go_on.wait(30)

    streams = [taken(seat, 1)]
    threads = [threading.Thread(target=seat.deliver, args=(streams[0], {"n": 0}, receive, "a"), daemon=True)]
    threads[0].start()
    assert inside.wait(30)
    for n in (1, 2):  # the first of them cannot deliver before the second has taken over
        streams.append(taken(seat, n + 1))
        threads.append(threading.Thread(target=seat.deliver, args=(streams[n], {"n": n}, receive, "a"), daemon=True))
        threads[n].start()
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert received == [{"n": 0}, {"n": 2}]


@pytest.mark.parametrize(("incarnation", "generation"), [(2, 5), (2, 4), (1, 9), (1, 5)])
def test_what_is_not_newer_is_refused_also_after_the_newest_has_left(incarnation: int, generation: int) -> None:
    seat = Seat()
    seat.leave(taken(seat, 5, incarnation=2))
    with pytest.raises(Refused) as error:
        taken(seat, generation, incarnation)
    assert error.value.reason is Reason.OUTDATED


def test_streams_on_their_way_out_are_counted() -> None:
    seat = Seat()
    streams = [taken(seat, generation) for generation in range(STREAMS_OF_A_PEER)]
    with pytest.raises(Refused) as error:
        taken(seat, 99)
    assert error.value.reason is Reason.TOO_MANY
    seat.leave(streams[0])
    taken(seat, 99)


def test_nothing_is_delivered_or_taken_after_the_end() -> None:
    seat, received = Seat(), list[Message]()
    stream = taken(seat, 1)
    seat.clear(0.0)
    assert not seat.deliver(stream, {}, lambda peer, message: received.append(message), "a")
    with pytest.raises(Refused):
        taken(seat, 2)
    assert received == []
