"""Requests of upload sessions that are another node's: passed on to it as they come, and its answer back.

Any node may get any request of a push, but only the one that began an upload has its bytes. Both ways go through
without being gathered. A request is passed on once: who gets it from another node answers it, or refuses.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Protocol

from node.errors import UploadUnknown
from node.gateway.exchange import MAX_UNREAD_BYTES
from node.gateway.refusals import ClientGone, Overloaded
from node.gateway.requests import Request
from node.gateway.responses import Response
from node.tokens import named_node
from replication.directory import Directory, PeerUnreachable
from replication.requests import PeerAnswer, PeerRequest

MAX_FORWARDS = 512
STALL_SECONDS = 45.0  # longer than a client may pause: it is then the other node that takes nothing more
ANSWER_SECONDS = 20.0
LAST_ANSWER_SECONDS = 120.0  # the end of an upload may have to read and sync many gigabytes

_PASSED_ON = ("content-type", "content-length", "content-range", "authorization", "traceparent")
_PASSED_BACK = frozenset(
    {"allow", "content-type", "docker-content-digest", "docker-upload-uuid", "location", "range", "retry-after"}
    | {"www-authenticate", "oci-chunk-min-length"}
)


class Peers(Protocol):
    """The other nodes."""

    @property
    def directory(self) -> Directory:
        """Who they are."""

    async def request(self, member: str, request: PeerRequest) -> PeerAnswer:
        """Raises PeerError, in a bounded time after the body's end."""


class Forwarder:
    """Passes requests on for one gateway."""

    def __init__(self, peers: Peers, node_id: str) -> None:
        self._peers = peers
        self._node_id = node_id
        self._under_way = 0

    def owner_elsewhere(self, token: str) -> str:
        """The other node that a token names, "" if it names this one or none."""
        named = named_node(token)
        return "" if named == self._node_id else named

    async def forward(self, request: Request, node_id: str) -> Response:
        """The answer of that node. Raises UploadUnknown if it is not there: what has arrived of the upload is with it.
        Raises PeerError if it went away or stalled with the request half done; Overloaded, ClientGone."""
        if self._under_way >= MAX_FORWARDS:
            raise Overloaded("too many requests are being passed on to other nodes")
        self._under_way += 1
        try:
            answer = await self._ask(request, node_id)
        finally:
            self._under_way -= 1
        headers = [(name.encode(), text.encode("latin-1")) for name, text in answer.headers if name in _PASSED_BACK]
        return Response(answer.status, headers, answer.body)

    async def _ask(self, request: Request, node_id: str) -> PeerAnswer:
        body = _Body(request)
        try:
            return await self._ask_once(request, node_id, body)
        except PeerUnreachable:
            # A connection that was kept may have ended meanwhile: as long as nothing of the body is gone, once more.
            if body.begun:
                raise
        return await self._ask_once(request, node_id, body)

    async def _ask_once(self, request: Request, node_id: str, body: _Body) -> PeerAnswer:
        member = await self._peers.directory.with_node(node_id)
        if member is None:
            raise UploadUnknown
        try:
            async with asyncio.timeout(None) as deadline:
                return await self._peers.request(member, _passed_on(request, body.chunks(deadline)))
        except TimeoutError as error:
            raise PeerUnreachable(f"{member} takes nothing more of the body") from error
        except PeerUnreachable as error:
            if body.client_gone:
                raise ClientGone from error
            raise


class _Body:
    """A request's body on its way through."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self.begun = False
        self.client_gone = False

    async def chunks(self, deadline: asyncio.Timeout) -> AsyncIterator[bytes]:
        """As they come; the deadline moves with them, and ends with the body."""
        loop = asyncio.get_running_loop()
        self.begun = True
        try:
            deadline.reschedule(loop.time() + STALL_SECONDS)
            async for chunk in self._request.chunks():
                yield chunk
                deadline.reschedule(loop.time() + STALL_SECONDS)
            deadline.reschedule(None)
        except ClientGone:
            self.client_gone = True
            raise


def _passed_on(request: Request, chunks: AsyncIterator[bytes]) -> PeerRequest:
    headers = [(name, text) for name in _PASSED_ON if (text := request.header(name.encode())) is not None]
    length = request.content_length if request.has_body else 0
    target = request.path + (b"?" + request.query if request.query else b"")
    return PeerRequest(
        method=request.method,
        target=target.decode("latin-1"),
        headers=[*headers, ("x-request-id", request.request_id)],
        body=chunks if request.has_body else None,
        # A short body costs less than waiting for a round trip; of a longer one the other side may want nothing.
        waits=length is None or length > MAX_UNREAD_BYTES,
        answer_seconds=LAST_ANSWER_SECONDS if request.method == "PUT" else ANSWER_SECONDS,
    )
