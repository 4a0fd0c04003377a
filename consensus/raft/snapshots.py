"""Snapshots between nodes: one server-streaming call, resumable at any chunk.

    Read: [cluster id, name, offset, after]  ->  ["ok", manifest, offset], chunk, chunk ...
                                                 ["none" | "busy" | "refused" | "invalid", text]

`name` and `offset` say what the receiver has already; the answer's say what follows, which is another snapshot from its
beginning where that one is no longer kept. `after` is the entry that the receiver's state is at: nothing older is sent.
Messages are at most a MiB, heads are msgpack, chunks bare bytes. Who may call is for the server that this is added to,
which lends it one of its threads for each stream; so streams are few, and each has a deadline.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any, Literal

import grpc
import msgpack

from consensus import clock
from consensus.archive import Archive, Reading
from consensus.errors import SnapshotDamaged, SnapshotRefused, SnapshotUnavailable
from consensus.partial import Partial
from consensus.snapshot import Manifest, is_name

SERVICE = "meridian.Snapshots"
MAX_STREAMS = 4
MAX_STREAM_SECONDS = 300.0
STREAM_SECONDS = 30.0  # a sender that has fallen silent is left after so long; one that sends is asked again

_MAX_REQUEST_BYTES = 4096
_SAME_SENDER_ATTEMPTS = 3  # another sender's snapshot is another one: what has come would be lost
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.05, 2.0

Status = Literal["ok", "none", "busy", "refused", "invalid"]

_logger = logging.getLogger(__name__)


class SnapshotService:
    """Serves what an archive keeps, from any number of threads.

    `wanted` is called, in a thread of the server, with a receiver's applied index when nothing here would help it: the
    node may take a snapshot then.
    """

    def __init__(self, archive: Archive, cluster_id: str, wanted: Callable[[int], None] = lambda _: None) -> None:
        self._archive = archive
        self._cluster_id = cluster_id
        self._wanted = wanted
        self._streams = threading.BoundedSemaphore(MAX_STREAMS)

    def handler(self) -> grpc.GenericRpcHandler[bytes, bytes]:
        """For `add_generic_rpc_handlers` of a synchronous server."""
        methods = {"Read": grpc.unary_stream_rpc_method_handler(self._read)}
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    def _read(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        seconds = context.time_remaining()
        fields = _request(request)
        if fields is None or seconds is None or seconds > MAX_STREAM_SECONDS:
            yield _head("invalid", "not a request for a snapshot, or one without a deadline")
            return
        cluster_id, name, offset, after = fields
        if cluster_id != self._cluster_id:
            yield _head("refused", "this is a node of another cluster")
            return
        if not self._streams.acquire(blocking=False):
            yield _head("busy", f"{MAX_STREAMS} snapshots are being sent already")
            return
        try:
            yield from self._send(name, offset, after)
        finally:
            self._streams.release()

    def _send(self, name: str, offset: int, after: int) -> Iterator[bytes]:
        newest = self._archive.newest
        if newest is None or newest.applied <= after:
            self._wanted(after)
            yield _head("none", f"no snapshot beyond entry {after} is kept here")
            return
        try:
            reading, start = self._archive.read(name, offset)
        except SnapshotUnavailable as error:
            yield _head("none", str(error))
            return
        with closing(reading):
            yield _head("ok", reading.manifest.encode(), start)
            yield from _chunks(reading, start)


def _chunks(reading: Reading, start: int) -> Iterator[bytes]:
    offset = start
    try:
        while chunk := reading.chunk(offset):
            yield chunk
            offset += len(chunk)
    except (SnapshotDamaged, OSError):
        # The stream ends early, which the receiver sees by itself.
        _logger.exception("snapshot_unreadable", extra={"snapshot": reading.manifest.name})


class Fetching:
    """Brings one snapshot into a `Partial`. `fetch` belongs to one thread; `cancel` is for any other."""

    def __init__(
        self, partial: Partial, cluster_id: str, *, after: int, stream_seconds: float = STREAM_SECONDS
    ) -> None:
        self._partial = partial
        self._cluster_id = cluster_id
        self._after = after
        self._stream_seconds = min(stream_seconds, MAX_STREAM_SECONDS)
        self._cancelled = threading.Event()
        self._changing = threading.Lock()
        self._call: Any = None

    def fetch(self, senders: Sequence[grpc.Channel], *, seconds: float) -> None:
        """Until the partial is complete with a snapshot that ends behind entry `after`. A stream that breaks off is
        taken up at its last chunk, by the same sender as long as that gets on, else by the next one.

        Raises SnapshotUnavailable (not within `seconds`, or cancelled), SnapshotRefused (another cluster's node) and
        SnapshotFull. What had come stays, except on a full disk.
        """
        if self._partial.applied <= self._after:
            self._partial.discard()
        until = clock.monotonic() + seconds
        sender, idle, reason = 0, 0, "no sender"
        while not self._partial.complete:
            left = until - clock.monotonic()
            if left <= 0 or not senders:
                raise SnapshotUnavailable(f"no snapshot within {seconds:.0f} s: {reason}")
            before = (self._partial.name, self._partial.offset)
            try:
                self._receive(senders[sender % len(senders)], min(left, self._stream_seconds))
            except (SnapshotUnavailable, SnapshotDamaged) as error:
                reason = str(error)
            got_on = self._partial.offset > 0 and before != (self._partial.name, self._partial.offset)
            idle = 0 if got_on else idle + 1
            if idle:
                sender += idle % _SAME_SENDER_ATTEMPTS == 0 or not self._partial.offset
                pause = min(_FIRST_PAUSE_SECONDS * 2 ** min(idle, 10), _LONGEST_PAUSE_SECONDS)
                self._cancelled.wait(max(0.0, min(pause, until - clock.monotonic())))
            self._check_wanted()

    def cancel(self) -> None:
        """`fetch` raises SnapshotUnavailable soon, now and from now on. Idempotent."""
        self._cancelled.set()
        with self._changing:
            if self._call is not None:
                self._call.cancel()

    def _receive(self, sender: grpc.Channel, seconds: float) -> None:
        read = sender.unary_stream(f"/{SERVICE}/Read", None, None)
        request = msgpack.packb((self._cluster_id, self._partial.name, self._partial.offset, self._after))
        with self._changing:
            self._check_wanted()
            call: Any = read(request, timeout=seconds)
            self._call = call
        try:
            self._begin(next(iter(call), b""))
            for chunk in call:
                self._partial.add(chunk)
            if not self._partial.complete:
                raise SnapshotUnavailable("the sender broke off")
        except grpc.RpcError as error:
            raise SnapshotUnavailable(f"the stream broke off: {_reason(error)}") from error
        finally:
            call.cancel()
            with self._changing:
                self._call = None

    def _begin(self, head: bytes) -> None:
        match _unpack(head):
            case ["ok", bytes(encoded), int(offset)]:
                manifest = Manifest.decode(encoded)
            case ["refused", text]:
                raise SnapshotRefused(f"the sender refused: {str(text)[:200]}")
            case ["none" | "busy" | "invalid", text]:
                raise SnapshotUnavailable(f"the sender has none: {str(text)[:200]}")
            case _:
                raise SnapshotDamaged("the sender's answer cannot be read")
        if manifest.cluster_id != self._cluster_id:
            raise SnapshotRefused(f"the sender's snapshot is of cluster {manifest.cluster_id[:64]}")
        if manifest.applied <= self._after:
            raise SnapshotUnavailable(f"the sender's snapshot ends at entry {manifest.applied}")
        self._partial.begin(manifest)
        if offset != self._partial.offset:
            raise SnapshotUnavailable(f"the sender went on at {offset} instead of {self._partial.offset}")

    def _check_wanted(self) -> None:
        if self._cancelled.is_set():
            raise SnapshotUnavailable("the transfer was cancelled")


def _head(status: Status, *values: object) -> bytes:
    packed: bytes = msgpack.packb((status, *values))
    return packed


def _unpack(data: bytes) -> Any:
    try:
        return msgpack.unpackb(data)
    except (ValueError, msgpack.UnpackException):
        return None


def _request(data: bytes) -> tuple[str, str, int, int] | None:
    match _unpack(data) if len(data) <= _MAX_REQUEST_BYTES else None:
        case [str(cluster_id), str(name), int(offset), int(after)] if not name or is_name(name):
            return cluster_id, name, offset, after
    return None


def _reason(error: grpc.RpcError) -> str:
    details = getattr(error, "details", None)
    return str(details() if details else error)[:200]
