"""Layers that come before they are asked for, because another of their image was."""

from __future__ import annotations

import asyncio

from tests.node.gateway.false_member import Giving, false_member
from tests.node.gateway.regions import REPOSITORY, Cluster, Region, two_regions
from tests.node.gateway.rig import MANIFEST, image
from tests.node.gateway.test_gateway_fetching import noise, routes, url
from tests.node.http_server import on_uvloop


async def push_image(giver: Region, taker: Region, *contents: bytes) -> list[str]:
    """The giver has the blobs, the taker knows so, and of their manifest; returns their digests."""
    digests = []
    for content in (b"{}", *contents):
        digests.append(await giver.push(content))
        await taker.learn(content, giver.store)
    content = image(*digests[1:])
    headers = {"content-type": MANIFEST}
    put = await taker.client.put(f"/v2/{REPOSITORY}/manifests/v{len(contents)}", content=content, headers=headers)
    assert put.status_code == 201, put.text
    return digests


async def holds(region: Region, *digests: str) -> bool:
    return all([await region.holds(digest) for digest in digests])


@on_uvloop
async def test_the_other_layers_of_an_image_come_ahead(cluster: Cluster) -> None:
    contents = [noise(300_000, f"ahead {number}") for number in range(6)]
    async with two_regions(cluster) as (eu, us):
        config, *layers = await push_image(eu, us, *contents)
        await us.client.head(url(layers[0]))
        await asyncio.sleep(0.2)
        assert "held_blob" not in routes(eu)
        assert (await us.client.get(url(layers[0]))).content == contents[0]
        async with asyncio.timeout(20):
            while not await holds(us, config, *layers):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        asked = routes(eu).count("held_blob")
        assert asked == 7
        for digest, content in zip(layers, contents, strict=True):
            assert (await us.client.get(url(digest))).content == content
        assert routes(eu).count("held_blob") == asked


@on_uvloop
async def test_what_is_fetched_ahead_and_then_asked_for_is_one_transfer(cluster: Cluster) -> None:
    first, second = noise(1000, "first"), noise(1_500_000, "second")

    async def late(giving: Giving) -> None:
        await giving.give_some(second, 300_000)
        await giving.go_on.wait()
        await giving.give_rest(second)

    async with false_member(cluster, "ap", late) as ap, two_regions(cluster) as (eu, us):
        await us.learn(second, ap.store)
        digest = await eu.push(first)
        await us.learn(first, eu.store)
        content = image(digest, ahead := await us.learn(second, ap.store))
        await us.learn(b"{}", eu.store)
        await eu.push(b"{}")
        headers = {"content-type": MANIFEST}
        put = await us.client.put(f"/v2/{REPOSITORY}/manifests/v1", content=content, headers=headers)
        assert put.status_code == 201, put.text
        assert (await us.client.get(url(digest))).content == first
        async with asyncio.timeout(10):
            while not ap.offsets:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        async with us.client.stream("GET", url(ahead)) as answer:
            received = b""
            async for chunk in answer.aiter_raw():
                received += chunk
                ap.go_on.set()
        assert received == second
        assert ap.offsets[0] == 0
        assert set(ap.offsets[1:]) <= {300_000}


@on_uvloop
async def test_what_nobody_has_does_not_hold_up_what_is_asked_for(cluster: Cluster) -> None:
    contents = [noise(5000, f"some {number}") for number in range(4)]
    async with two_regions(cluster) as (eu, us):
        config, *layers = await push_image(eu, us, *contents)
        missing = await us.learn(b"nobody has it", eu.store)
        manifest = image(layers[0], missing)
        headers = {"content-type": MANIFEST}
        await us.client.put(f"/v2/{REPOSITORY}/manifests/broken", content=manifest, headers=headers)
        for digest, content in zip(layers, contents, strict=True):
            assert (await us.client.get(url(digest))).content == content
        assert (await us.client.get(url(missing))).status_code == 503
        assert (await us.client.get(url(config))).content == b"{}"
