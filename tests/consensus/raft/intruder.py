"""Peers that do what a member never does: gRPC streams with any certificate and metadata, and HTTP/2 by hand."""

from __future__ import annotations

import queue
import socket
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import grpc

from consensus.raft.frames import mark
from consensus.raft.handshake import Hello, dns_name
from consensus.raft.transport import Credentials
from tests.consensus.raft.members import CLUSTER_ID

METHOD = "/meridian.Raft/Stream"
SECONDS = 30
Metadata = tuple[tuple[str, str], ...]


def hello(generation: int = 1, incarnation: int = 10**6, cluster_id: str = CLUSTER_ID) -> Metadata:
    return Hello(cluster_id, incarnation, generation).metadata


class Intruder:
    """One stream to a member. `send` queues a frame; `end` waits for the status with which it is closed."""

    def __init__(self, channel: grpc.Channel, metadata: Metadata, compression: grpc.Compression | None) -> None:
        self._frames: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        stream = channel.stream_stream(METHOD, None, None)
        self._call: Any = stream(self._sent(), metadata=metadata, timeout=SECONDS, compression=compression)
        self.taken = 0

    def _sent(self) -> Iterator[bytes]:
        while (frame := self._frames.get()) is not None:
            self.taken += 1
            yield frame

    def accepted(self) -> bool:
        return bool(next(self._call) == mark(0))

    def send(self, *frames: bytes) -> None:
        for frame in frames:
            self._frames.put(frame)

    def answer(self) -> bytes:
        return bytes(next(self._call))

    def end(self) -> grpc.StatusCode:
        try:
            for _ in self._call:
                pass
        except grpc.RpcError as error:
            return cast(grpc.Call, error).code()
        finally:
            self._frames.put(None)
        return grpc.StatusCode.OK

    def close(self) -> None:
        self._frames.put(None)
        self._call.cancel()


@contextmanager
def intruder(
    address: str,
    credentials: Credentials,
    metadata: Metadata,
    *,
    of: str = "b",
    compression: grpc.Compression | None = None,
) -> Iterator[Intruder]:
    """A stream to the member `of`, at its own address."""
    secured = grpc.ssl_channel_credentials(credentials.ca, credentials.key, credentials.certificate)
    options = [
        ("grpc.ssl_target_name_override", dns_name(of, CLUSTER_ID)),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_send_message_length", -1),
    ]
    with grpc.secure_channel(address, secured, options) as channel:
        made = Intruder(channel, metadata, compression)
        try:
            yield made
        finally:
            made.close()


def tls(address: str, credentials: Credentials | None, *, ca: bytes) -> ssl.SSLSocket:
    """A TLS connection for HTTP/2, with that certificate or none. Raises OSError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=ca.decode())
    context.set_alpn_protocols(["h2"])
    if credentials:
        with tempfile.TemporaryDirectory() as folder:
            pair = Path(folder) / "pair.pem"
            pair.write_bytes(credentials.key + credentials.certificate)
            context.load_cert_chain(pair)
    host, _, port = address.rpartition(":")
    plain = socket.create_connection((host, int(port)), timeout=SECONDS)
    return context.wrap_socket(plain, server_hostname=dns_name("b", CLUSTER_ID))


def is_closed(connection: socket.socket) -> bool:
    """Reads until the other side closes; fails after SECONDS."""
    try:
        while connection.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


def call_by_hand(metadata: Metadata) -> bytes:
    """The bytes that open a gRPC stream: preface, settings, and headers as HPACK literals (RFC 7541, 6.2.2)."""
    pseudo = ((":method", "POST"), (":scheme", "https"), (":path", METHOD), (":authority", "b"))
    fields = (*pseudo, ("content-type", "application/grpc"), ("te", "trailers"), *metadata)
    block = b"".join(b"\x00" + _text(name) + _text(value) for name, value in fields)
    return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _http2(4, 0, 0, b"") + _http2(1, 4, 1, block)


def frame_by_hand(length: int, content: bytes) -> bytes:
    """A DATA frame with the beginning of a message that claims `length` bytes."""
    return _http2(0, 0, 1, b"\x00" + length.to_bytes(4) + content)


def _http2(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def _text(text: str) -> bytes:
    assert len(text) < 127
    return bytes((len(text),)) + text.encode()
