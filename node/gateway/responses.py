"""Answers, and how they get to the client."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import msgspec

from node.gateway.requests import Request

Header = tuple[bytes, bytes]
Stream = Callable[[Request], Awaitable[None]]

JSON: Header = (b"content-type", b"application/json")
IMMUTABLE: Header = (b"cache-control", b"max-age=31536000, immutable")
_API_VERSION: Header = (b"docker-distribution-api-version", b"registry/2.0")
_NOSNIFF: Header = (b"x-content-type-options", b"nosniff")
_CLOSE: Header = (b"connection", b"close")
_WITHOUT_LENGTH = (204, 304)
_DRAIN_BYTES = 256 * 1024
_LINGER_SECONDS = 0.5


@dataclass(slots=True)
class Response:
    """A status, headers without Content-Length, and a body: bytes, or a stream of exactly `length` bytes. For HEAD
    `length` says how long the body would be. `close` is called in the end, however that comes."""

    status: int
    headers: Sequence[Header] = ()
    body: bytes = b""
    length: int | None = None
    stream: Stream | None = None
    close: Callable[[], None] | None = None


def json_response(value: object, headers: Sequence[Header] = (), *, content_type: Header = JSON) -> Response:
    """200 with a JSON body."""
    return Response(200, (content_type, *headers), msgspec.json.encode(value))


async def deliver(request: Request, response: Response) -> None:
    """Sends the answer, whole or up to where the client goes away (ClientGone). Whatever is left of the request's body
    is read if it is short; otherwise the connection ends, because the next request would begin in the middle of it."""
    try:
        await _deliver(request, response)
    finally:
        if response.close:
            response.close()


async def _deliver(request: Request, response: Response) -> None:
    headers = [*response.headers, (b"x-request-id", request.request_id.encode()), _API_VERSION, _NOSNIFF]
    if response.status not in _WITHOUT_LENGTH:
        length = len(response.body) if response.length is None else response.length
        headers.append((b"content-length", b"%d" % length))
    unread = request.has_body and not request.body_read
    if unread and not await _drain(request):
        headers.append(_CLOSE)
        await _send_lingering(request, response, headers)
        return
    request.status = response.status
    await request.send({"type": "http.response.start", "status": response.status, "headers": headers})
    if response.stream and request.method != "HEAD":
        await response.stream(request)
        return
    await _send_body(request, response, more=False)


async def _send_body(request: Request, response: Response, *, more: bool) -> None:
    body = b"" if request.method == "HEAD" else response.body
    await request.send({"type": "http.response.body", "body": body, "more_body": more})
    request.bytes_out += len(body)


async def _drain(request: Request) -> bool:
    """Reads the rest of a short body. A client that waits for 100 (Continue) sends none, and must not be asked to."""
    length = request.headers.get(b"content-length", b"")
    waits = b"expect" in request.headers and not request.bytes_in
    if waits or not length.isdigit() or len(length) > 6 or int(length) > _DRAIN_BYTES:
        return False
    async for _ in request.chunks():
        pass
    return True


async def _send_lingering(request: Request, response: Response, headers: list[Header]) -> None:
    """Answers before the body is read, and goes on reading for a moment: closing at once would reset the connection,
    and many clients would never see the answer."""
    request.status = response.status
    await request.send({"type": "http.response.start", "status": response.status, "headers": headers})
    await _send_body(request, response, more=True)
    if b"expect" not in request.headers or request.bytes_in:
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_SECONDS):
                async for _ in request.chunks():
                    pass
    await request.send({"type": "http.response.body", "body": b"", "more_body": False})
