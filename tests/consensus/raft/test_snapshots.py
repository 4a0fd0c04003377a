"""A snapshot gets from one node to another over a real connection, whatever befalls connection, bytes and senders."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import msgpack
import pytest

from consensus.archive import Archive
from consensus.errors import SnapshotFull, SnapshotRefused, SnapshotUnavailable
from consensus.partial import Partial
from consensus.raft import snapshots
from consensus.raft.snapshots import SERVICE, Fetching, SnapshotService
from consensus.snapshot import CHUNK_BYTES, Manifest
from consensus.state import State
from tests.consensus import states_made
from tests.consensus.states_made import CLUSTER, take

Answer = Callable[[bytes, grpc.ServicerContext], Iterator[bytes]]


@dataclass(frozen=True)
class Sender:
    """A node that keeps a snapshot and serves it."""

    archive: Archive
    state: State

    def take(self, upto: int) -> Manifest:
        states_made.advance(self.state, upto)
        return take(self.archive, self.state, term=2)


@contextmanager
def sender(folder: Path) -> Iterator[Sender]:
    with closing(State.open(folder / "state", CLUSTER)) as state:
        yield Sender(Archive.open(folder / "state" / "snapshots"), state)


@contextmanager
def served(answer: Answer | SnapshotService, *, port: int = 0, threads: int = 8) -> Iterator[tuple[grpc.Channel, int]]:
    """A channel to a server of its own, and its port."""
    if isinstance(answer, SnapshotService):
        handler = answer.handler()
    else:
        methods = {"Read": grpc.unary_stream_rpc_method_handler(answer)}
        handler = grpc.method_handlers_generic_handler(SERVICE, methods)
    server = grpc.server(ThreadPoolExecutor(threads), options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((handler,))
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        with channel_to(bound) as channel:
            yield channel, bound
    finally:
        server.stop(None).wait()


@contextmanager
def channel_to(port: int) -> Iterator[grpc.Channel]:
    options = [
        ("grpc.initial_reconnect_backoff_ms", 20),
        ("grpc.min_reconnect_backoff_ms", 20),
        ("grpc.max_reconnect_backoff_ms", 50),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options) as channel:
        yield channel


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Sender]:
    with sender(tmp_path / "a") as made:
        yield made


@pytest.fixture
def partial(tmp_path: Path) -> Iterator[Partial]:
    with closing(Partial.open(tmp_path / "incoming")) as opened:
        yield opened


def real(node: Sender) -> SnapshotService:
    return SnapshotService(node.archive, CLUSTER)


def head_of(manifest: Manifest, offset: int = 0) -> bytes:
    packed: bytes = msgpack.packb(("ok", manifest.encode(), offset))
    return packed


def content_of(node: Sender) -> bytes:
    reading, _ = node.archive.read()
    with closing(reading):
        return b"".join(iter_chunks(reading.chunk))


def iter_chunks(chunk: Callable[[int], bytes]) -> Iterator[bytes]:
    offset = 0
    while found := chunk(offset):
        yield found
        offset += len(found)


def fetch(partial: Partial, *channels: grpc.Channel, after: int = 0, seconds: float = 60.0) -> None:
    Fetching(partial, CLUSTER, after=after).fetch(channels, seconds=seconds)


# From end to end


def test_a_snapshot_goes_to_another_node_and_becomes_its_state(tmp_path: Path, node: Sender, partial: Partial) -> None:
    manifest = node.take(3000)
    with closing(State.open(tmp_path / "b", CLUSTER)) as state, served(real(node)) as (channel, _):
        states_made.advance(state, 10)
        fetch(partial, channel, after=state.applied)
        verified = partial.verify(CLUSTER)
        assert verified.manifest == manifest
        state.install(verified)
        partial.discard()
        states_made.advance(state, 3010)
        assert state.hash() == states_made.hash_at(3010)


def test_many_receivers_share_one_snapshot(tmp_path: Path, node: Sender) -> None:
    manifest = node.take(2000)

    def receive(number: int) -> str:
        with closing(Partial.open(tmp_path / f"incoming-{number}")) as partial:
            fetch(partial, channel)
            return partial.verify(CLUSTER).manifest.name

    with served(real(node)) as (channel, _), ThreadPoolExecutor(8) as pool:
        assert set(pool.map(receive, range(8))) == {manifest.name}  # twice as many as are served at a time


# Streams that break off


class Flaky:
    """Serves the right bytes, but only some chunks a call; remembers where each call began."""

    def __init__(self, node: Sender, *, chunks: int, wrong: bool = False) -> None:
        self.node = node
        self.chunks = chunks
        self.wrong = wrong
        self.starts: list[int] = []

    def __call__(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        _, name, offset, _ = msgpack.unpackb(request)
        reading, start = self.node.archive.read(name, offset)
        self.starts.append(start)
        with closing(reading):
            yield head_of(reading.manifest, start)
            for number in range(self.chunks):
                yield reading.chunk(start + number * CHUNK_BYTES)
            if self.wrong:
                yield bytes(CHUNK_BYTES)
        context.abort(grpc.StatusCode.UNAVAILABLE, "cut")


@pytest.mark.parametrize("wrong", [False, True], ids=["cut", "wrong bytes"])
def test_a_stream_that_ends_badly_goes_on_at_its_last_chunk(node: Sender, partial: Partial, wrong: bool) -> None:
    node.take(3000)
    flaky = Flaky(node, chunks=1, wrong=wrong)
    with served(flaky) as (channel, _):
        fetch(partial, channel)
    assert partial.verify(CLUSTER).path.read_bytes() == content_of(node)
    assert flaky.starts == list(range(0, len(flaky.starts) * CHUNK_BYTES, CHUNK_BYTES))
    assert len(flaky.starts) > 2


def test_a_sender_that_restarts_goes_on_with_the_snapshot_it_kept(
    tmp_path: Path, node: Sender, partial: Partial
) -> None:
    manifest = node.take(3000)
    with served(Flaky(node, chunks=2)) as (channel, port):
        receive_until_cut(partial, channel)
    assert partial.offset == 2 * CHUNK_BYTES
    restarted = Sender(Archive.open(tmp_path / "a" / "state" / "snapshots"), node.state)
    flaky = Flaky(restarted, chunks=100)
    with served(flaky, port=port), channel_to(port) as again:
        fetch(partial, again)
    assert flaky.starts == [2 * CHUNK_BYTES]
    assert partial.verify(CLUSTER).manifest == manifest


def receive_until_cut(partial: Partial, channel: grpc.Channel) -> None:
    with pytest.raises(SnapshotUnavailable, match="broke off"):
        Fetching(partial, CLUSTER, after=0)._receive(channel, 30.0)


def test_a_receiver_whose_snapshot_has_vanished_begins_anew_with_the_newest(node: Sender, partial: Partial) -> None:
    node.take(2000)
    with served(Flaky(node, chunks=1)) as (channel, _):
        receive_until_cut(partial, channel)
    newest = node.take(3000)
    with served(real(node)) as (channel, _):
        fetch(partial, channel)
    assert partial.verify(CLUSTER).manifest == newest


def test_another_sender_takes_over_when_one_is_gone_for_good(tmp_path: Path, node: Sender, partial: Partial) -> None:
    node.take(2000)
    with served(Flaky(node, chunks=1)) as (channel, port):
        receive_until_cut(partial, channel)
    with sender(tmp_path / "b") as other, served(real(other)) as (second, _), channel_to(port) as dead:
        manifest = other.take(2500)
        fetch(partial, dead, second)
    assert partial.verify(CLUSTER).manifest == manifest


def test_a_sender_that_only_ever_sends_wrong_bytes_is_left_for_another(node: Sender, partial: Partial) -> None:
    node.take(2000)
    with served(Flaky(node, chunks=0, wrong=True)) as (liar, _), served(real(node)) as (channel, _):
        fetch(partial, liar, channel)
    assert partial.complete


@pytest.mark.parametrize(
    "messages",
    [[], [b""], [b"\xc1"], [msgpack.packb(["ok"])], [msgpack.packb(["ok", b"garbage", 0])], [bytes(CHUNK_BYTES)]],
    ids=["nothing", "empty", "no msgpack", "short", "no manifest", "a chunk first"],
)
def test_garbage_is_refused_and_another_sender_asked(node: Sender, partial: Partial, messages: list[bytes]) -> None:
    node.take(500)

    def garbage(_: bytes, __: grpc.ServicerContext) -> Iterator[bytes]:
        yield from messages

    with served(garbage) as (liar, _), served(real(node)) as (channel, _):
        fetch(partial, liar, channel)
    assert partial.verify(CLUSTER).path.read_bytes() == content_of(node)


def test_a_stream_that_goes_on_elsewhere_than_asked_is_not_followed(node: Sender, partial: Partial) -> None:
    manifest = node.take(2000)

    def skipping(_: bytes, __: grpc.ServicerContext) -> Iterator[bytes]:
        yield head_of(manifest, CHUNK_BYTES)
        yield content_of(node)[CHUNK_BYTES : 2 * CHUNK_BYTES]

    flaky = Flaky(node, chunks=100)
    with served(skipping) as (liar, _), served(flaky) as (channel, _):
        fetch(partial, liar, channel)
    assert flaky.starts == [0]
    assert partial.verify(CLUSTER).path.read_bytes() == content_of(node)


# What is refused


def test_another_clusters_node_is_refused_on_either_side(node: Sender, partial: Partial) -> None:
    manifest = node.take(100)
    with served(real(node)) as (channel, _), pytest.raises(SnapshotRefused, match="node of another cluster"):
        Fetching(partial, "other", after=0).fetch([channel], seconds=30.0)

    def careless(_: bytes, __: grpc.ServicerContext) -> Iterator[bytes]:
        yield head_of(manifest)

    with served(careless) as (channel, _), pytest.raises(SnapshotRefused, match="is of cluster"):
        Fetching(partial, "other", after=0).fetch([channel], seconds=30.0)
    assert partial.name == ""


def test_what_is_no_newer_than_the_receivers_state_is_not_sent_but_wanted(node: Sender, partial: Partial) -> None:
    wanted: list[int] = []

    def take_one(after: int) -> None:
        wanted.append(after)
        if len(wanted) == 3:
            node.take(700)

    node.take(500)
    with served(SnapshotService(node.archive, CLUSTER, take_one)) as (channel, _):
        fetch(partial, channel, after=500)
    assert wanted == [500] * 3
    assert partial.applied == 700


def test_what_has_come_of_an_outdated_snapshot_is_forgotten(node: Sender, partial: Partial) -> None:
    node.take(2000)
    with served(Flaky(node, chunks=1)) as (channel, _):
        receive_until_cut(partial, channel)
    newest = node.take(2500)
    flaky = Flaky(node, chunks=100)
    with served(flaky) as (channel, _):
        fetch(partial, channel, after=2000)
    assert (partial.name, flaky.starts) == (newest.name, [0])


@pytest.mark.parametrize(
    ("request_", "timeout", "status"),
    [
        (b"", 9, "invalid"),
        (b"\xc1", 9, "invalid"),
        (bytes(100_000), 9, "invalid"),
        (msgpack.packb([CLUSTER, "../../etc/passwd", 0, 0]), 9, "invalid"),
        (msgpack.packb([CLUSTER, "", "0", 0]), 9, "invalid"),
        (msgpack.packb([CLUSTER, "", 0, 0]), None, "invalid"),
        (msgpack.packb([CLUSTER, "", 0, 0]), 9999, "invalid"),
        (msgpack.packb(["other", "", 0, 0]), 9, "refused"),
        (msgpack.packb([CLUSTER, "", 0, 0]), 9, "none"),
    ],
)
def test_a_request_out_of_bounds_is_answered(node: Sender, request_: bytes, timeout: float | None, status: str) -> None:
    with served(real(node)) as (channel, _):
        call = channel.unary_stream(f"/{SERVICE}/Read", None, None)
        (answer,) = call(request_, timeout=timeout)
    assert msgpack.unpackb(answer)[0] == status


# Bounds


def test_streams_are_few_and_the_next_receiver_is_told(node: Sender) -> None:
    node.take(8000)
    request = msgpack.packb([CLUSTER, "", 0, 0])
    with served(real(node)) as (channel, _):
        call = channel.unary_stream(f"/{SERVICE}/Read", None, None)
        under_way: list[Any] = [call(request, timeout=60) for _ in range(snapshots.MAX_STREAMS)]
        heads = [msgpack.unpackb(next(iter(stream)))[0] for stream in under_way]
        (busy,) = call(request, timeout=60)
        assert (heads, msgpack.unpackb(busy)[0]) == (["ok"] * snapshots.MAX_STREAMS, "busy")
        for stream in under_way:
            stream.cancel()
        while msgpack.unpackb(next(iter(call(request, timeout=60))))[0] == "busy":
            pass


def test_a_silent_sender_costs_no_more_than_its_bound(node: Sender, partial: Partial) -> None:
    node.take(500)
    ended = threading.Event()

    def silent(_: bytes, __: grpc.ServicerContext) -> Iterator[bytes]:
        ended.wait(60)
        yield b""

    with served(silent) as (mute, _), served(real(node)) as (channel, _):
        Fetching(partial, CLUSTER, after=0, stream_seconds=0.3).fetch([mute, channel], seconds=60)
        assert partial.complete
        partial.discard()
        began = time.monotonic()
        with pytest.raises(SnapshotUnavailable, match="no snapshot within"):
            fetch(partial, mute, seconds=0.5)
        assert time.monotonic() - began < 20
        ended.set()


def test_nobody_to_ask(partial: Partial) -> None:
    with pytest.raises(SnapshotUnavailable, match="no sender"):
        fetch(partial)


def test_a_transfer_can_be_cancelled_at_any_time(node: Sender, partial: Partial) -> None:
    node.take(2000)
    asked, ended = threading.Event(), threading.Event()
    content = content_of(node)
    manifest = node.archive.newest
    assert manifest is not None

    def stalling(_: bytes, __: grpc.ServicerContext) -> Iterator[bytes]:
        yield head_of(manifest)
        yield content[:CHUNK_BYTES]
        asked.set()
        ended.wait(60)

    fetching = Fetching(partial, CLUSTER, after=0)
    with served(stalling) as (channel, _), ThreadPoolExecutor(1) as pool:
        running = pool.submit(fetching.fetch, [channel], seconds=60.0)
        assert asked.wait(30)
        fetching.cancel()
        with pytest.raises(SnapshotUnavailable, match="cancelled"):
            running.result(30)
        ended.set()
        with pytest.raises(SnapshotUnavailable, match="cancelled"):
            fetching.fetch([channel], seconds=60.0)


def test_a_full_disk_ends_the_transfer_at_once(tmp_path: Path, node: Sender) -> None:
    node.take(500)
    with closing(Partial.open(tmp_path / "incoming", free_bytes=2**60)) as partial, served(real(node)) as (channel, _):
        with pytest.raises(SnapshotFull, match="have to stay so"):
            fetch(partial, channel)
        assert list((tmp_path / "incoming").iterdir()) == []
