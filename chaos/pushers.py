"""The workload: concurrent clients that push, tag, swap, mount, delete and pull, and note what they were told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from random import Random

from chaos import content
from chaos.content import Described, ManifestBytes
from chaos.history import Key, PendingUpload, Swap, Write, possible
from chaos.wire import NoAnswer, NotDone, Surprise, Wire
from consensus.clock import monotonic

REPOSITORIES = ("alpha", "beta/one", "beta/two", "gamma/deep/er")
TAGS = tuple(f"tag-{number}" for number in range(6))
SWAPPED_TAG = "swapped"  # only ever moved by compare-and-swap, to a manifest that never was there before

_PIECES = 4


async def run_pushers(wire: Wire, *, seed: str, count: int) -> None:
    """`count` pushers until the registry is gone; returns when all have noticed."""
    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(Pusher(wire, Random(f"{seed}/{number}"), f"{seed.replace('/', '-')}-{number}").run())


class Pusher:
    """One client. `name` is its own, for tags nobody else writes."""

    def __init__(self, wire: Wire, chance: Random, name: str) -> None:
        self._wire = wire
        self._history = wire.history
        self._chance = chance
        self._name = name
        self._made = 0
        self._actions: tuple[tuple[int, Callable[[str], Awaitable[None]]], ...] = (
            (10, self.push_image),
            (2, self.push_index),
            (1, self.push_large),
            (4, self.retag),
            (3, self.swap),
            (2, self.delete_tag),
            (2, self.retire),
            (2, self.push_and_delete_blob),
            (2, self.push_slowly),
            (1, self.leave_upload),
            (1, self.cancel_upload),
            (4, self.pull),
        )

    async def run(self) -> None:
        """Acts until the connection is cut on purpose."""
        weights = [weight for weight, _ in self._actions]
        while not self._wire.severed:
            _, action = self._chance.choices(self._actions, weights)[0]
            try:
                await action(self._chance.choice(REPOSITORIES))
            except NoAnswer:
                await asyncio.sleep(0.01)  # whoever severs the wire has said so by now, or it was a surprise
            except (NotDone, Surprise):
                continue

    # Blobs

    async def push_blob(self, repository: str, *, stays: bool = True) -> Described:
        """New content by any of the ways the specification has; raises NoAnswer, Surprise."""
        data = content.blob(self._chance)
        described = Described(content.digest_of(data), len(data))
        way = self._chance.choice((self._post_whole, self._post_put, self._post_patch_put))
        await self._recorded(
            Key("blob", repository, described.digest), described.digest, way(repository, data, described.digest)
        )
        if stays:
            self._history.pool["blob", repository].append(described)
        return described

    async def _post_whole(self, repository: str, data: bytes, digest: str) -> None:
        url = f"/v2/{repository}/blobs/uploads/?digest={digest}"
        headers = {"content-type": "application/octet-stream"}
        self._history.held.add((self._wire.address, digest))
        response = await self._wire.ask("POST", url, {201, 202}, headers=headers, body=data)
        if response.status_code == 202:  # the specification lets a registry decline
            await self._wire.close_upload(self._wire.expect_upload(repository, response, data, digest), data)

    async def _post_put(self, repository: str, data: bytes, digest: str) -> None:
        upload = await self._wire.begin_upload(repository, data, digest)
        await self._wire.close_upload(upload, data)

    async def _post_patch_put(self, repository: str, data: bytes, digest: str) -> None:
        upload = await self._wire.begin_upload(repository, data, digest)
        sent = await self._send(upload, 0, len(data) - (len(data) // 3 if self._chance.random() < 0.5 else 0))
        await self._wire.close_upload(upload, data[sent:])

    async def _send(self, upload: PendingUpload, start: int, end: int) -> int:
        step = max(16, -(-(end - start) // self._chance.randint(1, _PIECES)))
        for at in range(start, end, step):
            chunk = upload.content[at : min(at + step, end)]
            await self._wire.send_chunk(upload, at, chunk, len(chunk))
        return end

    async def mount(self, repository: str) -> Described | None:
        """A blob of another repository; None if there is none yet."""
        source = self._chance.choice([name for name in REPOSITORIES if name != repository])
        held = self._history.pool["blob", source]
        if not held:
            return None
        blob = self._chance.choice(held)
        url = f"/v2/{repository}/blobs/uploads/?mount={blob.digest}&from={source}"
        await self._recorded(Key("blob", repository, blob.digest), blob.digest, self._wire.ask("POST", url, {201}))
        self._history.pool["blob", repository].append(blob)
        return blob

    async def push_and_delete_blob(self, repository: str) -> None:
        """A blob nobody refers to comes and goes."""
        blob = await self.push_blob(repository, stays=False)
        if self._chance.random() < 0.7:
            url = f"/v2/{repository}/blobs/{blob.digest}"
            await self._recorded(Key("blob", repository, blob.digest), None, self._wire.ask("DELETE", url, {202}))

    async def push_slowly(self, repository: str) -> None:
        """One upload whose body trickles in, so that the end often finds it under way."""
        data = self._chance.randbytes(self._chance.randint(8, 256) * 1024)
        digest = content.digest_of(data)
        upload = await self._wire.begin_upload(repository, data, digest)
        await self._wire.send_chunk(upload, 0, self._trickle(data), len(data))
        await self._recorded(Key("blob", repository, digest), digest, self._wire.close_upload(upload, b""))

    async def _trickle(self, data: bytes) -> AsyncIterator[bytes]:
        step = -(-len(data) // 16)
        for at in range(0, len(data), step):
            yield data[at : at + step]
            await asyncio.sleep(self._chance.random() * 0.03)

    async def leave_upload(self, repository: str) -> None:
        """An upload left half-way: the audit takes it up."""
        data = content.blob(self._chance)
        upload = await self._wire.begin_upload(repository, data, content.digest_of(data))
        await self._send(upload, 0, len(data) * self._chance.randint(0, 3) // 3)

    async def cancel_upload(self, repository: str) -> None:
        """An upload begun and called off."""
        data = content.blob(self._chance)
        upload = await self._wire.begin_upload(repository, data, content.digest_of(data))
        await self._send(upload, 0, len(data) // 2)
        await self._wire.cancel_upload(upload)

    # Manifests and tags

    async def _new_image(self, repository: str) -> ManifestBytes:
        blobs = []
        for _ in range(self._chance.randint(1, 3)):
            held = self._history.pool["blob", repository]
            draw = self._chance.random()
            mounted = await self.mount(repository) if draw < 0.25 else None
            if mounted:
                blobs.append(mounted)
            elif held and draw < 0.5:
                blobs.append(self._chance.choice(held))
            else:
                blobs.append(await self.push_blob(repository))
        return content.image(blobs, self._chance)

    async def push_image(self, repository: str) -> None:
        """Blobs, then their manifest, by tag or by digest."""
        manifest = await self._new_image(repository)
        await self._put(repository, self._chance.choice(TAGS) if self._chance.random() < 0.7 else None, manifest)
        self._history.pool["manifest", repository].append(Described(manifest.digest, len(manifest.content)))

    async def push_index(self, repository: str) -> None:
        """An index over images that are there."""
        held = self._history.pool["manifest", repository]
        if held:
            children = [self._chance.choice(held) for _ in range(self._chance.randint(1, 3))]
            await self._put(repository, self._chance.choice(TAGS), content.index(children, self._chance))

    async def push_large(self, repository: str) -> None:
        """A manifest that needs several commands of the log."""
        await self._put(repository, self._chance.choice(TAGS), content.large(self._chance))

    async def retag(self, repository: str) -> None:
        """Bytes that are there already, under one more tag."""
        held = self._history.pool["manifest", repository]
        if held:
            digest = self._chance.choice(held).digest
            response = await self._wire.ask(
                "GET", f"/v2/{repository}/manifests/{digest}", {200}, headers={"accept": content.ANY_MANIFEST}
            )
            manifest = ManifestBytes(response.headers["content-type"], response.content)
            await self._put(repository, self._chance.choice(TAGS), manifest)

    async def swap(self, repository: str) -> None:
        """Compare-and-swap of the tag that only moves so."""
        manifest = await self._new_image(repository)
        response = await self._wire.ask(
            "HEAD", f"/v2/{repository}/manifests/{SWAPPED_TAG}", {200, 404}, headers={"accept": content.ANY_MANIFEST}
        )
        current = response.headers["docker-content-digest"] if response.status_code == 200 else None
        condition = {"if-match": f'"{current}"'} if current else {"if-none-match": "*"}
        if await self._put(repository, SWAPPED_TAG, manifest, condition=condition):
            self._history.swaps.append(Swap(Key("tag", repository, SWAPPED_TAG), current, manifest.digest))

    async def delete_tag(self, repository: str) -> None:
        """DELETE by tag; 404 if another pusher was first."""
        tag = self._chance.choice(TAGS)
        key = Key("tag", repository, tag)
        write = self._begin(key, None)
        async with self._refusable([(key, write)]):
            response = await self._wire.ask("DELETE", f"/v2/{repository}/manifests/{tag}", {202, 404})
        if response.status_code == 202:
            self._history.acknowledge(write, monotonic())
        else:
            self._history.refuse(key, write)

    async def retire(self, repository: str) -> None:
        """A manifest under a tag of its own, deleted by digest: both go at once."""
        self._made += 1
        tag, manifest = f"own-{self._name}-{self._made}"[:128], await self._new_image(repository)
        await self._put(repository, tag, manifest)
        keys = [Key("tag", repository, tag), Key("manifest", repository, manifest.digest)]
        writes = [(key, self._begin(key, None)) for key in keys]
        async with self._refusable(writes):
            await self._wire.ask("DELETE", f"/v2/{repository}/manifests/{manifest.digest}", {202})
        for _, write in writes:
            self._history.acknowledge(write, monotonic())

    async def pull(self, repository: str) -> None:
        """A tag as it is now; what no order of the known writes explains is a surprise."""
        key, started = Key("tag", repository, self._chance.choice(TAGS)), monotonic()
        url = f"/v2/{repository}/manifests/{key.name}"
        response = await self._wire.ask("GET", url, {200, 404}, headers={"accept": content.ANY_MANIFEST})
        seen = content.digest_of(response.content) if response.status_code == 200 else None
        allowed = possible(self._history.writes.get(key, ()), started, monotonic())
        if seen not in allowed:
            self._history.surprises.append(f"{key}: read {seen}, but only {allowed} are possible")

    async def _put(
        self, repository: str, tag: str | None, manifest: ManifestBytes, *, condition: dict[str, str] | None = None
    ) -> bool:
        keys = [Key("manifest", repository, manifest.digest)]
        keys += [Key("tag", repository, tag)] if tag else []
        writes = [(key, self._begin(key, manifest.digest)) for key in keys]
        async with self._refusable(writes):
            done = await self._wire.put_manifest(repository, tag or manifest.digest, manifest, condition=condition)
        for key, write in writes:
            if done:
                self._history.acknowledge(write, monotonic())
            else:
                self._history.refuse(key, write)
        return done

    async def _recorded(self, key: Key, value: str | None, request: Awaitable[object]) -> None:
        write = self._begin(key, value)
        async with self._refusable([(key, write)]):
            await request
        self._history.acknowledge(write, monotonic())

    def _begin(self, key: Key, value: str | None) -> Write:
        return self._history.begin(key, value, monotonic(), place=self._wire.address)

    @asynccontextmanager
    async def _refusable(self, writes: list[tuple[Key, Write]]) -> AsyncIterator[None]:
        try:
            yield
        except NotDone:
            for key, write in writes:
                self._history.refuse(key, write)
            raise
