"""Pulls of blobs that another node holds."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Callable

import httpx
import pytest

from consensus.commands import BlobFact
from consensus.names import Digest, StoreId
from consensus.parts import PartsHash
from tests.node.gateway.false_member import FalseMember, Giving, false_member
from tests.node.gateway.regions import REPOSITORY, Cluster, Region, parts_of, peak_memory, two_regions
from tests.node.gateway.rig import code, digest_of
from tests.node.http_server import on_uvloop

MIB = 1024 * 1024


def noise(size: int, seed: str) -> bytes:
    return hashlib.shake_128(seed.encode()).digest(size)


def routes(region: Region) -> list[str]:
    """What other members have asked of it."""
    return [record.route for record in region.peer_records.ended]


def url(digest: str) -> str:
    return f"/v2/{REPOSITORY}/blobs/{digest}"


@on_uvloop
async def test_a_blob_elsewhere_is_pulled_and_kept(cluster: Cluster) -> None:
    async with two_regions(cluster) as (eu, us):
        for size in (0, 1, 1000, 65536, 65537, 3 * MIB + 1):
            content = noise(size, f"kept {size}")
            digest = await eu.push(content)
            await us.learn(content, eu.store)
            answer = await us.client.get(url(digest))
            assert (answer.status_code, answer.content) == (200, content)
            assert await us.keeps(digest)
            assert (await us.client.get(url(digest))).content == content
            assert us.arrivals() == 0
        assert routes(eu).count("held_blob") == 5  # an empty one needs nobody


@on_uvloop
async def test_many_pulls_at_once_are_one_transfer(cluster: Cluster) -> None:
    content = noise(8 * MIB, "many")
    async with two_regions(cluster) as (eu, us):
        digest = await eu.push(content)
        await us.learn(content, eu.store)
        answers = await asyncio.gather(*(us.client.get(url(digest)) for _ in range(20)))
        assert all(answer.content == content for answer in answers)
        assert routes(eu).count("held_blob") == 2  # pieces


async def recorded(done: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not done():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@on_uvloop
async def test_the_first_bytes_come_before_the_last_are_there(cluster: Cluster) -> None:
    content = noise(2 * MIB, "early")

    async def half_first(giving: Giving) -> None:
        await giving.give_some(content, MIB)
        await giving.go_on.wait()
        await giving.give_rest(content)

    async with false_member(cluster, "ap", half_first) as ap, two_regions(cluster) as (_, us):
        digest = await us.learn(content, ap.store)
        async with us.client.stream("GET", url(digest)) as answer:
            received = b""
            async for chunk in answer.aiter_raw():
                received += chunk
                if len(received) == MIB:
                    ap.go_on.set()
        assert received == content
        assert await us.keeps(digest)


@on_uvloop
async def test_another_holder_goes_on_where_the_first_broke_off(cluster: Cluster) -> None:
    content = noise(3 * MIB, "broken off")

    async def a_part(giving: Giving) -> None:
        await giving.give_some(content, giving.offset + MIB)
        raise ConnectionError("on purpose")

    async with false_member(cluster, "ap", a_part) as ap, two_regions(cluster) as (eu, us):
        digest = await eu.push(content)
        await us.learn(content, ap.store, eu.store)
        us.prefer(ap.store, eu.store)
        answer = await us.client.get(url(digest))
        assert answer.content == content
        assert ap.offsets == [0]
        assert eu.peer_records.ended[-1].status == 206
        assert eu.peer_records.ended[-1].bytes_out < len(content)


@on_uvloop
async def test_one_holder_that_keeps_breaking_off_is_enough_while_it_gives_something(cluster: Cluster) -> None:
    content = noise(3 * MIB, "flapping")

    async def a_part(giving: Giving) -> None:
        await giving.give_some(content, giving.offset + MIB)
        if giving.given < len(content):
            raise ConnectionError("on purpose")
        await giving.give_rest(content)

    async with false_member(cluster, "ap", a_part) as ap, two_regions(cluster) as (_, us):
        digest = await us.learn(content, ap.store)
        assert (await us.client.get(url(digest))).content == content
        assert ap.offsets == sorted(set(ap.offsets))
        assert len(ap.offsets) >= 3


async def cut_off(us: Region, digest: str, giver: FalseMember, **headers: str) -> bytes:
    """What comes of a body that is cut off; the giver goes on once some of it has."""
    received = b""
    async with us.client.stream("GET", url(digest), headers=headers) as answer:
        assert answer.status_code in {200, 206}
        try:
            async for chunk in answer.aiter_raw():
                received += chunk
                giver.go_on.set()
        except httpx.TransportError:
            return received
    raise AssertionError("all of it came")


@on_uvloop
async def test_wrong_bytes_are_neither_given_out_nor_kept(cluster: Cluster) -> None:
    content = noise(2 * MIB, "right")
    wrong = content[:-1] + bytes([content[-1] ^ 1])

    async def lie(giving: Giving) -> None:
        await giving.give_some(wrong, MIB)
        await giving.go_on.wait()
        await giving.give_rest(wrong)

    async with false_member(cluster, "ap", lie) as ap, two_regions(cluster) as (eu, us):
        digest = await us.learn(content, ap.store)
        received = await cut_off(us, digest, ap)
        assert content[:MIB].startswith(received)  # the last part is wrong
        assert not await us.holds(digest)
        await recorded(lambda: us.arrivals() == 0)
        # It is not asked again for a while, and another one is believed.
        answer = await us.client.get(url(digest))
        assert (answer.status_code, code(answer)) == (503, "UNAVAILABLE")
        asked = len(ap.offsets)
        await eu.push(content)
        await us.learn(content, eu.store)
        assert (await us.client.get(url(digest))).content == content
        assert len(ap.offsets) == asked


@on_uvloop
async def test_a_range_of_a_wrong_blob_comes_if_it_is_right(cluster: Cluster) -> None:
    content = noise(2 * MIB, "range right")

    async def lie(giving: Giving) -> None:
        await giving.give_all(content[:MIB] + content[:MIB])

    async with false_member(cluster, "ap", lie) as ap, two_regions(cluster) as (_, us):
        digest = await us.learn(content, ap.store)
        answer = await us.client.get(url(digest), headers={"range": "bytes=100-999999"})
        assert (answer.status_code, answer.content) == (206, content[100:1000000])
        await recorded(lambda: us.arrivals() == 0)
        answer = await us.client.get(url(digest), headers={"range": "bytes=100-199"})
        assert answer.status_code == 503
        us.fetcher._blame._suspects.clear()
        answer = await us.client.get(url(digest), headers={"range": "bytes=1048576-1048577"})
        assert answer.status_code == 503


@on_uvloop
@pytest.mark.parametrize("parts", ["none", "all", "last", "another's"])
async def test_parts_that_are_false_cost_only_time(
    cluster: Cluster, parts: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What the log says of them is not right, and the one holder is."""
    content = noise(9 * MIB + 5, f"parts {parts}")
    right = parts_of(content)
    false = {
        "none": b"",
        "all": bytes(len(right)),
        "last": right[:-1] + bytes([right[-1] ^ 1]),
        "another's": parts_of(content[::-1]),
    }[parts]
    async with two_regions(cluster) as (eu, us):
        digest = await eu.push(content)
        await us.learn(content, eu.store, parts=false)
        answers = await asyncio.gather(*(us.client.get(url(digest)) for _ in range(3)))
        assert [answer.content == content for answer in answers] == [True] * 3
        assert await us.keeps(digest)
        assert ("parts_disbelieved" in caplog.text) == (parts != "none")


