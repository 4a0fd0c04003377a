"""A request as ASGI hands it over: headers, parameters and body, each parsed when asked for and bounded."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

from consensus import entropy
from node.access import ANONYMOUS, Principal
from node.gateway.refusals import ClientGone, MalformedRequest, TooManyParameters

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MAX_PARAMETERS = 128
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_LENGTH = re.compile(r"[0-9]{1,18}", re.ASCII)


@dataclass(slots=True)
class RequestRecord:
    """What telemetry learns of a request once it is over. `status` is 499 if the client went away first; `repository`
    is for the log line only."""

    request_id: str
    method: str
    route: str
    status: int
    seconds: float
    bytes_in: int
    bytes_out: int
    repository: str
    client: str
    traceparent: str


class Request:
    """One request. `route`, `repository` and `allowed` are known once it has been matched."""

    __slots__ = (
        "_parameters",
        "_receive",
        "_send",
        "allowed",
        "body_read",
        "bytes_in",
        "bytes_out",
        "headers",
        "method",
        "path",
        "principal",
        "query",
        "repository",
        "request_id",
        "route",
        "scope",
        "status",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self._receive = receive
        self._send = send
        self._parameters: dict[str, list[str]] | None = None
        self.method: str = scope["method"]
        self.path: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
        self.query: bytes = scope["query_string"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.principal: Principal = ANONYMOUS
        self.request_id = self._identify()
        self.route = "unknown"
        self.repository = ""
        self.allowed: Collection[str] = ()
        self.status = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.body_read = False

    def header(self, name: bytes) -> str | None:
        """The header's value, the last one if it came repeatedly; None if it did not come."""
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")

    def header_lines(self, name: bytes) -> list[str]:
        """The values of a header that may be repeated."""
        if name not in self.headers:
            return []
        return [value.decode("latin-1") for key, value in self.scope["headers"] if key == name]

    @property
    def content_length(self) -> int | None:
        """The announced length of the body; None if there is no body or its length is not known. Raises
        MalformedRequest."""
        text = self.header(b"content-length")
        if text is None:
            return None
        if not _LENGTH.fullmatch(text):
            raise MalformedRequest("Content-Length takes decimal digits")
        return int(text)

    @property
    def has_body(self) -> bool:
        """Whether bytes may follow the head."""
        return b"transfer-encoding" in self.headers or self.headers.get(b"content-length", b"0") != b"0"

    def parameter(self, name: str) -> str | None:
        """The query's only value of that name; None if there is none. Raises MalformedRequest."""
        values = self.parameters(name)
        if len(set(values)) > 1:
            raise MalformedRequest(f"the parameter {name!r} is there with different values")
        return values[0] if values else None

    def parameters(self, name: str) -> list[str]:
        """All of the query's values of that name. Raises MalformedRequest."""
        if not self.query:
            return []
        if self._parameters is None:
            self._parameters = _parse_query(self.query)
        return self._parameters.get(name, [])

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives. Raises ClientGone."""
        while not self.body_read:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            chunk: bytes = message.get("body", b"")
            self.bytes_in += len(chunk)
            self.body_read = not message.get("more_body", False)
            yield chunk

    async def gone(self) -> None:
        """Returns once the client has gone away, or has its answer. What comes of the body until then is dropped."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def send(self, message: Message) -> None:
        """Hands a message to the server; waits while the client is behind. Raises ClientGone (as ASGI has it, from 2.4
        on, a server's `send` raises OSError then)."""
        try:
            await self._send(message)
        except OSError as error:
            raise ClientGone from error

    def record(self, seconds: float) -> RequestRecord:
        """This request, now that it is over."""
        client = self.scope.get("client")
        return RequestRecord(
            request_id=self.request_id,
            method=self.method,
            route=self.route,
            status=self.status,
            seconds=seconds,
            bytes_in=self.bytes_in,
            bytes_out=self.bytes_out,
            repository=self.repository,
            client=client[0] if client else "",
            traceparent=self.header(b"traceparent") or "",
        )

    def _identify(self) -> str:
        given = self.headers.get(b"x-request-id")
        if given and _REQUEST_ID.fullmatch(given):
            return given.decode("ascii")
        return entropy.token_bytes(16).hex()


def _parse_query(query: bytes) -> dict[str, list[str]]:
    """A '+' stands for itself: nothing that is sent here holds a space, and media types hold a '+'."""
    pairs = query.split(b"&", MAX_PARAMETERS)
    if len(pairs) > MAX_PARAMETERS:
        raise TooManyParameters(f"more than {MAX_PARAMETERS} parameters")
    parameters: dict[str, list[str]] = {}
    try:
        for pair in pairs:
            name, _, value = pair.decode("ascii").partition("=")
            parameters.setdefault(unquote(name, errors="strict"), []).append(unquote(value, errors="strict"))
    except UnicodeDecodeError as error:
        raise MalformedRequest("the query is not percent-encoded UTF-8") from error
    return parameters
