"""Manifests (end-3, end-7, end-9)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import msgspec

from consensus.errors import UNDECODABLE, InvalidManifest, InvalidName
from consensus.names import Digest, Reference, RepositoryName, Tag, parse_media_type, parse_reference
from node.errors import ContentTooLarge
from node.gateway.gateway import Gateway
from node.gateway.negotiation import is_acceptable
from node.gateway.preconditions import entity_tag, is_fresh, parse_condition, require_match
from node.gateway.refusals import MalformedRequest, TagImpossible, TooManyParameters, TypeNotAcceptable
from node.gateway.requests import Request
from node.gateway.responses import IMMUTABLE, Header, Response
from node.registry import ManifestPush

MAX_TAGS = 100
_TAG_LINES = 20
# A manifest can be of any media type. A browser that is led to one must not run it in this registry's name.
_HARMLESS: Header = (b"content-security-policy", b"default-src 'none'; sandbox")


async def get_manifest(gateway: Gateway, request: Request, repository: RepositoryName, text: str) -> Response:
    """end-3: a manifest by tag or digest; for HEAD without its bytes, and 304 if the client has it."""
    reference = _existing(text)
    view = await gateway.registry.resolve(repository, reference)
    if not is_acceptable(request.header_lines(b"accept"), view.media_type):
        raise TypeNotAcceptable(view.media_type)
    headers = _headers(view.digest, view.media_type)
    if isinstance(reference, Digest):
        headers = (*headers, IMMUTABLE)
    require_match(request, view.digest)
    if is_fresh(request, view.digest):
        return Response(304, headers)
    if request.method == "HEAD":
        return Response(200, headers, length=view.size_bytes)
    return Response(200, headers, gateway.registry.content(repository, view.digest))


async def put_manifest(gateway: Gateway, request: Request, repository: RepositoryName, text: str) -> Response:
    """end-7a, end-7b: a manifest under a tag, or under its digest and any number of tags."""
    reference = parse_reference(text)
    tags = (reference,) if isinstance(reference, Tag) else ()
    more = tuple(dict.fromkeys(map(Tag.parse, request.parameters("tag"))))
    if more and tags:
        raise MalformedRequest("tag parameters go with a digest, not with a tag")
    if len(more) > MAX_TAGS:
        raise TooManyParameters(f"at most {MAX_TAGS} tags in one request")
    condition = parse_condition(request)
    if len(more) > 1 and not condition.is_fixed:
        raise MalformedRequest("a condition on several tags takes one digest, or If-None-Match: *")
    content = await _read(gateway, request)
    try:
        push = ManifestPush(
            content=content,
            media_type=_media_type(request, content),
            digest=reference if isinstance(reference, Digest) else None,
            tags=tags or more,
            condition=condition,
        )
        pushed = await gateway.registry.push_manifest(repository, push)
    finally:
        gateway.buffered.release(len(content))
    headers = [
        (b"location", f"/v2/{repository}/manifests/{pushed.digest}".encode()),
        (b"docker-content-digest", str(pushed.digest).encode()),
        (b"etag", entity_tag(pushed.digest)),
    ]
    if pushed.subject:
        headers.append((b"oci-subject", str(pushed.subject).encode()))
    return Response(201, [*headers, *_tag_headers(more)])


async def delete_manifest(gateway: Gateway, request: Request, repository: RepositoryName, text: str) -> Response:
    """end-9: a tag, or a manifest with all its tags."""
    reference, condition = _existing(text), parse_condition(request)
    if isinstance(reference, Tag):
        await gateway.registry.delete_tag(repository, reference, condition)
    else:
        await gateway.registry.delete_manifest(repository, reference, condition)
    return Response(202)


def _existing(text: str) -> Reference:
    """What is to be there already. A tag that does not parse names nothing that could be: not found, as the released
    conformance suites (up to v1.1.1) ask for. Raises TagImpossible, InvalidName for a digest."""
    try:
        return parse_reference(text)
    except InvalidName as error:
        if error.kind != "tag":
            raise
        raise TagImpossible(error) from error


def _tag_headers(tags: Sequence[Tag]) -> list[Header]:
    """One line for each tag, while they are few: clients read no more than about a hundred lines."""
    step = max(1, -(-len(tags) // _TAG_LINES))
    groups = (tags[first : first + step] for first in range(0, len(tags), step))
    return [(b"oci-tag", ", ".join(tag.value for tag in group).encode()) for group in groups]


@lru_cache(maxsize=4096)
def _headers(digest: Digest, media_type: str) -> tuple[Header, ...]:
    return (
        (b"content-type", media_type.encode()),
        (b"docker-content-digest", str(digest).encode()),
        (b"etag", entity_tag(digest)),
        (b"vary", b"accept"),
        _HARMLESS,
    )


async def _read(gateway: Gateway, request: Request) -> bytes:
    """The whole body, counted as buffered until the caller releases it. Raises ContentTooLarge as soon as it is."""
    limit = gateway.limits.manifest_bytes
    _require_room(request.content_length or 0, limit)
    pieces: list[bytes] = []
    size = 0
    try:
        async for chunk in request.chunks():
            gateway.buffered.take(len(chunk))
            size += len(chunk)
            _require_room(size, limit)
            pieces.append(chunk)
    except BaseException:
        gateway.buffered.release(size)
        raise
    return b"".join(pieces)


def _require_room(size: int, limit: int) -> None:
    if size > limit:
        raise ContentTooLarge("a manifest", limit)


class _Typed(msgspec.Struct):
    mediaType: str  # noqa: N815  as the specification spells it


def _media_type(request: Request, content: bytes) -> str:
    given = request.header(b"content-type")
    if given:
        return parse_media_type(given)
    try:
        return parse_media_type(msgspec.json.decode(content, type=_Typed).mediaType)
    except UNDECODABLE as error:
        raise InvalidManifest("neither Content-Type nor a mediaType field says what this is") from error