@on_uvloop
@pytest.mark.parametrize("size", [-1, 1, 100])
async def test_a_holder_of_something_of_another_size_is_passed_over(cluster: Cluster, size: int) -> None:
    content = noise(MIB, f"size {size}")

    async def other(giving: Giving) -> None:
        await giving.give_all(content[: len(content) + size] + b"x" * size)

    async with false_member(cluster, "ap", other) as ap, two_regions(cluster) as (eu, us):
        digest = await eu.push(content)
        await us.learn(content, ap.store, eu.store)
        us.prefer(ap.store, eu.store)
        assert (await us.client.get(url(digest))).content == content
        assert ap.offsets == [0]


@on_uvloop
async def test_ranges_of_a_blob_elsewhere(cluster: Cluster) -> None:
    async with two_regions(cluster) as (eu, us):
        for first, last in ((0, 0), (0, 99), (MIB, MIB + 70000), (2 * MIB - 5, 2 * MIB - 1), (5, 2 * MIB - 1)):
            content = noise(2 * MIB, f"range {first} {last}")
            digest = await eu.push(content)
            await us.learn(content, eu.store)
            answer = await us.client.get(url(digest), headers={"range": f"bytes={first}-{last}"})
            assert answer.status_code == 206
            assert answer.headers["content-range"] == f"bytes {first}-{last}/{len(content)}"
            assert answer.content == content[first : last + 1]


