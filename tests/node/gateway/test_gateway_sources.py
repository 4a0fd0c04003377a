"""Holders that stall, die and lie, each at every class of offset: beside one that is right, and alone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import httpx
import pytest

from consensus import parts
from replication import schedule
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
    "end of the first part": 16 * 1024 - 1,
    "start of the second part": 16 * 1024,
    "early": 70_001,
    "end of a piece": PIECE - 1,
    "start of a piece": 2 * PIECE,
    "middle": 3 * PIECE + PIECE // 2,
    "start of the last part": SIZE - 1313,
    "last byte": SIZE - 1,
}
Fault = Callable[[Giving, bytes, int], Awaitable[None]]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_BYTES", PIECE)


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


async def check_unnoticed(cluster: Cluster, fault: Fault, at: int, followers: int = 3) -> None:
    content = noise(SIZE, f"{fault.__name__} {at} {followers}")

    async def give(giving: Giving) -> None:
        await fault(giving, content, at)

    async with false_member(cluster, "ap", give) as ap, two_regions(cluster) as (eu, us):
        digest = await eu.push(content)
        await us.learn(content, ap.store, eu.store)
        us.prefer(ap.store, eu.store)
        answers = await asyncio.gather(*(us.client.get(url(digest)) for _ in range(followers)))
        assert [answer.content == content for answer in answers] == [True] * followers
        assert ap.offsets
        assert await us.keeps(digest)
        if fault in LIES:
            await recorded(lambda: us.fetcher._blame._suspects)


@on_uvloop
@pytest.mark.parametrize("fault", [*SEEN_AT_ONCE, *LIES], ids=lambda fault: fault.__name__)
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


@on_uvloop
@pytest.mark.parametrize("fault", [flipped, drip, reset], ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("at", [0, 3 * PIECE + 5, SIZE - 1])
async def test_none_of_many_clients_notices_anything(
    cluster: Cluster, fault: Fault, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "SILENCE_SECONDS", 0.3)
    monkeypatch.setattr(schedule, "WINDOW_SECONDS", 0.5)
    await check_unnoticed(cluster, fault, at, followers=16)


async def flipped_and_silent(giving: Giving, content: bytes, at: int) -> None:
    """Lies, and leaves the end of each piece to others, so that nobody gave all of a wrong part."""
    await giving.give_some(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :], giving.stop - 100)
    await giving.go_on.wait()


@on_uvloop
@pytest.mark.parametrize("at", [PIECE - 101, PIECE + 7, 3 * PIECE + 7])
async def test_a_liar_who_cannot_be_named_changes_nothing(
    cluster: Cluster, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "SILENCE_SECONDS", 0.3)
    monkeypatch.setattr(schedule, "WINDOW_SECONDS", 0.5)
    content = noise(SIZE, f"unnamed {at}")
    async with (
        false_member(cluster, "ap", lambda giving: flipped_and_silent(giving, content, at)) as ap,
        two_regions(cluster) as (eu, us),
    ):
        digest = await eu.push(content)
        await us.learn(content, ap.store, eu.store)
        us.prefer(ap.store, eu.store)
        assert (await asyncio.wait_for(us.client.get(url(digest)), 30)).content == content
        assert await us.keeps(digest)


async def pull(us: Region, digest: str, content: bytes, first: int, stop: int) -> tuple[int, bytes]:
    """The status, and what comes."""
    received = b""
    async with us.client.stream("GET", url(digest), headers={"range": f"bytes={first}-{stop - 1}"}) as answer:
        with contextlib.suppress(httpx.TransportError):
            async for chunk in answer.aiter_raw():
                received += chunk
        return answer.status_code, received


@on_uvloop
@pytest.mark.parametrize("fault", LIES, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("at", CLASSES.values(), ids=CLASSES)
@pytest.mark.parametrize("first", [0, PIECE + 1])
async def test_alone_a_liar_gives_no_client_a_wrong_byte(cluster: Cluster, fault: Fault, at: int, first: int) -> None:
    content = noise(SIZE, f"alone {fault.__name__} {at} {first}")

    async def give(giving: Giving) -> None:
        await fault(giving, content, at)

    async with false_member(cluster, "ap", give) as ap, two_regions(cluster) as (eu, us):
        digest = await us.learn(content, ap.store)
        status, received = await pull(us, digest, content, first, SIZE)
        if status != 503:
            assert status == 206
            assert content[first:].startswith(received)
            if first <= at:
                assert len(received) <= parts.part_start(parts.part_at(at)) - first
        await recorded(lambda: us.arrivals() == 0)
        assert not await us.holds(digest)
        assert (await us.client.get(url(digest))).status_code == 503
        asked = len(ap.offsets)
        await eu.push(content)
        await us.learn(content, eu.store)
        assert (await us.client.get(url(digest))).content == content
        assert len(ap.offsets) == asked


@on_uvloop
async def test_a_small_blob_that_is_a_lie_is_asked_for_again_elsewhere_without_a_word(cluster: Cluster) -> None:
    content = noise(PIECE, "small")

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
@pytest.mark.parametrize("fault", [stall, drip, failing, longer], ids=lambda fault: fault.__name__)
async def test_alone_a_holder_that_gives_next_to_nothing_means_503_that_says_what_is_missing(
    cluster: Cluster, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "ANSWER_SECONDS", 1.0)
    monkeypatch.setattr(schedule, "STALL_SECONDS", 1.0)
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
