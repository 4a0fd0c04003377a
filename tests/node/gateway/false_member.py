"""A member of a cluster that does not do what members do: its certificate is right, what it sends is up to a test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import msgspec

from consensus.names import StoreId
from node.config import Limits
from node.gateway.requests import Receive, Scope, Send
from node.gateway.server import HttpServer
from replication.inventory import INVENTORY_PATH
from tests.node.gateway.regions import Cluster
from tests.node.member_certificates import CLUSTER_ID

NODE_ID = "f" * 32


@dataclass
class Giving:
    """A request for a blob from `offset` to before `stop`. `go_on` is the test's to set."""

    offset: int
    stop: int
    send: Send
    go_on: asyncio.Event
    given: int = 0

    async def begin(self, size: int) -> None:
        """The head of a right answer to a request for a blob of that size."""
        stop = min(self.stop, size)
        headers = [(b"content-length", b"%d" % (stop - self.offset))]
        headers.append((b"content-range", b"bytes %d-%d/%d" % (self.offset, stop - 1, size)))
        await self.send({"type": "http.response.start", "status": 206, "headers": headers})

    async def give_all(self, content: bytes) -> None:
        """A right answer."""
        await self.begin(len(content))
        await self.give(content[self.offset : self.stop], more=False)

    async def give_some(self, content: bytes, upto: int) -> None:
        """The beginning of a right answer, up to a byte of the blob; `give_rest` follows."""
        await self.begin(len(content))
        self.given = max(self.offset, min(upto, self.stop))
        await self.give(content[self.offset : self.given])

    async def give_rest(self, content: bytes) -> None:
        """The end of an answer that `give_some` began."""
        await self.give(content[self.given : self.stop], more=False)

    async def give(self, body: bytes, *, more: bool = True) -> None:
        await self.send({"type": "http.response.body", "body": body, "more_body": more})


Give = Callable[[Giving], Awaitable[None]]
Answer = Callable[[Scope, Receive, Send], Awaitable[None]]


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


@dataclass
class FalseMember:
    """Whoever asks for a blob gets what `give` makes of it, who asks for its inventory what `tell` does, by default
    404; any other request is for `answer`."""

    name: str
    store: StoreId
    give: Give
    answer: Answer | None = None
    tell: Answer | None = None
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    offsets: list[int] = field(default_factory=list)
    introductions: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path == "/meridian/v1/identity":
            self.introductions += 1
            identity = {"cluster_id": CLUSTER_ID, "node_id": NODE_ID, "member": self.name, "region": "x"}
            body = msgspec.json.encode({**identity, "store_id": self.store})
            headers = [(b"content-length", b"%d" % len(body))]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})
        elif path.startswith("/meridian/v1/blobs/"):
            first, last = map(int, dict(scope["headers"])[b"range"].removeprefix(b"bytes=").split(b"-"))
            self.offsets.append(first)
            await self.give(Giving(first, last + 1, send, self.go_on))
        elif path == INVENTORY_PATH:
            await (self.tell or _not_found)(scope, receive, send)
        elif self.answer:
            await self.answer(scope, receive, send)


async def nothing(giving: Giving) -> None:
    """Never answers."""
    await giving.go_on.wait()


@asynccontextmanager
async def false_member(cluster: Cluster, name: str, give: Give = nothing) -> AsyncIterator[FalseMember]:
    """It serves while the block runs."""
    place = cluster.places.get(name) or cluster.add(name)
    member = FalseMember(name, StoreId(name.encode().hex().ljust(32, "0")), give)
    server = HttpServer(member, Limits(), tls=place.files.server_context())
    await server.start(place.listener)
    try:
        yield member
    finally:
        member.go_on.set()
        await server.drain(0)
