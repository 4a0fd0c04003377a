"""Answers, and how they get to the client."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import msgspec

from node.gateway.requests import Request

Header = tuple[bytes, bytes]
Stream = Callable[[Request], Awaitable[None]]

JSON: Header = (b"content-type", b"application/json")
IMMUTABLE: Header = (b"cache-control", b"max-age=31536000, immutable")
_API_VERSION: Header = (b"docker-distribution-api-version", b"registry/2.0")
_NOSNIFF: Header = (b"x-content-type-options", b"nosniff")
_WITHOUT_LENGTH = (204, 304)


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
    """Sends the answer, whole or up to where the client goes away (ClientGone). What the handler left unread of the
    request's body is the server's: it reads a little more, or ends the connection."""
    try:
        headers = [*response.headers, (b"x-request-id", request.request_id.encode()), _API_VERSION, _NOSNIFF]
        if response.status not in _WITHOUT_LENGTH:
            length = len(response.body) if response.length is None else response.length
            headers.append((b"content-length", b"%d" % length))
        request.status = response.status
        await request.send({"type": "http.response.start", "status": response.status, "headers": headers})
        if response.stream and request.method != "HEAD":
            await response.stream(request)
        else:
            body = b"" if request.method == "HEAD" else response.body
            await request.send({"type": "http.response.body", "body": body})
            request.bytes_out += len(body)
    finally:
        if response.close:
            response.close()
