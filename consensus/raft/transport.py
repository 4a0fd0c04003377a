"""The transport between members over gRPC: mutual TLS, msgpack, one stream a direction.

It runs on threads of its own, beside an asyncio process or without one: `raft-link-<peer>` opens our stream to a peer,
`raft-pulse` watches all of them, and each stream that a peer opened has a thread while it lasts. gRPC adds a few.
The same port serves what else members ask of each other: `handlers`, which learn from `inbound.Membership` who asks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any, cast

import grpc

from consensus import clock
from consensus.raft.frames import encode
from consensus.raft.handshake import dns_name
from consensus.raft.inbound import STREAMS_OF_A_PEER, Membership, Reception
from consensus.raft.links import MAX_FRAME_BYTES, Linked, Message, Receive
from consensus.raft.outbound import Link, Route

HEARTBEAT_SECONDS = 0.5
CALLS_OF_OTHER_SERVICES = 64  # at once
CONNECTIONS = 256
CLOSE_SECONDS = 1.5

_HEARTBEAT_BYTES = 1024  # nothing else comes back on a link
_SERVICES = 4 * 1024 * 1024

_EVERYWHERE = [
    # A compressed frame would be unpacked beyond every bound before we see it.
    ("grpc.per_message_compression", 0),
    ("grpc.per_message_decompression", 0),
]
_SERVER = [
    *_EVERYWHERE,
    ("grpc.max_receive_message_length", MAX_FRAME_BYTES),
    ("grpc.max_send_message_length", MAX_FRAME_BYTES),
    ("grpc.so_reuseport", 0),  # or a second process on the same address would take half of the connections
    ("grpc.max_concurrent_streams", STREAMS_OF_A_PEER + CALLS_OF_OTHER_SERVICES),
    ("grpc.max_allowed_incoming_connections", CONNECTIONS),
    ("grpc.server_handshake_timeout_ms", 5000),
    ("grpc.absolute_max_metadata_size", 8192),
    # Frees the thread of a stream whose peer is gone without a word.
    ("grpc.keepalive_time_ms", 10000),
    ("grpc.keepalive_timeout_ms", 10000),
]
_CHANNEL = [
    *_EVERYWHERE,
    ("grpc.max_send_message_length", MAX_FRAME_BYTES),
    ("grpc.use_local_subchannel_pool", 1),  # channels to one address share connection and back-off otherwise
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


@dataclass(frozen=True, slots=True)
class Credentials:
    """PEM: the cluster's authority, this member's certificate (see handshake.dns_name), and its private key."""

    ca: bytes
    certificate: bytes
    key: bytes = field(repr=False)


class GrpcTransport:
    """Implements `consensus.raft.links.Transport`.

    `me` and the keys of `peers` (name to host:port) are the members. `incarnation` has to be greater than that of every
    earlier process of this member, also across restarts of its machine: peers refuse a lower one. Listens from the
    start on `address`, port 0 for any, but answers only once started. Raises OSError when it cannot.
    """

    def __init__(
        self,
        me: str,
        address: str,
        peers: Mapping[str, str],
        cluster_id: str,
        credentials: Credentials,
        *,
        incarnation: int,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
        handlers: Sequence[grpc.GenericRpcHandler[Any, Any]] = (),
    ) -> None:
        self._heartbeat = heartbeat_seconds
        self._linked: Linked | None = None
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._started = False
        self._reception = Reception(Membership(me, frozenset(peers), cluster_id))
        self._threads = _Threads(f"raft-call-{me}")
        self._links = {
            peer: Link(
                Route(
                    peer,
                    _dialler(where, dns_name(peer, cluster_id), credentials),
                    cluster_id,
                    incarnation,
                    heartbeat_seconds,
                ),
                self._tell,
            )
            for peer, where in peers.items()
        }
        self._server = grpc.server(
            cast(futures.ThreadPoolExecutor, self._threads),
            handlers=[self._reception.handler(), *handlers],
            options=_SERVER,
            maximum_concurrent_rpcs=len(peers) * STREAMS_OF_A_PEER + CALLS_OF_OTHER_SERVICES,
        )
        self._diallers = {
            peer: _dialler(where, dns_name(peer, cluster_id), credentials, _SERVICES) for peer, where in peers.items()
        }
        self._pulse = threading.Thread(target=self._watch, name="raft-pulse", daemon=True)
        self.address = f"{address.rpartition(':')[0]}:{_listen(self._server, address, credentials)}"

    def start(self, receive: Receive, linked: Linked) -> None:
        """See Transport. To be called once."""
        with self._lock:
            if self._closed.is_set():
                return
            self._started = True
            self._linked = linked
            self._reception.open(receive)
            self._server.start()
            for link in self._links.values():
                link.start()
            self._pulse.start()

    def send(self, peer: str, message: Message) -> bool:
        """See Transport."""
        return self._links[peer].send(encode(message))

    def channel(self, peer: str) -> grpc.Channel:
        """A connection of the caller's own to what else a peer serves (`handlers`); the caller closes it. Raises
        KeyError for who is no peer."""
        return self._diallers[peer]()

    def round_trip_seconds(self, peer: str) -> float | None:
        """See Transport."""
        return self._links[peer].round_trip_seconds

    def close(self) -> None:
        """See Transport."""
        with self._lock:
            if self._closed.is_set():
                return
            self._closed.set()
        deadline = clock.monotonic() + CLOSE_SECONDS
        self._reception.close(CLOSE_SECONDS)
        for link in self._links.values():
            link.close()
        if not self._started:
            self._server.start()  # gRPC frees the address only of a server that ran
        # Not None for the grace: that would wait here, however long it takes.
        stopped = self._server.stop(0)
        for link in self._links.values():
            link.join(deadline - clock.monotonic())
        if self._started:
            self._pulse.join(deadline - clock.monotonic())
        stopped.wait(deadline - clock.monotonic())
        self._threads.join(deadline)

    def _tell(self, peer: str, up: bool) -> None:
        if self._linked is not None:
            self._linked(peer, up)

    def _watch(self) -> None:
        while not self._closed.wait(self._heartbeat / 2):
            now = clock.monotonic()
            for link in self._links.values():
                link.pulse(now)


def _listen(server: grpc.Server, address: str, credentials: Credentials) -> int:
    pair = [(credentials.key, credentials.certificate)]
    secured = grpc.ssl_server_credentials(pair, credentials.ca, require_client_auth=True)
    try:
        port = server.add_secure_port(address, secured)
    except RuntimeError as error:
        raise OSError(f"cannot listen on {address} with the given certificate: {error}") from error
    if not port:
        raise OSError(f"cannot listen on {address} with the given certificate")
    return int(port)


def _dialler(
    address: str, name: str, credentials: Credentials, most_received: int = _HEARTBEAT_BYTES
) -> Callable[[], grpc.Channel]:
    secured = grpc.ssl_channel_credentials(credentials.ca, credentials.key, credentials.certificate)
    bound = ("grpc.max_receive_message_length", most_received)
    options = [*_CHANNEL, bound, ("grpc.ssl_target_name_override", name)]
    return lambda: grpc.secure_channel(address, secured, options)


class _Threads(futures.Executor):
    """A daemon thread for each call: the calls are few and last, and none of them may hold up the process's end."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._running: set[threading.Thread] = set()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> futures.Future[Any]:
        future: futures.Future[Any] = futures.Future()

        def run() -> None:
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001 - as an executor does
                future.set_exception(error)
            finally:
                with self._lock:
                    self._running.discard(threading.current_thread())

        thread = threading.Thread(target=run, name=self._name, daemon=True)
        with self._lock:
            self._running.add(thread)
        thread.start()
        return future

    def join(self, deadline: float) -> None:
        with self._lock:
            running = list(self._running)
        for thread in running:
            thread.join(max(0.0, deadline - clock.monotonic()))
