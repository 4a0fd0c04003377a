"""Three members on loopback: order, at most once, who takes over from whom, bounds, heartbeats, and a clean end."""

from __future__ import annotations

import threading

import grpc
import pytest

from consensus.clock import monotonic
from consensus.raft import outbound
from consensus.raft.inbound import Membership
from consensus.raft.links import MAX_FRAME_BYTES
from consensus.raft.transport import GrpcTransport
from tests.consensus.raft.members import CALM, CLUSTER_ID, Member, cluster, credentials_of, eventually

NAMES = ("eu-1", "us-1", "ap-1")


def test_messages_arrive_in_order_from_everybody_at_everybody() -> None:
    with cluster(*NAMES) as made:
        for n in range(300):
            for name in NAMES:
                for peer in made[name].peers:
                    assert made[name].send(peer, n)
        for name in NAMES:
            witness = made[name].witness
            for peer in made[name].peers:
                witness.wait(lambda witness=witness, peer=peer: len(witness.of(peer)) >= 300)  # type: ignore[misc]
                assert witness.of(peer) == list(range(300))


def test_values_of_msgpack_arrive_as_they_were_but_lists_as_tuples() -> None:
    message = {"bytes": b"\xff\x00", "text": "ä", "list": [1, [2.5, None]], "map": {"a": True}, "big": 2**63}
    with cluster("a", "b") as made:
        assert made["a"].transport.send("b", message)
        made["b"].witness.wait(lambda: bool(made["b"].witness.messages))
        assert made["b"].witness.messages == [("a", message | {"list": (1, (2.5, None))})]


def test_a_message_of_the_greatest_size_arrives_and_a_greater_one_is_refused() -> None:
    with cluster("a", "b") as made:
        transport, witness = made["a"].transport, made["b"].witness
        room = MAX_FRAME_BYTES - len(b"\x81\xa1n\xc6....")
        with pytest.raises(ValueError, match="at most"):
            transport.send("b", {"n": bytes(room + 1)})
        assert transport.send("b", {"n": bytes(room)})
        witness.wait(lambda: bool(witness.messages))
        assert witness.of("a") == [bytes(room)]
        with pytest.raises(KeyError):
            transport.send("c", {})
        with pytest.raises(TypeError):
            transport.send("b", {"n": object()})


def test_nothing_arrives_twice_or_out_of_order_across_reconnects() -> None:
    with cluster("a", "b") as made:
        sender, witness = made["a"], made["b"].witness
        n = 0
        for round_ in range(4):
            until = len(witness.messages) + 50
            while len(witness.messages) < until:
                n += sender.send("b", n)
            made.relays["b"].cut()
            made.relays["b"].mend()
            sender.witness.wait(lambda cuts=round_ + 1: sender.witness.links.count(("b", False)) == cuts)  # type: ignore[misc]
            sender.wait_linked("b")
        assert sender.send("b", "last")
        witness.wait(lambda: "last" in witness.of("a"))
        *received, _ = witness.of("a")
        assert received == sorted(set(received))
        assert len(received) >= 200
        assert sender.witness.links == [("b", True), *[("b", False), ("b", True)] * 4]


def test_without_a_link_messages_are_lost_at_once_and_do_not_come_later() -> None:
    with cluster("a", "b") as made:
        sender = made["a"]
        made.relays["b"].cut()
        sender.wait_linked("b", up=False)
        assert not sender.send("b", "lost")
        made.relays["b"].mend()
        sender.wait_linked("b")
        assert sender.send("b", "kept")
        made["b"].witness.wait(lambda: bool(made["b"].witness.messages))
        assert made["b"].witness.of("a") == ["kept"]


def test_a_newer_stream_takes_over_while_the_older_one_still_stands() -> None:
    """The wire to the older stream is frozen, not broken: its bytes come later, and must not be received then."""
    with cluster("a", "b", heartbeat=0.3) as made:
        sender, witness = made["a"], made["b"].witness
        witness_saw = threading.Event()
        may_go_on = threading.Event()

        def hold(peer: str, message: dict[str, object]) -> None:
            if message["n"] == 1:
                witness_saw.set()
                assert may_go_on.wait(30)

        witness.hold = hold
        for n in (1, 2, 3):
            assert sender.send("b", n)
        assert witness_saw.wait(30)
        sender.wait_linked("b", up=False)  # its heartbeats wait behind message 1
        sender.wait_linked("b")
        assert sender.send("b", 4)
        may_go_on.set()
        witness.wait(lambda: 4 in witness.of("a"))
        assert witness.of("a") == [1, 4]


