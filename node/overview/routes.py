"""Replication on the admin address: from HTTP to the overview and back."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Awaitable, Callable

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from consensus.errors import UNDECODABLE, InvalidName, StateRefused
from consensus.names import Digest, Reference, RepositoryName, parse_reference
from node.errors import ManifestUnknown, StateUnconfirmed
from node.overview import operations
from node.overview.openapi import describe
from node.overview.operations import Operation
from node.overview.overview import BlobUnknown, ImageTooLarge, MemberUnknown, Overview
from node.overview.shapes import MAX_BODY_BYTES, BringRequest, Problem, Problems, Shape
from replication.stores import StoreError

JSON = "application/json"

log = logging.getLogger(__name__)

Answering = Callable[[Overview, Request], Awaitable[Shape]]


class _Refused(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


def overview_routes(overview: Callable[[], Overview | None]) -> list[Route]:
    """`overview` is None as long as the node does not serve yet."""

    async def description(_: Request) -> Response:
        return Response(describe(), media_type=JSON)

    return [
        *(_route(operation, overview, answering) for operation, answering in _ANSWERING),
        Route(operations.DESCRIPTION_PATH, description),
    ]


async def _own(overview: Overview, _: Request) -> Shape:
    return await overview.own()


async def _all(overview: Overview, _: Request) -> Shape:
    return await overview.statuses()


async def _blob(overview: Overview, request: Request) -> Shape:
    return await overview.blob(Digest.parse(request.path_params["digest"]))


async def _image(overview: Overview, request: Request) -> Shape:
    return await overview.image(*_named(request))


async def _bring(overview: Overview, request: Request) -> Shape:
    # A page in somebody's browser may send text to any address, but JSON only after asking, which nobody answers.
    if request.headers.get("content-type", "").partition(";")[0].strip() != JSON:
        raise _Refused(415, "INVALID", f"the body's type has to be {JSON}")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise _Refused(413, "TOO_LARGE", f"a request takes at most {MAX_BODY_BYTES} bytes here")
    try:
        asked = msgspec.json.decode(body, type=BringRequest)
    except UNDECODABLE as error:
        raise _Refused(400, "INVALID", f"not a list of members: {error}") from error
    return await overview.bring(*_named(request), asked.members)


_ANSWERING: tuple[tuple[Operation, Answering], ...] = (
    (operations.OWN, _own),
    (operations.REGIONS, _all),
    (operations.BLOB, _blob),
    (operations.IMAGE, _image),
    (operations.BRING, _bring),
)


def _opened(overview: Overview | None) -> Overview:
    if overview is None:
        raise _Refused(503, "UNAVAILABLE", "this node does not serve yet")
    return overview


def _named(request: Request) -> tuple[RepositoryName, Reference]:
    parameters = request.path_params
    return RepositoryName.parse(parameters["repository"]), parse_reference(parameters["reference"])


def _route(operation: Operation, overview: Callable[[], Overview | None], answering: Answering) -> Route:
    async def endpoint(request: Request) -> Response:
        try:
            answer = await answering(_opened(overview()), request)
        except Exception as error:
            refused = _refusal(error)
            problem = Problem(code=refused.code, message=str(refused))  # type: ignore[arg-type]
            return Response(msgspec.json.encode(Problems(errors=(problem,))), refused.status, media_type=JSON)
        return Response(msgspec.json.encode(answer), min(operation.answers), media_type=JSON)

    path = operation.path.replace("{repository}", "{repository:path}")
    return Route(path, endpoint, methods=[operation.method.upper()], name=operation.name)


def _refusal(error: Exception) -> _Refused:
    """How it is answered; what nobody asked for is raised again."""
    match error:
        case _Refused():
            return error
        case InvalidName():
            return _Refused(400, "INVALID", str(error))
        case MemberUnknown():
            return _Refused(400, "UNKNOWN", str(error))
        case BlobUnknown() | ManifestUnknown():
            return _Refused(404, "UNKNOWN", str(error))
        case ImageTooLarge():
            return _Refused(413, "TOO_LARGE", str(error))
        case StateUnconfirmed():
            return _Refused(503, "UNAVAILABLE", f"what the tag stands for cannot be confirmed: {error}")
        case StoreError() | StateRefused() | sqlite3.Error() | OSError():
            log.error("overview_failed", exc_info=error)
            return _Refused(503, "UNAVAILABLE", "this node's storage failed")
        case ClientDisconnect():
            return _Refused(400, "INVALID", "the request ended early")
        case _:
            raise error
