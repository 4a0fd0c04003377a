"""Copies that a store is said to hold: told, believed, found untrue, and told by members that lie."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import msgspec
import pytest

from consensus.names import Digest
from node.gateway.requests import Receive, Scope, Send
from node.inventory import holders_of, inventory_file
from node.replicator import inventories
from replication.inventory import INVENTORY_PATH, PAGE_ENTRIES, Page
from tests.node.gateway.false_member import Answer, FalseMember, Giving, false_member
from tests.node.gateway.regions import Cluster, Region, peak_memory, two_regions
from tests.node.gateway.rig import code, digest_of
from tests.node.gateway.test_gateway_fetching import MIB, noise, recorded, routes, url
from tests.node.gateway.test_gateway_transfers import as_client
from tests.node.http_server import on_uvloop


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventories, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(inventories, "MOST_PAUSE_SECONDS", 0.2)


def inventory_of(region: Region) -> Path:
    return inventory_file(region.config, "test")


async def heard(region: Region, digest: str, store: str, *, believed: bool = True) -> None:
    """Until the region believes that the store has a copy, or does not. (What is pushed while a node looks through its
    store for the first time may be told as a copy too.)"""
    file, found = inventory_of(region), Digest.parse(digest)
    await recorded(lambda: (store in holders_of(file, found)) == believed)


def page(member: FalseMember, *digests: str, **changes: object) -> Page:
    held = tuple(Digest.parse(digest).packed for digest in digests)
    made = Page(
        store_id=member.store,
        incarnation="1" * 32,
        begin=0,
        end=len(held),
        forgotten=0,
        more=False,
        walked=True,
        held=held,
        gone=(),
    )
    return msgspec.structs.replace(made, **changes)


def telling(body: bytes) -> Answer:
    async def tell(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for at in range(0, len(body), MIB):
            await send({"type": "http.response.body", "body": body[at : at + MIB], "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    return tell


async def lacking(giving: Giving) -> None:
    await giving.send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
    await giving.give(b"", more=False)


@on_uvloop
async def test_a_copy_is_told_fetched_from_and_missed_once(cluster: Cluster) -> None:
    content = noise(MIB, "told")
    async with two_regions(cluster, "ap") as (eu, us), cluster.running("ap") as ap:
        digest = await eu.push(content)
        for region in (us, ap):
            await region.learn(content, eu.store)
        assert (await us.client.get(url(digest))).content == content
        for region in (eu, ap):
            await heard(region, digest, us.store)
        await eu.stop_transfers()
        assert (await ap.client.get(url(digest))).content == content
        assert routes(us).count("held_blob") == 1
        await heard(us, digest, ap.store)


@on_uvloop
async def test_a_claim_that_is_not_true_costs_one_request(cluster: Cluster) -> None:
    content = noise(MIB, "untrue")
    async with false_member(cluster, "ap", lacking) as ap, two_regions(cluster) as (eu, us):
        digest = await eu.push(content)
        await us.learn(content, eu.store)
        ap.tell = telling(page(ap, digest).encode())
        await heard(us, digest, ap.store)
        us.prefer(ap.store, eu.store)
        ap.tell = telling(page(ap, begin=1, end=1).encode())
        assert (await us.client.get(url(digest))).content == content
        assert ap.offsets == [0]
        await heard(us, digest, ap.store, believed=False)


@on_uvloop
async def test_what_is_claimed_again_and_again_costs_one_request_a_pull(cluster: Cluster) -> None:
    content = noise(10_000, "insists")
    async with false_member(cluster, "ap", lacking) as ap, two_regions(cluster) as (eu, us):
        digest = await us.learn(content, eu.store)
        ap.tell = telling(page(ap, digest).encode())
        await heard(us, digest, ap.store)
        for count in range(1, 4):
            answer = await us.client.get(url(digest))
            assert (answer.status_code, code(answer)) == (503, "UNAVAILABLE")
            assert len(ap.offsets) <= count
        assert await eu.push(content) == digest
        assert (await us.client.get(url(digest))).content == content


@on_uvloop
async def test_a_blob_is_lost_only_if_no_copy_is_left_either(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    content = noise(1000, "lost or not")

    async def give(giving: Giving) -> None:
        await answers[-1](giving)

    async def broken(giving: Giving) -> None:
        raise ConnectionError("on purpose")

    async def right(giving: Giving) -> None:
        await giving.give_all(content)

    answers: list[Callable[[Giving], Awaitable[None]]] = [broken]
    async with false_member(cluster, "ap", give) as ap, two_regions(cluster) as (eu, us):
        digest = await us.learn(content, eu.store)  # which never had it
        ap.tell = telling(page(ap, digest).encode())
        await heard(us, digest, ap.store)
        assert (await us.client.get(url(digest))).status_code == 503
        assert "blob_lost" not in caplog.text
        answers.append(lacking)
        assert (await us.client.get(url(digest))).status_code == 503
        assert "blob_lost" in caplog.text
        answers.append(right)
        ap.tell = telling(page(ap, digest, incarnation="2" * 32).encode())
        await heard(us, digest, ap.store)
        assert (await us.client.get(url(digest))).content == content


@on_uvloop
async def test_a_full_disk_lets_a_copy_pass_through(cluster: Cluster) -> None:
    content = noise(MIB, "passes")

    async def give(giving: Giving) -> None:
        await giving.give_all(content)

    async with false_member(cluster, "ap", give) as ap, two_regions(cluster) as (eu, us):
        digest = await us.learn(content, eu.store)
        ap.tell = telling(page(ap, digest).encode())
        await heard(us, digest, ap.store)
        us.blobs._free_bytes = 2**62
        assert (await us.client.get(url(digest))).content == content
        assert not await us.holds(digest)


@on_uvloop
async def test_a_member_that_asks_for_a_blob_causes_no_fetch(cluster: Cluster) -> None:
    content = noise(1000, "no further")
    async with two_regions(cluster) as (eu, us), as_client(us, cluster, cluster.places["eu"].files) as client:
        digest = await eu.push(content)
        await us.learn(content, eu.store)
        assert (await client.get(f"/meridian/v1/blobs/{digest}")).status_code == 404
        assert not us.fetcher.status.transfers
        assert not await us.holds(digest)


@on_uvloop
async def test_an_inventory_is_answered_in_bounds(cluster: Cluster) -> None:
    async with two_regions(cluster) as (eu, _), as_client(eu, cluster, cluster.places["us"].files) as client:
        answer = await client.get(INVENTORY_PATH)
        first = Page.decode(answer.content)
        assert (first.store_id, first.begin) == (eu.store, 0)
        for query, status in {
            f"incarnation={first.incarnation}&after={first.end}&forgotten=0": 200,
            "incarnation=%00%ff&after=5": 400,
            "incarnation=x&after=999999999999999999": 200,
            "after=9999999999999999999": 400,
            "after=-1": 400,
            "after=1&after=2": 400,
            "after=x": 400,
            "forgotten=1e3": 400,
            f"incarnation={'1' * 4000}": 200,
        }.items():
            found = await client.get(f"{INVENTORY_PATH}?{query}")
            assert found.status_code == status, query
            if status == 200:
                assert Page.decode(found.content).begin in {0, first.end}
        assert (await client.post(INVENTORY_PATH)).status_code == 405
        assert (await eu.client.get(INVENTORY_PATH)).status_code == 404


async def endless(scope: Scope, receive: Receive, send: Send) -> None:
    """A gigabyte."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % 2**30)]})
    for _ in range(1024):
        await send({"type": "http.response.body", "body": bytes(MIB), "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def drips(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % 2**30)]})
    while True:
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        await asyncio.sleep(0.05)


async def refuses(scope: Scope, receive: Receive, send: Send) -> None:
    raise ConnectionError("on purpose")


@on_uvloop
@pytest.mark.parametrize(
    "lie", ["garbage", "endless", "drips", "refuses", "million", "cursor", "self", "other", "nobody"]
)
async def test_an_inventory_that_is_none_is_dropped(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, lie: str
) -> None:
    monkeypatch.setattr(inventories, "ANSWER_SECONDS", 0.5)
    content = noise(1000, f"among lies: {lie}")
    async with false_member(cluster, "ap") as ap, two_regions(cluster) as (eu, us):
        digest = await eu.push(content)
        await us.learn(content, eu.store)
        ap.tell = telling(page(ap, digest).encode())
        await heard(us, digest, ap.store)
        asked = asyncio.Event()
        many = page(ap, digest, end=1 << 40)
        lies: dict[str, Answer] = {
            "garbage": telling(b"\xc1 garbage" * 1000),
            "endless": endless,
            "drips": drips,
            "refuses": refuses,
            "million": telling(msgspec.structs.replace(many, held=many.held * 1_000_000).encode()),
            "cursor": telling(page(ap, begin=7, end=7).encode()),
            "self": telling(page(ap, store_id=us.store).encode()),
            "other": telling(page(ap, digest_of(b"lie"), store_id=eu.store).encode()),
            "nobody": telling(page(ap, digest_of(b"lie"), store_id="9" * 32).encode()),
        }
        before, count = peak_memory(reset=True), 0

        async def tell(scope: Scope, receive: Receive, send: Send) -> None:
            nonlocal count
            count += 1
            if count == 6:
                asked.set()
            await lies[lie](scope, receive, send)

        ap.tell = tell
        await asked.wait()
        assert peak_memory() - before < 32 * MIB
        assert ap.store in holders_of(inventory_of(us), Digest.parse(digest))  # as it was
        assert holders_of(inventory_of(us), Digest.parse(digest_of(b"lie"))) == ()
        if lie not in {"drips", "refuses"}:
            assert "inventory_refused" in caplog.text
        ap.tell = telling(page(ap, digest_of(b"new"), incarnation="2" * 32).encode())
        await heard(us, digest_of(b"new"), ap.store)
        await heard(us, digest, ap.store, believed=False)
        assert (await us.client.get(url(digest))).content == content


@on_uvloop
async def test_a_member_that_claims_ever_more_is_stopped(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.inventory.MAX_COPIES", 10_000)
    async with false_member(cluster, "ap") as ap, two_regions(cluster) as (_, us):
        begun = 0

        async def tell(scope: Scope, receive: Receive, send: Send) -> None:
            nonlocal begun
            after = int(httpx.QueryParams(scope["query_string"].decode())["after"])
            begun = max(begun, after)
            held = tuple(b"\x01" + number.to_bytes(32, "big") for number in range(after, after + PAGE_ENTRIES))
            made = page(ap, begin=after, end=after + PAGE_ENTRIES, held=held, more=True)
            await telling(made.encode())(scope, receive, send)

        ap.tell = tell
        await recorded(lambda: begun >= 3 * PAGE_ENTRIES)
        await asyncio.sleep(0.5)
        assert begun == 3 * PAGE_ENTRIES
        assert not us.fetcher.status.transfers
