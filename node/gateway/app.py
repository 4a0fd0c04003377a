"""The registry's HTTP API as an ASGI application.

Every request takes the same way: it is matched to a route, its caller is authorized, the endpoint's handler answers,
what went wrong becomes an answer too, the answer is delivered, and telemetry is told.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from consensus import clock
from node import logs
from node.access import Access, OpenPolicy, Policy
from node.config import Config
from node.gateway import routes
from node.gateway.errors import error_response
from node.gateway.forwarding import Forwarder
from node.gateway.gateway import Gateway
from node.gateway.refusals import ClientGone, MethodNotAllowed
from node.gateway.requests import Receive, Request, RequestRecord, Scope, Send
from node.gateway.responses import Response, deliver
from node.gateway.routes import Match
from node.registry import Registry
from replication.sources import TransferError

App = Callable[[Scope, Receive, Send], Awaitable[None]]
Matcher = Callable[[bytes], Match]
CLIENT_GONE = 499


class Observer(Protocol):
    """Who wants to know of every request. Called on the hot path."""

    def began(self) -> None:
        """A request's head has arrived; `__call__` will follow."""

    def __call__(self, record: RequestRecord) -> None:
        """A request is over."""


class Unobserved:
    """Nobody wants to know."""

    def began(self) -> None:
        """Nothing."""

    def __call__(self, record: RequestRecord) -> None:
        """Nothing."""


def create_app(
    registry: Registry,
    *,
    config: Config,
    policy: Policy | None = None,
    observe: Observer | None = None,
    forwarder: Forwarder | None = None,
    match: Matcher = routes.match,
) -> App:
    """The application. `policy` is the open one by default, the only one that can be configured so far; `forwarder`
    is the way to other nodes; `match` finds the route of a path."""
    gateway = Gateway(registry, Access(policy or OpenPolicy()), config.limits, forwarder)
    observer = observe or Unobserved()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await _serve(gateway, observer, match, Request(scope, receive, send))
        elif scope["type"] == "lifespan":
            await _live(receive, send)
        else:
            await send({"type": "websocket.close"})

    return app


async def _serve(gateway: Gateway, observer: Observer, match: Matcher, request: Request) -> None:
    began = clock.monotonic()
    observer.began()
    logs.request_id.set(request.request_id)
    try:
        # What goes wrong in delivering cannot be answered: it goes on to the server, which logs it and hangs up.
        await deliver(request, await _answer(gateway, match, request))
    except ClientGone:
        request.status = CLIENT_GONE
    except TransferError:
        pass  # with the body half sent; the fetcher has logged it, and the server cuts the answer off
    finally:
        request.status = request.status or CLIENT_GONE
        observer(request.record(clock.monotonic() - began))


async def _answer(gateway: Gateway, match: Matcher, request: Request) -> Response:
    try:
        return await _dispatch(gateway, match(request.path), request)
    except ClientGone:
        raise
    except Exception as error:
        return error_response(request, error)


async def _dispatch(gateway: Gateway, match: Match, request: Request) -> Response:
    request.route = match.route.name
    request.repository = match.repository.value if match.repository else ""
    request.allowed = match.route.endpoints
    endpoint = match.route.endpoints.get(request.method)
    if endpoint is None:
        raise MethodNotAllowed(request.method, request.allowed)
    if endpoint.action:
        gateway.access.authorize(request.principal, endpoint.action, match.repository)
    return await endpoint.handle(gateway, request, *match.arguments)


async def _live(receive: Receive, send: Send) -> None:
    while True:
        event = (await receive())["type"]
        await send({"type": f"{event}.complete"})
        if event == "lifespan.shutdown":
            return
