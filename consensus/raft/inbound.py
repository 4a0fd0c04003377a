"""What peers send: each has one stream at a time; a newer one takes over, and then nothing of the older is received.

Everything that is not exactly as it should be ends the stream with a status, one line in the log, and nothing else.
What fails in TLS (no certificate, a foreign authority) never gets here: gRPC closes that connection by itself.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import grpc

from consensus import clock
from consensus.raft.frames import decode, is_mark, mark
from consensus.raft.handshake import Hello, Reason, Refused, member_named
from consensus.raft.links import Message, Receive
from consensus.raft.notices import Notices
from consensus.raft.outbound import SERVICE, STREAM

STREAMS_OF_A_PEER = 8  # at once, all but the newest on their way out

_NEVER = (2**64, 0)  # newer than everything

_STATUS = {
    Reason.BAD_HANDSHAKE: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.OTHER_PROTOCOL: grpc.StatusCode.UNIMPLEMENTED,
    Reason.OUTDATED: grpc.StatusCode.ALREADY_EXISTS,
    Reason.TOO_MANY: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.BAD_FRAME: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.CLOSED: grpc.StatusCode.UNAVAILABLE,
}

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Membership:
    """Who may call a member: the other members of its cluster."""

    me: str
    peers: frozenset[str]
    cluster_id: str

    def caller(self, context: grpc.ServicerContext) -> str:
        """The peer that makes a call, from its certificate; for every service on the port. Raises Refused."""
        names: object = context.auth_context().get("x509_subject_alternative_name", ())
        member = member_named(names if isinstance(names, list | tuple) else (), self.cluster_id)
        if member == self.me:
            raise Refused(Reason.OURSELVES, "the certificate is this member's own")
        if member not in self.peers:
            raise Refused(Reason.NO_MEMBER, "the certificate is that of no member")
        return member


class Seat:
    """A peer's place: which of its streams is the newest. It holds `receive` for one thread at a time."""

    def __init__(self) -> None:
        self._taking = threading.Lock()
        self._receiving = threading.Lock()
        self._newest = (-1, -1)
        self._owner: grpc.ServicerContext | None = None
        self._streams = 0

    def take(self, hello: Hello, context: grpc.ServicerContext) -> None:
        """Makes this the peer's stream and ends the one before. Raises Refused unless it is newer."""
        with self._taking:
            if hello.age <= self._newest:
                raise Refused(Reason.OUTDATED, "a newer stream of this member was here already")
            if self._streams >= STREAMS_OF_A_PEER:
                raise Refused(Reason.TOO_MANY, "too many streams of this member")
            self._streams += 1
            self._newest = hello.age
            before, self._owner = self._owner, context
        if before is not None:
            cancel: Callable[[], object] = before.cancel
            cancel()

    def leave(self, context: grpc.ServicerContext) -> None:
        """The stream has ended."""
        with self._taking:
            self._streams -= 1
            if self._owner is context:
                self._owner = None

    def deliver(self, context: grpc.ServicerContext, message: Message, receive: Receive, peer: str) -> bool:
        """False, and it is dropped, once another stream has taken over."""
        with self._receiving:
            if self._owner is not context:
                return False
            receive(peer, message)
            return True

    def clear(self, seconds: float) -> None:
        """Nothing is received any more, once this returns, and no stream can take it again. Waits so long for a
        receiver that does not return."""
        with self._taking:
            self._owner = None
            self._newest = _NEVER
        if self._receiving.acquire(timeout=max(0.0, seconds)):
            self._receiving.release()


class Reception:
    """Answers the streams of the peers."""

    def __init__(self, membership: Membership) -> None:
        self._membership = membership
        self._seats = {peer: Seat() for peer in membership.peers}
        self._receive: Receive | None = None
        self._notices = Notices(log)

    def handler(self) -> grpc.GenericRpcHandler[bytes, bytes]:
        """The service, for a server."""
        method = grpc.stream_stream_rpc_method_handler(self._serve)
        return grpc.method_handlers_generic_handler(SERVICE, {STREAM: method})

    def open(self, receive: Receive) -> None:
        """From now on there is somebody to receive."""
        self._receive = receive

    def close(self, seconds: float) -> None:
        """Nothing is received any more, once this returns; waits so long for receivers that do not return."""
        deadline = clock.monotonic() + seconds
        self._receive = None
        for seat in self._seats.values():
            seat.clear(deadline - clock.monotonic())

    def _serve(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        peer = "?"
        try:
            peer = self._membership.caller(context)
            yield from self._answer(self._seats[peer], peer, requests, context)
        except Refused as error:
            self._notices.warning(
                "raft_stream_refused",
                error.reason,
                reason=error.reason,
                detail=str(error),
                peer=peer,
                address=context.peer(),
            )
            context.abort(_STATUS.get(error.reason, grpc.StatusCode.PERMISSION_DENIED), str(error))

    def _answer(
        self, seat: Seat, peer: str, requests: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        receive = self._receive
        if receive is None:
            raise Refused(Reason.CLOSED, "this member is closing")
        seat.take(Hello.parse(context.invocation_metadata(), self._membership.cluster_id), context)
        try:
            yield mark(0)
            for frame in requests:
                if is_mark(frame):
                    yield frame
                    continue
                if not seat.deliver(context, decode(frame), receive, peer):
                    return
        finally:
            seat.leave(context)
