"""Holders that stall, die and lie, each at every class of offset: beside one that is right, and alone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import httpx
import pytest

from replication import pieces, schedule
from replication.transfer import HELD_BACK_BYTES
from tests.node.gateway.false_member import Giving, false_member
from tests.node.gateway.regions import Cluster, Region, two_regions
from tests.node.gateway.rig import code
from tests.node.gateway.test_gateway_fetching import noise, recorded, url
from tests.node.http_server import on_uvloop

PIECE = 256 * 1024
SIZE = 6 * PIECE + 1313
CLASSES = {
    "first byte": 0,
    "second byte": 1,
    "early": 70_001,
    "end of a piece": PIECE - 1,
    "start of a piece": 2 * PIECE,
    "middle": 3 * PIECE + PIECE // 2,
    "held back": SIZE - HELD_BACK_BYTES + 5,
    "last byte": SIZE - 1,
}
Fault = Callable[[Giving, bytes, int], Awaitable[None]]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES", PIECE)


async def reset(giving: Giving, content: bytes, at: int) -> None:
    await giving.give_some(content, at)
    raise ConnectionError("on purpose")


async def stall(giving: Giving, content: bytes, at: int) -> None:
    await giving.give_some(content, at)
    await giving.go_on.wait()


async def drip(giving: Giving, content: bytes, at: int) -> None:
    await giving.give_some(content, at)
    while not giving.go_on.is_set() and giving.given < giving.stop - 1:
        await giving.give(content[giving.given : giving.given + 1])
        giving.given += 1
        await asyncio.sleep(0.2)


async def head_only(giving: Giving, headers: dict[str, str], status: int = 206, body: bytes = b"") -> None:
    found = [(name.encode(), text.encode()) for name, text in {"content-length": str(len(body)), **headers}.items()]
    await giving.send({"type": "http.response.start", "status": status, "headers": found})
    await giving.give(body, more=False)


async def longer(giving: Giving, content: bytes, at: int) -> None:
    """Says that the blob has more bytes."""
    headers = {"content-range": f"bytes {giving.offset}-{giving.stop - 1}/{SIZE + 1 + at}"}
    await head_only(giving, headers, body=content[giving.offset : giving.stop])


async def elsewhere(giving: Giving, content: bytes, at: int) -> None:
    """Gives another part than was asked for."""
    headers = {"content-range": f"bytes {giving.offset + 1 + at}-{giving.stop + at}/{SIZE}"}
    await head_only(giving, headers, body=content[giving.offset : giving.stop])


async def too_much(giving: Giving, content: bytes, at: int) -> None:
    """More than was asked for, under a head that says otherwise."""
    headers = {"content-range": f"bytes {giving.offset}-{giving.stop - 1}/{SIZE}"}
    await head_only(giving, headers, body=content[giving.offset : giving.stop] + bytes(1 + at))


async def too_little(giving: Giving, content: bytes, at: int) -> None:
    """Less than was asked for, as if that were all."""
    headers = {"content-range": f"bytes {giving.offset}-{giving.stop - 1}/{SIZE}"}
    await head_only(giving, headers, body=content[giving.offset : max(giving.offset, min(at, giving.stop - 1))])


async def nonsense(giving: Giving, content: bytes, at: int) -> None:
    headers = {"content-range": f"bytes {giving.offset}-{giving.stop - 1}/{'9' * 5000 if at % 2 else '-1'}"}
    await head_only(giving, headers, body=content[giving.offset : giving.stop])


async def failing(giving: Giving, content: bytes, at: int) -> None:
    await head_only(giving, {}, status=500 + at % 5, body=b"no")


async def whole(giving: Giving, content: bytes, at: int) -> None:
    """All of it, whatever was asked for."""
    await head_only(giving, {}, status=200, body=content)


async def flipped(giving: Giving, content: bytes, at: int) -> None:
    await giving.give_all(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])


async def zeros(giving: Giving, content: bytes, at: int) -> None:
    await giving.give_all(content[:at] + bytes(len(content) - at))


SEEN_AT_ONCE: list[Fault] = [reset, longer, elsewhere, too_much, too_little, nonsense, failing, whole]
SLOW: list[Fault] = [stall, drip]
LIES: list[Fault] = [flipped, zeros]


async def check_unnoticed(cluster: Cluster, fault: Fault, at: int) -> None:
    content = noise(SIZE, f"{fault.__name__} {at}")

    async def give(giving: Giving) -> None:
        await fault(giving, content, at)

    async with false_member(cluster, "ap", give) as ap, two_regions(cluster) as (eu, us):
        digest = await eu.push(content)
        await us.learn(content, ap.store, eu.store)
        us.prefer(ap.store, eu.store)
        answers = await asyncio.gather(*(us.client.get(url(digest)) for _ in range(3)))
        assert [answer.content == content for answer in answers] == [True] * 3
        assert ap.offsets
        assert await us.holds(digest)
        assert us.arrivals() == 0


@on_uvloop
@pytest.mark.parametrize("fault", SEEN_AT_ONCE, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("at", CLASSES.values(), ids=CLASSES)
async def test_no_client_notices_a_holder_that_fails(cluster: Cluster, fault: Fault, at: int) -> None:
    await check_unnoticed(cluster, fault, at)


@on_uvloop
@pytest.mark.parametrize("fault", SLOW, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("at", CLASSES.values(), ids=CLASSES)
async def test_no_client_waits_long_for_a_holder_that_stalls(
    cluster: Cluster, fault: Fault, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "SILENCE_SECONDS", 0.3)
    monkeypatch.setattr(schedule, "WINDOW_SECONDS", 0.5)
    await asyncio.wait_for(check_unnoticed(cluster, fault, at), 30)


async def pull(us: Region, digest: str, content: bytes, first: int) -> bool:
    """Whether all of it came, and that what came is right. A lie may be given out in part, but never to its end."""
    headers = {"range": f"bytes={first}-"} if first else {}
    received = b""
    try:
        async with us.client.stream("GET", url(digest), headers=headers) as answer:
            if answer.status_code == 503:
                return False
            assert answer.status_code == (206 if first else 200)
            async for chunk in answer.aiter_raw():
                received += chunk
    except httpx.TransportError:
        assert len(received) <= len(content) - first - HELD_BACK_BYTES
        return False
    assert received == content[first:]
    return True


@on_uvloop
@pytest.mark.parametrize("fault", LIES, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("at", CLASSES.values(), ids=CLASSES)
async def test_a_lie_never_becomes_an_answer_or_a_blob(cluster: Cluster, fault: Fault, at: int) -> None:
    """Several pulls may fail until it is clear who lies; then all are right."""
    content = noise(SIZE, f"{fault.__name__} {at}")

    async def give(giving: Giving) -> None:
        await fault(giving, content, at)

    async with false_member(cluster, "ap", give) as ap, two_regions(cluster) as (eu, us):
        digest = await us.learn(content, ap.store)
        assert not await pull(us, digest, content, 0)
        assert not await us.holds(digest)
        await recorded(lambda: us.arrivals() == 0)
        us.fetcher._blame._suspects.clear()
        await eu.push(content)
        await us.learn(content, eu.store)
        us.prefer(ap.store, eu.store)
        pulled = [await pull(us, digest, content, first) for first in (0, 0, 5, 0)]
        assert pulled[-1]
        assert sum(pulled) >= 2
        asked = len(ap.offsets)
        assert (await us.client.get(url(digest))).content == content
        assert len(ap.offsets) == asked


@on_uvloop
async def test_a_small_range_of_a_lie_is_asked_for_again_elsewhere_without_a_word(cluster: Cluster) -> None:
    content = noise(PIECE, "small range")

    async def give(giving: Giving) -> None:
        await flipped(giving, content, 9)

    async with false_member(cluster, "ap", give) as ap, two_regions(cluster) as (eu, us):
        digest = await eu.push(content)
        await us.learn(content, ap.store, eu.store)
        us.prefer(ap.store, eu.store)
        answer = await us.client.get(url(digest), headers={"range": "bytes=0-99"})
        assert (answer.status_code, answer.content) == (206, content[:100])
        assert ap.offsets == [0]


@on_uvloop
@pytest.mark.parametrize("fault", [stall, failing, longer], ids=lambda fault: fault.__name__)
async def test_alone_a_holder_that_gives_nothing_means_503_that_says_what_is_missing(
    cluster: Cluster, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "ANSWER_SECONDS", 1.0)
    content = noise(1000, "alone")

    async def give(giving: Giving) -> None:
        await fault(giving, content, 0)

    async with false_member(cluster, "ap", give) as ap, two_regions(cluster) as (_, us):
        digest = await us.learn(content, ap.store)
        answer = await asyncio.wait_for(us.client.get(url(digest)), 15)
        assert (answer.status_code, code(answer)) == (503, "UNAVAILABLE")
        assert answer.json()["errors"][0]["detail"]["digest"] == digest
        assert int(answer.headers["retry-after"]) > 0
        assert (await us.client.head(url(digest))).status_code == 200
