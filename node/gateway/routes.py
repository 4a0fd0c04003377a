"""Which endpoint a path means. A repository's name may hold any word, so paths are read from their end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

from consensus.errors import InvalidName
from consensus.names import RepositoryName
from node.access import Action
from node.gateway import blobs, manifests, referrers, tags, uploads
from node.gateway.gateway import Gateway
from node.gateway.refusals import RouteUnknown
from node.gateway.requests import Request
from node.gateway.responses import JSON, Response

Handler = Callable[..., Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What one method of a route does, and what its caller must be allowed to; None: whoever got as far may."""

    action: Action | None
    handle: Handler


@dataclass(frozen=True, slots=True)
class Route:
    """A kind of path. Handlers take the gateway and the request; those of a repository also its name, and what the
    path says behind it."""

    name: str
    endpoints: Mapping[str, Endpoint]


@dataclass(frozen=True, slots=True)
class Match:
    """A route, and what of its path varies."""

    route: Route
    repository: RepositoryName | None
    arguments: tuple[Any, ...]


async def get_base(gateway: Gateway, request: Request) -> Response:
    """end-1: this is a registry."""
    return Response(200, (JSON,), b"{}")


BASE = Route("base", dict.fromkeys(("GET", "HEAD"), Endpoint(Action.CONNECT, get_base)))
CATALOG = Route("catalog", dict.fromkeys(("GET", "HEAD"), Endpoint(Action.LIST, tags.get_catalog)))
MANIFEST = Route(
    "manifest",
    {
        "GET": Endpoint(Action.PULL, manifests.get_manifest),
        "HEAD": Endpoint(Action.PULL, manifests.get_manifest),
        "PUT": Endpoint(Action.PUSH, manifests.put_manifest),
        "DELETE": Endpoint(Action.DELETE, manifests.delete_manifest),
    },
)
BLOB = Route(
    "blob",
    {
        "GET": Endpoint(Action.PULL, blobs.get_blob),
        "HEAD": Endpoint(Action.PULL, blobs.get_blob),
        "DELETE": Endpoint(Action.DELETE, blobs.delete_blob),
    },
)
UPLOADS = Route("uploads", {"POST": Endpoint(Action.PUSH, uploads.post_upload)})
UPLOAD = Route(
    "upload",
    {
        "GET": Endpoint(Action.PUSH, uploads.at_owner(uploads.get_upload)),
        "HEAD": Endpoint(Action.PUSH, uploads.at_owner(uploads.get_upload)),
        "PATCH": Endpoint(Action.PUSH, uploads.at_owner(uploads.patch_upload)),
        "PUT": Endpoint(Action.PUSH, uploads.at_owner(uploads.put_upload)),
        "DELETE": Endpoint(Action.PUSH, uploads.at_owner(uploads.delete_upload)),
    },
)
TAGS = Route("tags", dict.fromkeys(("GET", "HEAD"), Endpoint(Action.LIST, tags.get_tags)))
REFERRERS = Route("referrers", dict.fromkeys(("GET", "HEAD"), Endpoint(Action.PULL, referrers.get_referrers)))


def match(path: bytes) -> Match:
    """The route of a path as it was sent, percent-encoded. Raises RouteUnknown, InvalidName."""
    if path in (b"/v2/", b"/v2"):
        return Match(BASE, None, ())
    if not path.startswith(b"/v2/"):
        raise RouteUnknown("the registry is under /v2/")
    if path == b"/v2/_catalog":
        return Match(CATALOG, None, ())
    segments = _decode(path).split("/")[2:]
    route, name, argument = _find(segments)
    if route is None or not name:
        raise RouteUnknown("no such endpoint")
    repository = RepositoryName.parse("/".join(name))
    return Match(route, repository, (repository, argument))


def _find(segments: list[str]) -> tuple[Route | None, list[str], str]:
    match segments:
        case [*name, "manifests", reference]:
            return MANIFEST, name, reference
        case [*name, "blobs", "uploads", ""] | [*name, "blobs", "uploads"]:
            return UPLOADS, name, ""
        case [*name, "blobs", "uploads", token]:
            return UPLOAD, name, token
        case [*name, "blobs", digest]:
            return BLOB, name, digest
        case [*name, "tags", "list"]:
            return TAGS, name, ""
        case [*name, "referrers", digest]:
            return REFERRERS, name, digest
        case _:
            return None, [], ""


def _decode(path: bytes) -> str:
    """An encoded slash or dot segment is refused rather than read as what it stands for."""
    if b"%" in path:
        decoded = unquote_to_bytes(path)
        if decoded.count(b"/") != path.count(b"/"):
            raise InvalidName("repository", repr(path), "an encoded slash")
        path = decoded
    try:
        return path.decode()
    except UnicodeDecodeError as error:
        raise InvalidName("repository", repr(path), "not UTF-8") from error
