"""What a hostile peer can do to a member: get its connection closed, and nothing else.

Each case goes against member b of a working cluster {a, b}; c is a member of the configuration whose certificate the
intruder may hold. After each, a and b still talk over the link that they had, and b has received nothing else.
"""

from __future__ import annotations

import gzip
import os
import socket
import ssl
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import msgpack
import pytest

from consensus.raft.frames import mark
from consensus.raft.handshake import Reason
from consensus.raft.inbox import Inbox
from consensus.raft.links import MAX_ELEMENTS, MAX_FRAME_BYTES, MAX_LENGTH
from consensus.raft.transport import Credentials
from node.authority import Authority
from tests.consensus.raft.intruder import (
    Metadata,
    call_by_hand,
    frame_by_hand,
    hello,
    intruder,
    is_closed,
    tls,
)
from tests.consensus.raft.members import AUTHORITY, Cluster, Member, credentials_of, eventually

FOREIGN = replace(Authority.create(), cluster_id=AUTHORITY.cluster_id)  # says that it is ours
SIBLING = replace(AUTHORITY, cluster_id="0" * 32)  # one authority that serves two clusters
MEMBER = credentials_of("c")
GIBIBYTE = 1024**3
PICKLE = b"\x80\x04cos\nsystem\n\x8c\x06exit 1\x85R."  # would call os.system

Denied = grpc.StatusCode.PERMISSION_DENIED
Invalid = grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture
def made(caplog: pytest.LogCaptureFixture) -> Iterator[Cluster]:
    caplog.set_level("WARNING", "consensus.raft")
    with ExitStack() as stack:
        made = Cluster(stack, ("a", "b", "c"))
        made.begin("a")
        made.begin("b")
        made["a"].wait_linked("b")
        made["b"].wait_linked("a")
        caplog.clear()
        yield made
        assert made["a"].send("b", "still")
        made["b"].witness.wait(lambda: "still" in made["b"].witness.of("a"))
        assert [link for link in made["a"].witness.links if link[0] == "b"] == [("b", True)]


def victim(made: Cluster) -> str:
    return made["b"].transport.address


def refusals(caplog: pytest.LogCaptureFixture) -> list[str]:
    records = [record for record in caplog.records if record.getMessage() == "raft_stream_refused"]
    assert all({"peer", "address", "detail", "suppressed"} <= set(vars(record)) for record in records)
    return [vars(record)["reason"] for record in records]


# --- before a stream: TLS ---


def test_bytes_that_are_no_tls_close_the_connection(made: Cluster) -> None:
    host, _, port = victim(made).rpartition(":")
    for sent in (os.urandom(4096), PICKLE, b"GET / HTTP/1.1\r\n\r\n", call_by_hand(hello())):
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(sent)
            assert is_closed(connection)


@pytest.mark.parametrize("who", ["nobody", "foreign"])
def test_without_a_certificate_of_the_authority_the_connection_is_closed(who: str, made: Cluster) -> None:
    credentials = credentials_of("c", FOREIGN) if who == "foreign" else None
    try:
        connection = tls(victim(made), credentials, ca=MEMBER.ca)
    except (ConnectionError, ssl.SSLError):
        return
    with connection:  # in TLS 1.3 the client learns of it with its first read
        assert is_closed(connection)
    assert not made["b"].witness.of("c")


def test_an_old_tls_is_refused(made: Cluster) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    host, _, port = victim(made).rpartition(":")
    with socket.create_connection((host, int(port)), timeout=30) as plain, pytest.raises((ssl.SSLError, OSError)):
        context.wrap_socket(plain)


def test_connections_that_say_nothing_do_not_disturb_the_others(made: Cluster) -> None:
    host, _, port = victim(made).rpartition(":")
    with ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(socket.create_connection((host, int(port)), timeout=30))
        for n in range(100):
            assert made["a"].send("b", n)
        made["b"].witness.wait(lambda: len(made["b"].witness.messages) == 100)


# --- who it is, and what it says of itself ---