def test_a_restarted_member_is_received_from_its_first_message_on() -> None:
    with cluster("a", "b") as made:
        witness = made["b"].witness
        assert made["a"].send("b", "before")
        witness.wait(lambda: witness.of("a") == ["before"])
        made["a"].transport.close()
        restarted = made.begin("a", incarnation=2)
        restarted.wait_linked("b")
        assert restarted.send("b", "after")
        witness.wait(lambda: witness.of("a") == ["before", "after"])
        made["b"].witness.wait(lambda: made["b"].witness.links[-2:] == [("a", False), ("a", True)])


def test_the_queue_is_bounded_by_count_and_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbound, "QUEUE_MESSAGES", 100)
    with cluster("a", "b", heartbeat=60.0) as made:  # the frozen link must not be given up meanwhile
        made.relays["b"].freeze()
        sent = 0
        while made["a"].send("b", bytes(100_000)):
            sent += 1
        assert sent >= 100
        assert sent < 300, "what gRPC and the sockets hold comes on top, and is bounded too"
    monkeypatch.undo()
    with cluster("a", "b", heartbeat=60.0) as made:  # the frozen link must not be given up meanwhile
        made.relays["b"].freeze()
        sent = 0
        while made["a"].send("b", bytes(4 * 1024 * 1024)):
            sent += 1
        assert 7 <= sent <= 24, "seven fit into the queue, if the link has taken none of them yet"


def test_a_slow_receiver_holds_its_sender_back_but_not_the_others() -> None:
    go_on = threading.Event()
    with cluster(*NAMES) as made:

        def hold(peer: str, message: dict[str, object]) -> None:
            if peer == "eu-1":
                assert go_on.wait(30)

        made["us-1"].witness.hold = hold
        sent = 0
        while made["eu-1"].send("us-1", bytes(1024 * 1024)):
            sent += 1
        assert sent < 100
        assert made["ap-1"].send("us-1", 1)
        made["us-1"].witness.wait(lambda: made["us-1"].witness.of("ap-1") == [1])
        assert made["us-1"].witness.of("eu-1") == []
        go_on.set()
        made["us-1"].witness.wait(lambda: len(made["us-1"].witness.of("eu-1")) == sent)


def test_the_round_trip_is_measured() -> None:
    with cluster("a", "b", heartbeat=CALM) as made:
        transport = made["a"].transport
        eventually(lambda: transport.round_trip_seconds("b") is not None)
        measured = transport.round_trip_seconds("b")
        assert measured is not None
        assert 0 < measured < 4 * CALM
        made.relays["b"].cut()
        made["a"].wait_linked("b", up=False)
        assert transport.round_trip_seconds("b") is not None


def test_a_link_that_went_silent_is_noticed_in_three_to_six_heartbeats_and_comes_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    heartbeat = 0.3
    with cluster("a", "b", heartbeat=heartbeat) as made:
        sender = made["a"]
        eventually(lambda: sender.transport.round_trip_seconds("b") is not None)
        made.relays["b"].freeze()
        began = monotonic()
        sender.wait_linked("b", up=False)
        # More than the last three on a machine that is busy.
        assert 2.5 * heartbeat < monotonic() - began < 6 * heartbeat + 1.0
        eventually(lambda: "SILENT" in [vars(record).get("status") for record in caplog.records])
        made.relays["b"].mend()
        sender.wait_linked("b")
        assert sender.send("b", 1)
        made["b"].witness.wait(lambda: made["b"].witness.of("a") == [1])


def test_a_slow_link_is_not_a_dead_one() -> None:
    """What is on its way takes longer than a link may be silent, and heartbeats travel behind it."""
    with cluster("a", "b", heartbeat=0.4) as made:
        made.relays["b"].bytes_per_second = 4 * 1024 * 1024
        for n in range(40):
            assert made["a"].transport.send("b", {"n": n, "bulk": bytes(256 * 1024)})
        made["b"].witness.wait(lambda: len(made["b"].witness.messages) == 40)
        assert made["b"].witness.of("a") == list(range(40))
        assert made["a"].witness.links == [("b", True)]


