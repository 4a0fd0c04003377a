"""Blobs that are read and deleted (end-2, end-10)."""

from __future__ import annotations

import asyncio
from functools import partial

from consensus.names import Digest, RepositoryName
from node.gateway.following import Follower
from node.gateway.gateway import Gateway
from node.gateway.preconditions import entity_tag, is_fresh, parse_condition, require_match
from node.gateway.ranges import Slice, parse_range
from node.gateway.refusals import ClientGone
from node.gateway.requests import Request
from node.gateway.responses import IMMUTABLE, Header, Response
from replication.passage import Passage
from replication.stores import BlobReader, StoreFailed

CHUNK_BYTES = 512 * 1024


async def get_blob(gateway: Gateway, request: Request, repository: RepositoryName, text: str) -> Response:
    """end-2: a blob or a part of it; for HEAD its size, and 304 if the client has it."""
    digest = Digest.parse(text)
    view = await gateway.registry.blob(repository, digest, is_read=request.method == "GET")
    headers = _headers(digest)
    require_match(request, digest)
    if is_fresh(request, digest):
        return Response(304, headers)
    if request.method == "HEAD":
        return Response(200, headers, length=view.size_bytes)
    part = _part(request, digest, view.size_bytes)
    sent = part or Slice(0, view.size_bytes)
    reader = await gateway.registry.open_blob(repository, digest, view.size_bytes, sent.start, sent.stop)
    return _content(digest, reader, part)


async def get_held_blob(gateway: Gateway, request: Request, text: str) -> Response:
    """For another node: a blob that this one holds, or a part of it, whichever repository has it."""
    digest = Digest.parse(text)
    reader = await gateway.registry.open_held(digest)
    try:
        part = _part(request, digest, reader.size_bytes)
    except BaseException:
        reader.close()
        raise
    return _content(digest, reader, part)


def _content(digest: Digest, reader: BlobReader, part: Slice | None) -> Response:
    headers = _headers(digest)
    if part:
        headers += ((b"content-range", b"bytes %d-%d/%d" % (part.start, part.stop - 1, reader.size_bytes)),)
    sent = part or Slice(0, reader.size_bytes)
    send = _send_while_there if isinstance(reader, Follower | Passage) else _send
    return Response(
        206 if part else 200,
        headers,
        length=sent.stop - sent.start,
        stream=partial(send, reader, sent),
        close=reader.close,
    )


async def delete_blob(gateway: Gateway, request: Request, repository: RepositoryName, text: str) -> Response:
    """end-10: the blob leaves the repository."""
    await gateway.registry.delete_blob(repository, Digest.parse(text), parse_condition(request))
    return Response(202)


def _headers(digest: Digest) -> tuple[Header, ...]:
    return (
        (b"content-type", b"application/octet-stream"),
        (b"docker-content-digest", str(digest).encode()),
        (b"etag", entity_tag(digest)),
        (b"accept-ranges", b"bytes"),
        IMMUTABLE,
    )


def _part(request: Request, digest: Digest, size_bytes: int) -> Slice | None:
    if b"range" not in request.headers:
        return None
    if request.headers.get(b"if-range", entity_tag(digest)) != entity_tag(digest):
        return None
    return parse_range(request.header(b"range"), size_bytes)


async def _send_while_there(reader: BlobReader, part: Slice, request: Request) -> None:
    """Of a blob that still comes: waiting for more of it, one would not notice that the client has gone."""
    sending = asyncio.ensure_future(_send(reader, part, request))
    gone = asyncio.ensure_future(request.gone())
    try:
        await asyncio.wait((sending, gone), return_when=asyncio.FIRST_COMPLETED)
        if not sending.done():
            raise ClientGone
        await sending
    finally:
        sending.cancel()
        gone.cancel()
        await asyncio.wait((sending, gone))


async def _send(reader: BlobReader, part: Slice, request: Request) -> None:
    """Reads as the client does: `send` waits while it is behind, and raises when it has gone."""
    offset, more = part.start, True
    while more:
        chunk = await reader.read(offset, min(CHUNK_BYTES, part.stop - offset))
        if not chunk and offset < part.stop:
            raise StoreFailed("a blob's file became shorter while it was read")
        offset += len(chunk)
        more = offset < part.stop
        await request.send({"type": "http.response.body", "body": chunk, "more_body": more})
        request.bytes_out += len(chunk)
