"""The head of a request as it comes in, within bounds, and why some requests do not even reach the application."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import httptools
import msgspec

from node.config import Limits

_LINE_BYTES = 4  # of a header beside name and value
_SLASH = 0x2F


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that ends the connection."""

    status: int
    reason: bytes
    code: str
    message: str

    def response(self, request_id: str) -> bytes:
        """All of it, in the OCI form."""
        body = msgspec.json.encode({"errors": [{"code": self.code, "message": self.message}]})
        retry = b"retry-after: 1\r\n" if self.status == 503 else b""
        return (
            b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%bx-request-id: %b\r\n"
            b"connection: close\r\n\r\n%b"
        ) % (self.status, self.reason, len(body), retry, request_id.encode(), body)


MALFORMED = Refusal(400, b"Bad Request", "UNSUPPORTED", "this is not a well-formed HTTP request")
HOST_WRONG = Refusal(400, b"Bad Request", "UNSUPPORTED", "a request has one Host header")
NO_TUNNELS = Refusal(405, b"Method Not Allowed", "UNSUPPORTED", "CONNECT is not supported")
HEAD_SLOW = Refusal(408, b"Request Timeout", "UNSUPPORTED", "the head of the request took too long")
BODY_SLOW = Refusal(408, b"Request Timeout", "UNSUPPORTED", "the body of the request stalled")
URL_LONG = Refusal(414, b"URI Too Long", "UNSUPPORTED", "path and query are too long")
HEADERS_LARGE = Refusal(431, b"Request Header Fields Too Large", "UNSUPPORTED", "the headers are too many or too long")
FAILED = Refusal(500, b"Internal Server Error", "UNKNOWN", "something went wrong here; the node's log has more")
TOO_MANY_CONNECTIONS = Refusal(503, b"Service Unavailable", "UNAVAILABLE", "too many connections are open")


class Refused(Exception):
    """Stops the parser."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class Head:
    """What llhttp has found so far. Methods raise Refused."""

    __slots__ = ("_hosts", "_limits", "_size_bytes", "begun_at", "body_bytes", "headers", "is_open", "url", "waits")

    def __init__(self, limits: Limits, begun_at: float) -> None:
        self.begun_at = begun_at
        self.is_open = True
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.body_bytes: int | None = 0  # as announced; None: chunks
        self.waits = False  # the client holds its body back until it is told to continue
        self._limits = limits
        self._size_bytes = 0
        self._hosts = 0

    def add_url(self, piece: bytes) -> None:
        """More of the request's target."""
        self.url += piece
        if len(self.url) > self._limits.url_bytes:
            raise Refused(URL_LONG)

    def add_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer: those count, and are dropped."""
        self._size_bytes += len(name) + len(value) + _LINE_BYTES
        if self._size_bytes > self._limits.header_bytes or len(self.headers) >= self._limits.header_count:
            raise Refused(HEADERS_LARGE)
        if not self.is_open:
            return
        name = name.lower()
        self.headers.append((name, value))
        if name == b"host":
            self._hosts += 1
        elif name == b"content-length":
            self.body_bytes = int(value)
        elif name == b"transfer-encoding":
            if value.lower() != b"chunked":  # the bytes would be stored as they are coded
                raise Refused(MALFORMED)
            self.body_bytes = None
        elif name == b"expect":
            self.waits = value.lower() == b"100-continue"

    def close(self, method: bytes, version: str) -> dict[str, Any]:
        """The head is whole; returns what ASGI's scope takes from it."""
        if version not in {"1.1", "1.0"}:
            raise Refused(MALFORMED)
        if self.body_bytes is None and version == "1.0":  # RFC 9112, section 6.1: whoever passed it on may differ
            raise Refused(MALFORMED)
        if self._hosts != 1 and (self._hosts or version == "1.1"):
            raise Refused(HOST_WRONG)
        url = httptools.parse_url(self.url)
        raw_path = url.path or b"/"
        if raw_path[0] != _SLASH:
            raise Refused(MALFORMED)
        self.is_open = False
        self.waits = self.waits and version == "1.1" and self.body_bytes != 0
        path = raw_path.decode("ascii", "replace")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": version,
            "method": method.decode("ascii"),
            "root_path": "",
            "path": unquote(path) if "%" in path else path,
            "raw_path": raw_path,
            "query_string": url.query or b"",
            "headers": self.headers,
        }

    def without_upgrade(self, method: bytes, version: str) -> bytes:
        """The head as if the client had not asked for another protocol."""
        lines = [b"%b %b HTTP/%b\r\n" % (method, self.url, version.encode())]
        lines += [b"%b: %b\r\n" % header for header in self.headers if header[0] != b"upgrade"]
        return b"".join([*lines, b"\r\n"])