def test_it_keeps_calling_whom_it_cannot_reach_with_pauses_that_are_bounded() -> None:
    with cluster("a", "b") as made:
        relay = made.relays["b"]
        relay.cut()
        before = relay.accepted
        made["a"].wait_linked("b", up=False)
        eventually(lambda: relay.accepted >= before + 3)
        assert made["a"].witness.links == [("b", True), ("b", False)], "told once"
        relay.mend()
        began = monotonic()
        made["a"].wait_linked("b")
        assert monotonic() - began < outbound.MOST_PAUSE_SECONDS + 2


def test_closing_ends_every_thread_and_tells_nothing_more() -> None:
    with cluster("warm", "up"):
        pass  # gRPC starts threads of its own once, and keeps them
    eventually(lambda: not [each for each in threading.enumerate() if "grpc" in each.name.lower()])
    before = set(threading.enumerate())
    with cluster(*NAMES) as made:
        assert made["eu-1"].send("us-1", 1)
        made["us-1"].witness.wait(lambda: made["us-1"].witness.of("eu-1") == [1])
        made.relays["ap-1"].freeze()
        told = list(made["eu-1"].witness.links)
        ours = {each for each in threading.enumerate() if each.name.startswith("raft-")}
        assert {"raft-pulse", "raft-link-us-1", "raft-call-us-1"} <= {each.name for each in ours}
        assert all(each.daemon for each in set(threading.enumerate()) - before)
        for name in NAMES:
            began = monotonic()
            made[name].transport.close()
            made[name].transport.close()
            assert monotonic() - began < 3
        assert not made["eu-1"].send("us-1", 2)
        assert made["eu-1"].witness.links == told
        assert not [each for each in threading.enumerate() if each.name.startswith("raft-")]
    eventually(lambda: set(threading.enumerate()) <= before)


def test_closing_does_not_wait_for_ever_for_a_receiver_that_is_stuck() -> None:
    go_on, stuck = threading.Event(), threading.Event()

    def hold(peer: str, message: dict[str, object]) -> None:
        stuck.set()
        assert go_on.wait(30)

    with cluster("a", "b") as made:
        made["b"].witness.hold = hold
        assert made["a"].send("b", 1)
        assert stuck.wait(30)
        began = monotonic()
        made["b"].transport.close()
        assert monotonic() - began < 3
        go_on.set()


def test_what_was_never_started_can_be_closed_and_frees_its_address() -> None:
    first = GrpcTransport("a", "127.0.0.1:0", {}, CLUSTER_ID, credentials_of("a"), incarnation=1)
    with pytest.raises(OSError, match="cannot listen on 127"):
        GrpcTransport("a", first.address, {}, CLUSTER_ID, credentials_of("a"), incarnation=2)
    first.close()
    first.start(lambda peer, message: None, lambda peer, up: None)
    again = GrpcTransport("a", first.address, {}, CLUSTER_ID, credentials_of("a"), incarnation=2)
    again.close()


def test_other_services_stand_on_the_same_port_and_know_who_calls() -> None:
    membership = Membership("a", frozenset({"b"}), CLUSTER_ID)

    def who(request: bytes, context: grpc.ServicerContext) -> bytes:
        return request + membership.caller(context).encode()

    handler = grpc.method_handlers_generic_handler("Other", {"Who": grpc.unary_unary_rpc_method_handler(who)})
    member = Member("a", {"b": "127.0.0.1:1"}, handlers=[handler])
    member.start()
    keys = credentials_of("b")
    secured = grpc.ssl_channel_credentials(keys.ca, keys.key, keys.certificate)
    options = [("grpc.ssl_target_name_override", f"a.{CLUSTER_ID}.meridian")]
    try:
        with grpc.secure_channel(member.transport.address, secured, options) as channel:
            assert channel.unary_unary("/Other/Who", None, None)(b"I am ", timeout=30) == b"I am b"
    finally:
        member.transport.close()