STRANGERS: dict[str, tuple[Credentials, Metadata, grpc.StatusCode, Reason]] = {
    "another cluster's certificate": (credentials_of("c", SIBLING), hello(), Denied, Reason.OTHER_CLUSTER),
    "no member": (credentials_of("d"), hello(), Denied, Reason.NO_MEMBER),
    "says it is us": (credentials_of("b"), hello(), Denied, Reason.OURSELVES),
    "another cluster's handshake": (MEMBER, hello(cluster_id="f" * 32), Denied, Reason.OTHER_CLUSTER),
    "no handshake": (MEMBER, (), Invalid, Reason.BAD_HANDSHAKE),
    "half a handshake": (MEMBER, hello()[:3], Invalid, Reason.BAD_HANDSHAKE),
    "two handshakes": (MEMBER, hello() + hello(2), Invalid, Reason.BAD_HANDSHAKE),
    "a negative number": (MEMBER, hello(-1), Invalid, Reason.BAD_HANDSHAKE),
    "a number that is too large": (MEMBER, hello(10**19), Invalid, Reason.BAD_HANDSHAKE),
    "another protocol": (
        MEMBER,
        (("meridian-protocol", "2"), *hello()[1:]),
        grpc.StatusCode.UNIMPLEMENTED,
        Reason.OTHER_PROTOCOL,
    ),
}


