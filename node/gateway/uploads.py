"""Blobs that are pushed and mounted (end-4, end-5, end-6, end-11, end-13, end-14)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from consensus.errors import InvalidName
from consensus.names import Digest, RepositoryName
from node.access import Action
from node.errors import ContentTooLarge, UploadProgress
from node.gateway.gateway import Gateway
from node.gateway.ranges import parse_content_range
from node.gateway.requests import Request
from node.gateway.responses import Header, Response

ALGORITHMS = ("sha256", "sha512")

Handler = Callable[[Gateway, Request, RepositoryName, str], Awaitable[Response]]


async def post_upload(gateway: Gateway, request: Request, repository: RepositoryName, _: str) -> Response:
    """end-4a, end-4b, end-4c, end-11: begins an upload, or takes a whole blob, or mounts one."""
    mount, digest = request.parameter("mount"), request.parameter("digest")
    if mount:
        wanted = Digest.parse(mount)
        if await _mount(gateway, request, repository, wanted):
            return _created(repository, wanted)
        return _accepted(await gateway.registry.uploads.begin(repository, wanted.algorithm))
    if digest is not None:
        whole = Digest.parse(digest)
        _require_room(gateway, request)
        await gateway.registry.uploads.push(repository, request.chunks(), whole)
        return _created(repository, whole)
    return _accepted(await gateway.registry.uploads.begin(repository, _algorithm(request)))


def at_owner(handle: Handler) -> Handler:
    """The handler, but for an upload of another node: then that one answers."""

    async def handle_there(gateway: Gateway, request: Request, repository: RepositoryName, token: str) -> Response:
        forwarder = gateway.forwarder
        if forwarder and (owner := forwarder.owner_elsewhere(token)):
            return await forwarder.forward(request, owner)
        return await handle(gateway, request, repository, token)

    return handle_there


async def patch_upload(gateway: Gateway, request: Request, repository: RepositoryName, token: str) -> Response:
    """end-5: the next chunk, or with no Content-Range as much as comes."""
    _require_room(gateway, request)
    span = parse_content_range(request.header(b"content-range"), request.content_length)
    progress = await gateway.registry.uploads.append(repository, token, request.chunks(), span)
    return _accepted(progress)


async def put_upload(gateway: Gateway, request: Request, repository: RepositoryName, token: str) -> Response:
    """end-6: the last chunk, if any, and the digest of the whole."""
    text = request.parameter("digest")
    if text is None:
        raise InvalidName("digest", "", "the parameter digest is missing")
    digest = Digest.parse(text)
    _require_room(gateway, request)
    span = parse_content_range(request.header(b"content-range"), request.content_length) if request.has_body else None
    await gateway.registry.uploads.finish(repository, token, request.chunks(), span=span, digest=digest)
    return _created(repository, digest)


async def get_upload(gateway: Gateway, request: Request, repository: RepositoryName, token: str) -> Response:
    """end-13: how far the upload has come."""
    return Response(204, progress_headers(await gateway.registry.uploads.progress(repository, token)))


async def delete_upload(gateway: Gateway, request: Request, repository: RepositoryName, token: str) -> Response:
    """end-14: cancels the upload."""
    await gateway.registry.uploads.cancel(repository, token)
    return Response(204)


def progress_headers(progress: UploadProgress) -> list[Header]:
    """Where to go on. `Range: 0-0` stands for nothing as well as for one byte: there is no way to say less."""
    return [
        (b"location", f"/v2/{progress.repository}/blobs/uploads/{progress.token}".encode()),
        (b"range", b"0-%d" % max(progress.offset - 1, 0)),
        (b"docker-upload-uuid", progress.upload_id.encode()),
    ]


def _require_room(gateway: Gateway, request: Request) -> None:
    """What is announced to be too much is not taken in first. Raises ContentTooLarge, MalformedRequest."""
    limit = gateway.limits.blob_bytes
    if (request.content_length or 0) > limit:
        raise ContentTooLarge("a blob", limit)


async def _mount(gateway: Gateway, request: Request, repository: RepositoryName, digest: Digest) -> bool:
    """Whoever may not read the source learns as much as if the blob were not there."""
    name = request.parameter("from")
    source = RepositoryName.parse(name) if name else None
    if not gateway.access.allows(request.principal, Action.PULL, source):
        return False
    return await gateway.registry.mount_blob(repository, digest, source)


def _algorithm(request: Request) -> str:
    algorithm = request.parameter("digest-algorithm")
    if algorithm is None:
        return ALGORITHMS[0]
    if algorithm not in ALGORITHMS:
        raise InvalidName("digest", algorithm, f"digest-algorithm is one of {', '.join(ALGORITHMS)}")
    return algorithm


def _accepted(progress: UploadProgress) -> Response:
    return Response(202, progress_headers(progress))


def _created(repository: RepositoryName, digest: Digest) -> Response:
    location = f"/v2/{repository}/blobs/{digest}".encode()
    return Response(201, ((b"location", location), (b"docker-content-digest", str(digest).encode())))
