"""What a restarted registry answers: the questions an audit asks over HTTP. `chaos.audit` judges the answers.

First every upload that was left is taken up and finished; then everything is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import httpx

from chaos import content
from chaos.history import Key, PendingUpload
from chaos.wire import NoAnswer, NotDone, Surprise, Wire
from consensus.clock import monotonic

_CONCURRENCY = 16
_PAGE = 7  # small, so that listings are read page by page


@dataclass(frozen=True, slots=True)
class Answer:
    """One GET (with its HEAD): the digest of the bytes that came, the digest that was claimed, what they refer to."""

    status: int
    head_status: int
    digest: str | None = None
    claimed: str | None = None
    references: tuple[Key, ...] = ()


@dataclass(eq=False, slots=True)
class Observations:
    """All answers of one audit. `tags` is what each repository lists; `uploads` tells how each left upload ended."""

    answers: dict[Key, Answer] = field(default_factory=dict)
    repositories: tuple[str, ...] = ()
    tags: dict[str, tuple[str, ...]] = field(default_factory=dict)
    uploads: list[tuple[PendingUpload, str]] = field(default_factory=list)  # "resumed", "gone" or what went wrong


async def observe(wire: Wire, keys: Iterable[Key], *, heads: bool = True, far: Collection[str] = ()) -> Observations:
    """Asks about `keys`, about everything that is listed, and about everything those refer to: of blobs about those
    that were pushed here, and those whose digests are among `far`. Without `heads` there is no HEAD."""
    seen = Observations()
    await _finish_uploads(wire, seen)
    await _list(wire, seen)
    wanted = {*keys, *(Key("tag", name, tag) for name, tags in seen.tags.items() for tag in tags)}
    wanted |= {Key("blob", upload.repository, upload.digest) for upload, end in seen.uploads if end == "resumed"}
    held = {digest for place, digest in wire.history.held if place == wire.address}.union(far)
    while wanted := {key for key in wanted if key.kind != "blob" or key.name in held}:
        await _ask_all(wire, wanted, seen, heads)
        wanted = {key for answer in seen.answers.values() for key in answer.references} - seen.answers.keys()
    return seen


async def _finish_uploads(wire: Wire, seen: Observations) -> None:
    for upload in [each for each in wire.history.uploads if each.place == wire.address]:
        key = Key("blob", upload.repository, upload.digest)
        write = wire.history.begin(key, upload.digest, monotonic())
        try:
            offset = await wire.upload_offset(upload)
            if offset is None:
                wire.history.uploads.remove(upload)
                wire.history.refuse(key, write)
                seen.uploads.append((upload, "gone"))
                continue
            await _resume(wire, upload, offset)
            wire.history.acknowledge(write, monotonic())
            seen.uploads.append((upload, "resumed"))
        except (NoAnswer, NotDone, Surprise):
            seen.uploads.append((upload, wire.history.surprises.pop()))


async def _resume(wire: Wire, upload: PendingUpload, offset: int) -> None:
    middle = (offset + len(upload.content)) // 2
    if offset < middle:
        await wire.send_chunk(upload, offset, upload.content[offset:middle], middle - offset)
        offset = middle
    await wire.close_upload(upload, upload.content[offset:])


async def _list(wire: Wire, seen: Observations) -> None:
    seen.repositories = tuple(await _pages(wire, f"/v2/_catalog?n={_PAGE}", "repositories"))
    for repository in seen.repositories:
        seen.tags[repository] = tuple(await _pages(wire, f"/v2/{repository}/tags/list?n={_PAGE}", "tags"))


async def _pages(wire: Wire, url: str, field_name: str) -> list[str]:
    found: list[str] = []
    at: str | httpx.URL | None = url
    while at:
        response = await wire.ask("GET", at, {200})
        found += response.json()[field_name]
        at = response.links["next"]["url"] if "next" in response.links else None
    return found


async def _ask_all(wire: Wire, keys: Iterable[Key], seen: Observations, heads: bool) -> None:
    slots = asyncio.Semaphore(_CONCURRENCY)

    async def one(key: Key) -> None:
        async with slots:
            seen.answers[key] = await _ask(wire, key, heads)

    async with asyncio.TaskGroup() as group:
        for key in keys:
            group.create_task(one(key))


async def _ask(wire: Wire, key: Key, heads: bool) -> Answer:
    url = f"/v2/{key.repository}/{'blobs' if key.kind == 'blob' else 'manifests'}/{key.name}"
    headers = {"accept": content.ANY_MANIFEST}
    head = await wire.ask("HEAD", url, range(200, 600), headers=headers) if heads else None
    response = await wire.ask("GET", url, range(200, 600), headers=headers)
    head_status = (head or response).status_code
    if response.status_code != 200:
        return Answer(response.status_code, head_status)
    body, kind = response.content, response.headers["content-type"]
    digest = content.digest_of(body)
    needed = content.references(kind, body) if key.kind != "blob" else ()
    needed += (("manifest", digest),) if key.kind == "tag" else ()
    return Answer(
        status=200,
        head_status=head_status,
        digest=digest,
        claimed=response.headers.get("docker-content-digest"),
        references=tuple(Key(what, key.repository, digest) for what, digest in needed),
    )