@pytest.mark.parametrize("case", STRANGERS)
def test_a_stranger_is_turned_away(case: str, made: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    credentials, metadata, status, reason = STRANGERS[case]
    for _ in range(5):
        with intruder(victim(made), credentials, metadata) as stranger:
            stranger.send(msgpack.packb({"n": 1}))
            assert stranger.end() is status
    assert refusals(caplog) == [reason], "one line for the five"
    assert not made["b"].witness.of("c")


def test_the_name_in_the_certificate_counts_not_the_one_given(made: Cluster) -> None:
    with intruder(victim(made), MEMBER, (*hello(), ("member", "a"), ("peer", "a"))) as peer:
        assert peer.accepted()
        peer.send(msgpack.packb({"n": 7}))
        made["b"].witness.wait(lambda: bool(made["b"].witness.messages))
    assert made["b"].witness.messages == [("c", {"n": 7})]


@pytest.mark.parametrize("older", [hello(5), hello(4), hello(9, incarnation=10**6 - 1)], ids=str)
def test_a_stream_that_is_replayed_or_older_is_refused_and_the_newer_one_goes_on(
    older: Metadata, made: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    witness = made["b"].witness
    with intruder(victim(made), MEMBER, hello(5)) as newest:
        assert newest.accepted()
        newest.send(msgpack.packb({"n": 1}))
        with intruder(victim(made), MEMBER, older) as replayed:
            replayed.send(msgpack.packb({"n": 1}))
            assert replayed.end() is grpc.StatusCode.ALREADY_EXISTS
        newest.send(msgpack.packb({"n": 2}))
        witness.wait(lambda: witness.of("c") == [1, 2])
    assert refusals(caplog) == [Reason.OUTDATED]


def test_a_replay_after_the_end_is_refused(made: Cluster) -> None:
    with intruder(victim(made), MEMBER, hello(5)) as first:
        assert first.accepted()
    with intruder(victim(made), MEMBER, hello(5)) as replayed:
        assert replayed.end() is grpc.StatusCode.ALREADY_EXISTS


def test_streams_opened_in_a_row_end_each_other(made: Cluster) -> None:
    with ExitStack() as stack:
        for generation in range(1, 40):
            newest = stack.enter_context(intruder(victim(made), MEMBER, hello(generation)))
            assert newest.accepted()
        newest.send(msgpack.packb({"n": 1}))
        made["b"].witness.wait(lambda: made["b"].witness.of("c") == [1])
        # All but the newest of c, and the one of a.
        name = "raft-call-b"
        eventually(lambda: sum(thread.name == name for thread in threading.enumerate()) == 2)


# --- what it sends ---

DEEP = b"\x81\xa1n" + b"\x91" * 100_000 + b"\xc0"
FRAMES = {
    "garbage": b"\xff\xfe" + os.urandom(1000),
    "nothing": b"",
    "a pickle": PICKLE,
    "a pickle in a frame": msgpack.packb(PICKLE),
    "a list": msgpack.packb([{"n": 1}]),
    "a number for a key": b"\x81\x01\x01",
    "bytes for a key": msgpack.packb({b"n": 1}),
    "two maps": msgpack.packb({"n": 1}) * 2,
    "half a map": msgpack.packb({"n": 1})[:-1],
    "text that is none": b"\x81\xa1n\xa1\xff",
    "too deep": DEEP,
    "too long a list": msgpack.packb({"n": [None] * (MAX_LENGTH + 1)}),
    "too long a map": msgpack.packb({str(n): None for n in range(MAX_LENGTH + 1)}),
    "a list that says it is long": b"\x81\xa1n\xdd\xff\xff\xff\xff",
    "a map that says it is long": b"\xdf\xff\xff\xff\xff",
    "bytes that say they are long": b"\x81\xa1n\xc6\xff\xff\xff\xff",
    "too many in all": msgpack.packb({"n": [[{}] * MAX_LENGTH] * (MAX_ELEMENTS // MAX_LENGTH + 1)}),
    "an extension": msgpack.packb({"n": msgpack.ExtType(1, b"x")}),
    "a time": msgpack.packb({"n": msgpack.Timestamp(1)}),
    "a heartbeat that is too long": mark(1) + b"x",
    "a heartbeat that is too short": mark(1)[:3],
}


@pytest.mark.parametrize("case", FRAMES)
def test_a_frame_that_is_no_message_ends_the_stream(case: str, made: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    before = resident_bytes()
    with intruder(victim(made), MEMBER, hello()) as peer:
        assert peer.accepted()
        peer.send(FRAMES[case], msgpack.packb({"n": "after"}))
        assert peer.end() is Invalid
    assert resident_bytes() - before < 16 * 1024 * 1024
    assert refusals(caplog) == [Reason.BAD_FRAME]
    assert not made["b"].witness.messages


def test_compressed_frames_are_not_unpacked(made: Cluster) -> None:
    bomb = {"n": bytes(MAX_FRAME_BYTES - 100)}
    assert len(gzip.compress(msgpack.packb(bomb))) < 20_000
    with intruder(victim(made), MEMBER, hello(), compression=grpc.Compression.Gzip) as peer:
        peer.send(msgpack.packb(bomb))
        assert peer.end() is Invalid
    assert not made["b"].witness.messages


def test_a_frame_over_the_limit_ends_the_stream(made: Cluster) -> None:
    with intruder(victim(made), MEMBER, hello()) as peer:
        assert peer.accepted()
        peer.send(msgpack.packb({"n": bytes(MAX_FRAME_BYTES)}))
        assert peer.end() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert not made["b"].witness.messages


def test_a_frame_of_a_gigabyte_ends_the_stream_before_it_is_there(made: Cluster) -> None:
    before = resident_bytes()
    with tls(victim(made), MEMBER, ca=MEMBER.ca) as connection:
        connection.sendall(call_by_hand(hello()) + frame_by_hand(GIBIBYTE, bytes(16000)))
        eventually(lambda: status_of(connection) == b"8")  # RESOURCE_EXHAUSTED
    assert resident_bytes() - before < 32 * 1024 * 1024
    assert not made["b"].witness.messages


def status_of(connection: ssl.SSLSocket) -> bytes | None:
    """The value of grpc-status in what arrives next; trailers are literals with a plain or a Huffman-coded name."""
    arrived = connection.recv(65536)
    for name in (b"grpc-status", b"\x9a\xca\xc8\xb2\x12\x34\xda\x8f"):
        _, found, after = arrived.partition(name)
        if found:
            return after[1:2]
    return None


# --- floods ---


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_flood_is_bounded_by_what_the_receiver_takes(made: Cluster) -> None:
    megabyte = msgpack.packb({"n": bytes(1024 * 1024)})
    go_on = threading.Event()

    def hold(peer: str, message: dict[str, object]) -> None:
        if peer == "c":
            assert go_on.wait(30)

    made["b"].witness.hold = hold
    before = resident_bytes()
    with intruder(victim(made), MEMBER, hello()) as peer:
        assert peer.accepted()
        peer.send(*[megabyte] * 200)
        for n in range(50):
            assert made["a"].send("b", n)
        made["b"].witness.wait(lambda: len(made["b"].witness.of("a")) == 50)
        assert peer.taken < 100, "the rest waits at the sender"
        assert resident_bytes() - before < 128 * 1024 * 1024
        go_on.set()


def test_a_flood_into_an_inbox_that_nobody_empties_stays_within_its_bound() -> None:
    inbox = Inbox(lambda: None, most_bytes=4 * 1024 * 1024)
    member = Member("b", {"a": "127.0.0.1:1", "c": "127.0.0.1:1"})
    member.transport.start(inbox.put, lambda peer, up: None)
    frame = msgpack.packb({"n": bytes(512 * 1024)})
    try:
        with intruder(member.transport.address, MEMBER, hello()) as peer:
            peer.send(*[frame] * 50, mark(1))
            assert peer.accepted()
            assert peer.answer() == mark(1), "heartbeats are answered all the same"
        assert inbox.dropped >= 40
        with intruder(member.transport.address, credentials_of("a"), hello()) as good:
            assert good.accepted()
            good.send(msgpack.packb({"n": "mine"}), mark(2))
            assert good.answer() == mark(2)
        assert inbox.take()[-1] == ("a", {"n": "mine"})
    finally:
        inbox.close()
        member.transport.close()


def test_a_flood_of_heartbeats_is_answered_one_by_one(made: Cluster) -> None:
    with intruder(victim(made), MEMBER, hello()) as peer:
        assert peer.accepted()
        peer.send(*[mark(n) for n in range(1, 1001)])
        assert [peer.answer() for _ in range(1000)] == [mark(n) for n in range(1, 1001)]


# --- whom we call ---


def test_who_answers_with_another_members_certificate_is_not_linked(made: Cluster) -> None:
    """The address of c leads to a."""
    made.relays["c"].target = made["a"].transport.address
    eventually(lambda: made.relays["c"].accepted > 2)
    assert not made["b"].send("c", 1)
    assert ("c", True) not in made["b"].witness.links
    assert not made["a"].witness.of("b")


ANSWERS = {"no mark": b"hello", "a wrong mark": mark(5), "a message": msgpack.packb({"n": 1}), "1 MiB": bytes(1024**2)}


@pytest.mark.parametrize("case", ANSWERS)
def test_who_answers_what_nobody_asked_is_not_linked(case: str, made: Cluster) -> None:
    seen = threading.Semaphore(0)

    def answer(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        seen.release()
        yield ANSWERS[case]
        yield from requests

    with _server_of("c", answer) as address:
        made.relays["c"].target = address
        for _ in range(4):  # a and b, each again
            assert seen.acquire(timeout=30)
    assert not [each for name in ("a", "b") for each in made[name].witness.links if each == ("c", True)]


@contextmanager
def _server_of(
    member: str, behaviour: Callable[[Iterator[bytes], grpc.ServicerContext], Iterator[bytes]]
) -> Iterator[str]:
    credentials = credentials_of(member)
    handler = grpc.method_handlers_generic_handler(
        "meridian.Raft", {"Stream": grpc.stream_stream_rpc_method_handler(behaviour)}
    )
    with ThreadPoolExecutor(8) as threads:
        server = grpc.server(threads, handlers=[handler])
        secured = grpc.ssl_server_credentials([(credentials.key, credentials.certificate)], credentials.ca, True)
        port = server.add_secure_port("127.0.0.1:0", secured)
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(0).wait(10)