@on_uvloop
async def test_a_head_brings_nothing_here(cluster: Cluster) -> None:
    content = noise(1000, "head")
    async with two_regions(cluster) as (eu, us):
        digest = await eu.push(content)
        await us.learn(content, eu.store)
        answer = await us.client.head(url(digest))
        assert (answer.status_code, answer.headers["content-length"]) == (200, "1000")
        assert not await us.holds(digest)
        assert "held_blob" not in routes(eu)


@on_uvloop
async def test_a_blob_that_no_holder_gives(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    content = noise(1000, "nobody")
    cluster.add("ap").listener.close()
    async with two_regions(cluster) as (eu, us):
        digest = await us.learn(content, eu.store)
        lost = await us.client.get(url(digest))
        assert (lost.status_code, code(lost)) == (503, "UNAVAILABLE")
        assert lost.json()["errors"][0]["detail"]["digest"] == digest
        assert "blob_lost" in caplog.text
        await us.learn(content, StoreId("9" * 32))  # of a member that does not run
        later = await us.client.get(url(digest))
        assert (later.status_code, code(later)) == (503, "UNAVAILABLE")
        assert int(later.headers["retry-after"]) > 0
        unknown = await us.client.get(url(digest_of(b"unknown")))
        assert (unknown.status_code, code(unknown)) == (404, "BLOB_UNKNOWN")
        await eu.stop_transfers()
        await eu.push(content)
        assert (await us.client.get(url(digest))).status_code == 503


@on_uvloop
async def test_a_blob_goes_on_coming_when_who_asked_first_has_gone(cluster: Cluster) -> None:
    content = noise(4 * MIB, "gone")

    async def in_two(giving: Giving) -> None:
        await giving.give_some(content, 2 * MIB)
        await giving.go_on.wait()
        await giving.give_rest(content)

    async with false_member(cluster, "ap", in_two) as ap, two_regions(cluster) as (_, us):
        digest = await us.learn(content, ap.store)
        async with us.client.stream("GET", url(digest)) as answer:
            assert await anext(answer.aiter_raw())
        await recorded(lambda: us.records.ended)
        assert us.arrivals() == 1
        second = asyncio.create_task(us.client.get(url(digest)))
        await recorded(lambda: us.records.begun == 2)
        ap.go_on.set()
        assert (await second).content == content
        assert set(ap.offsets) <= {0, 2 * MIB}  # another try where the first seems to be stuck
        assert await us.keeps(digest)


@on_uvloop
async def test_a_slow_client_does_not_hold_up_the_others(cluster: Cluster) -> None:
    content = noise(16 * MIB, "slow")
    async with two_regions(cluster) as (eu, us):
        digest = await eu.push(content)
        await us.learn(content, eu.store)
        async with us.client.stream("GET", url(digest)) as slow:
            chunks = slow.aiter_raw()
            received = await anext(chunks)
            assert (await us.client.get(url(digest))).content == content
            async for chunk in chunks:
                received += chunk
        assert received == content
        assert routes(eu).count("held_blob") == 4  # pieces


@on_uvloop
async def test_a_full_disk_lets_blobs_pass_through(cluster: Cluster) -> None:
    content = noise(3 * MIB, "full")
    async with two_regions(cluster) as (eu, us):
        digest = await eu.push(content)
        await us.learn(content, eu.store)
        us.blobs._free_bytes = 2**62
        answer = await us.client.get(url(digest))
        assert (answer.status_code, answer.content) == (200, content)
        part = await us.client.get(url(digest), headers={"range": "bytes=1000000-2000000"})
        assert (part.status_code, part.content) == (206, content[1000000:2000001])
        small = await us.client.get(url(digest), headers={"range": "bytes=7-7"})
        assert small.content == content[7:8]
        assert not await us.holds(digest)
        assert us.arrivals() == 0


@on_uvloop
async def test_without_room_a_blob_without_parts_is_refused(cluster: Cluster) -> None:
    content, small = noise(5 * MIB, "full without parts"), noise(MIB, "small")
    async with two_regions(cluster) as (eu, us):
        for each in (content, small):
            await eu.push(each)
            await us.learn(each, eu.store, parts=b"")
        us.blobs._free_bytes = 2**62
        answer = await us.client.get(url(digest_of(content)))
        assert (answer.status_code, code(answer)) == (507, "STORAGE_FULL")
        assert (await us.client.get(url(digest_of(small)))).content == small


@on_uvloop
@pytest.mark.parametrize("at", [0, 16383, 16384, MIB + 7, 2 * MIB - 1])
async def test_wrong_bytes_do_not_pass_through_a_full_disk(cluster: Cluster, at: int) -> None:
    content = noise(2 * MIB, f"full and wrong {at}")
    wrong = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]

    async with (
        false_member(cluster, "ap", lambda giving: giving.give_all(wrong)) as ap,
        two_regions(cluster) as (eu, us),
    ):
        digest = await us.learn(content, ap.store)
        us.blobs._free_bytes = 2**62
        received = b""
        with contextlib.suppress(httpx.TransportError):
            async with us.client.stream("GET", url(digest)) as answer:
                assert answer.status_code == (200 if at >= 16384 else 503)
                if answer.status_code == 200:
                    async for chunk in answer.aiter_raw():
                        received += chunk
        assert content.startswith(received)
        assert len(received) <= at
        await eu.push(content)
        await us.learn(content, ap.store, eu.store)
        us.around.elsewhere._passages._blame._suspects.clear()
        us.prefer(ap.store, eu.store)
        assert (await us.client.get(url(digest))).content == content
        assert us.arrivals() == 0


@on_uvloop
async def test_a_hundred_megabytes_take_little_memory(cluster: Cluster) -> None:
    size, piece = 100 * MIB, noise(MIB, "large")

    async def give(giving: Giving) -> None:
        await giving.begin(size)
        for at in range(giving.offset, giving.stop, MIB):
            await giving.give(piece, more=at + MIB < giving.stop)

    running, parts = hashlib.sha256(), PartsHash()
    for _ in range(size // MIB):
        running.update(piece)
        parts.update(piece)
    digest = f"sha256:{running.hexdigest()}"
    async with false_member(cluster, "ap", give) as ap, two_regions(cluster) as (_, us):
        await us.learn_fact(BlobFact(Digest.parse(digest), size, parts.digests(size)), ap.store)
        before = peak_memory(reset=True)
        received = 0
        async with us.client.stream("GET", url(digest)) as answer:
            async for chunk in answer.aiter_raw():
                received += len(chunk)
        assert received == size
        assert peak_memory() - before < 40 * MIB  # both sides and the client
        assert await us.keeps(digest)
