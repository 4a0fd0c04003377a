"""Our way to one peer: a stream that is opened anew whenever it ends, with a bounded queue and a heartbeat of its own.

Each attempt has its own channel, queue and generation. Nothing moves from one to the next: what was queued when a
stream broke may have arrived, and would arrive twice. A new channel also starts without gRPC's back-off of the one
before.

Heartbeats travel behind what was sent before them, and so prove that it gets through. As megabytes may be on their way
over a slow link, one follows each HEARTBEAT_BYTES too: a link is alive that carries this much in DEAD_HEARTBEATS.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import grpc

from consensus import clock
from consensus.raft.frames import is_mark, mark
from consensus.raft.handshake import Hello, Refused
from consensus.raft.notices import Notices

SERVICE = "meridian.Raft"
STREAM = "Stream"
QUEUE_BYTES = 32 * 1024 * 1024
QUEUE_MESSAGES = 8192
FIRST_PAUSE_SECONDS = 0.05
MOST_PAUSE_SECONDS = 1.0
DEAD_HEARTBEATS = 4  # without an answer for so long the link is down
OPENING_HEARTBEATS = 6  # so long may name resolution, TCP, TLS and the handshake take: four round trips

HEARTBEAT_BYTES = 1024 * 1024

_PINGS_UNDER_WAY = 1024
_SMOOTHING = 1 / 8  # as in RFC 6298, section 2

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Route:
    """Where a peer is and how it is called. `open_channel` connects only when it is used."""

    peer: str
    open_channel: Callable[[], grpc.Channel]
    cluster_id: str
    incarnation: int
    heartbeat_seconds: float


class _Attempt:
    """One stream: its queue, its heartbeats, and the call once there is one."""

    def __init__(self, began: float) -> None:
        self.up = False
        self.silent = False
        self.answers = 0  # to heartbeats
        self.heard = began
        self._ready = threading.Condition()
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._due = False
        self._unproved_bytes = 0
        self._sent: deque[tuple[int, float, bool]] = deque(maxlen=_PINGS_UNDER_WAY)
        self._pings = 0
        self._ended = False
        self._cancel: Callable[[], object] | None = None

    def frames(self) -> Iterator[bytes]:
        """What the call sends; heartbeats go before what waits. Ends with the attempt."""
        while True:
            with self._ready:
                while not (self._ended or self._queue or self._wants_ping()):
                    self._ready.wait()
                if self._ended:
                    return
                frame = self._next()
            yield frame

    def _wants_ping(self) -> bool:
        return self._due or self._unproved_bytes >= HEARTBEAT_BYTES

    def _next(self) -> bytes:
        if self._wants_ping():
            self._pings += 1
            self._sent.append((self._pings, clock.monotonic(), self._due))
            self._due, self._unproved_bytes = False, 0
            return mark(self._pings)
        frame = self._queue.popleft()
        self._queued_bytes -= len(frame)
        self._unproved_bytes += len(frame)
        return frame

    def put(self, frame: bytes) -> bool:
        with self._ready:
            full = len(self._queue) >= QUEUE_MESSAGES or self._queued_bytes + len(frame) > QUEUE_BYTES
            if self._ended or full:
                return False
            self._queue.append(frame)
            self._queued_bytes += len(frame)
            self._ready.notify()
            return True

    def ping(self) -> None:
        with self._ready:
            self._due = True
            self._ready.notify()

    def pong(self, frame: bytes, now: float) -> float | None:
        """The seconds since that heartbeat left; None for one behind a megabyte, which says more of the bandwidth.
        Raises Refused for the answer to none."""
        with self._ready:
            while is_mark(frame) and self._sent:
                number, left, timed = self._sent.popleft()
                if frame == mark(number):
                    self.heard = now
                    self.answers += 1
                    return now - left if timed else None
        raise Refused.frame("an answer to no heartbeat")

    @property
    def ended(self) -> bool:
        return self._ended

    def called(self, cancel: Callable[[], object]) -> None:
        with self._ready:
            self._cancel = cancel
            ended = self._ended
        if ended:
            cancel()

    def end(self) -> None:
        with self._ready:
            self._ended = True
            self._queue.clear()
            self._ready.notify_all()
            cancel = self._cancel
        if cancel is not None:
            cancel()


class Link:
    """See the module. `linked` is told changes, one at a time; `pulse` has to be called twice a heartbeat or so."""

    def __init__(self, route: Route, linked: Callable[[str, bool], None]) -> None:
        self._route = route
        self._tell = linked
        self._notices = Notices(log)
        self._lock = threading.RLock()  # `linked` may send
        self._linked = False
        self._generation = 0
        self._attempt = _Attempt(0.0)
        self._closed = threading.Event()
        self._pinged = 0.0
        self._round_trip: float | None = None
        self._thread = threading.Thread(target=self._run, name=f"raft-link-{route.peer}", daemon=True)

    def start(self) -> None:
        """Begins to call the peer."""
        self._thread.start()

    def send(self, frame: bytes) -> bool:
        """See Transport."""
        attempt = self._attempt
        return attempt.up and attempt.put(frame)

    @property
    def round_trip_seconds(self) -> float | None:
        """See Transport."""
        return self._round_trip

    def pulse(self, now: float) -> None:
        """Sends the heartbeat that is due, and ends a stream that no longer answers."""
        attempt, heartbeat = self._attempt, self._route.heartbeat_seconds
        if now - attempt.heard > heartbeat * (DEAD_HEARTBEATS if attempt.up else OPENING_HEARTBEATS):
            attempt.silent = True
            self._down(attempt)
        elif attempt.up and now - self._pinged >= heartbeat * 0.9:
            self._pinged = now
            attempt.ping()

    def close(self) -> None:
        """The thread ends; `join` waits for it."""
        with self._lock:
            self._closed.set()
            self._attempt.up = False
        self._attempt.end()

    def join(self, seconds: float) -> None:
        """Waits for the thread."""
        if self._thread.ident is not None:
            self._thread.join(seconds)

    def _run(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while not self._closed.is_set():
            attempt = self._begin()
            try:
                self._converse(attempt)
            except Refused as error:
                self._notices.warning("raft_link_refused", str(error), peer=self._route.peer, detail=str(error))
            except grpc.RpcError as error:
                self._note(error, attempt)
            finally:
                self._down(attempt)
            pause = FIRST_PAUSE_SECONDS if attempt.answers else min(2 * pause, MOST_PAUSE_SECONDS)
            self._closed.wait(pause)

    def _begin(self) -> _Attempt:
        with self._lock:
            self._generation += 1
            self._attempt = attempt = _Attempt(clock.monotonic())
            if self._closed.is_set():
                attempt.end()
            return attempt

    def _converse(self, attempt: _Attempt) -> None:
        hello = Hello(self._route.cluster_id, self._route.incarnation, self._generation)
        channel = self._route.open_channel()
        try:
            stream = channel.stream_stream(f"/{SERVICE}/{STREAM}", None, None)
            call = stream(attempt.frames(), metadata=hello.metadata)
            attempt.called(call.cancel)
            for frame in call:
                if attempt.up:
                    self._measured(attempt.pong(frame, clock.monotonic()))
                elif frame == mark(0):
                    self._up(attempt)
                else:
                    raise Refused.frame("not the answer to a handshake")
        finally:
            attempt.end()
            channel.close()

    def _measured(self, seconds: float | None) -> None:
        before = self._round_trip
        if seconds is not None:
            self._round_trip = seconds if before is None else before + _SMOOTHING * (seconds - before)

    def _up(self, attempt: _Attempt) -> None:
        with self._lock:
            if self._closed.is_set() or attempt.ended:
                return
            attempt.heard = clock.monotonic()
            attempt.up = self._linked = True
            self._pinged = attempt.heard
            attempt.ping()
            self._tell(self._route.peer, True)

    def _down(self, attempt: _Attempt) -> None:
        """Told before the stream is taken down, which needs the other threads."""
        with self._lock:
            attempt.up = False
            if self._linked and attempt is self._attempt and not self._closed.is_set():
                self._linked = False
                self._tell(self._route.peer, False)
        attempt.end()

    def _note(self, error: grpc.RpcError, attempt: _Attempt) -> None:
        code = error.code().name if isinstance(error, grpc.Call) else "UNKNOWN"
        detail = (error.details() or "")[:500] if isinstance(error, grpc.Call) else ""
        if attempt.silent:
            code, detail = "SILENT", "no answer in time"
        if not self._closed.is_set():
            self._notices.warning("raft_link_ended", code, peer=self._route.peer, status=code, detail=detail)
