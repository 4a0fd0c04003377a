"""Replication as the admin address shows it, over members that hold, lack, stall, lie or are gone."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
import pytest
from starlette.applications import Starlette

from consensus.names import Digest, StoreId
from node.gateway.requests import Receive, Scope, Send
from node.overview import overview as overviews
from node.overview.routes import overview_routes
from node.overview.shapes import MAX_BODY_BYTES, Holdings
from node.replicator.rpc import ReplicatorClient
from replication.reports import ReplicatorReport
from tests.node.gateway.false_member import FalseMember, Giving, false_member
from tests.node.gateway.regions import REPOSITORY, Cluster, Region, first_region, two_regions
from tests.node.gateway.rig import INDEX, MANIFEST, digest_of, image, index
from tests.node.gateway.test_gateway_reporting import held_soon
from tests.node.http_server import on_uvloop

MIB = 1024 * 1024
PATH = "/meridian/v1/replication"
EMPTY = b"{}"


@asynccontextmanager
async def admin(region: Region) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(Starlette(routes=overview_routes(lambda: region.overview)))
    async with httpx.AsyncClient(transport=transport, base_url="http://admin") as client:
        yield client


async def why(client: httpx.AsyncClient, digest: str) -> dict[str, dict[str, Any]]:
    answer = await client.get(f"{PATH}/blobs/{digest}")
    assert answer.status_code == 200, answer.text
    return {each["member"]: each for each in answer.json()["members"]}


async def push_image(region: Region, tag: str, *layers: bytes) -> str:
    """As it is, with what its blobs are; the others learn nothing of it."""
    for blob in (EMPTY, *layers):
        await region.push(blob)
    return await put(region, tag, image(*map(digest_of, layers)), MANIFEST)


async def put(region: Region, tag: str, content: bytes, media_type: str) -> str:
    url = f"/v2/{REPOSITORY}/manifests/{tag}"
    answer = await region.client.put(url, content=content, headers={"content-type": media_type})
    assert answer.status_code == 201, answer.text
    return digest_of(content)


@on_uvloop
async def test_a_transfer_under_way_is_seen(cluster: Cluster) -> None:
    content = bytes(range(256)) * (3 * 4096)

    async def slowly(giving: Giving) -> None:
        await giving.give_some(content, MIB)
        await giving.go_on.wait()
        await giving.give_rest(content)

    async with (
        false_member(cluster, "ap", slowly) as ap,
        two_regions(cluster) as (eu, us),
        admin(us) as client,
        admin(eu) as from_eu,
    ):
        began = time.time()
        digest = await us.learn(content, ap.store)
        await eu.learn(content, ap.store)
        pull = asyncio.create_task(us.client.get(f"/v2/{REPOSITORY}/blobs/{digest}"))
        async with asyncio.timeout(20):
            while True:
                status = (await client.get(PATH)).json()
                transfers = status["replication"]["transfers"]
                if transfers and transfers[0]["received_bytes"] == transfers[0]["verified_bytes"] == MIB:
                    break
                await asyncio.sleep(0.05)
        (transfer,) = transfers
        assert (transfer["digest"], transfer["size_bytes"], transfer["followers"]) == (digest, len(content), 1)
        assert transfer["bytes_per_second"] > 0
        assert 0 < transfer["seconds"] < time.time() - began
        assert [(source["store"], source["member"]) for source in transfer["sources"]] == [(ap.store, "ap")]
        assert status["replication"]["totals"]["misses"] == 1
        assert status["replication"]["totals"]["received_bytes"] == MIB
        found = await why(from_eu, digest)
        assert (found["us"]["state"], found["us"]["received_bytes"]) == ("arriving", MIB)
        assert found["us"]["reason"].startswith(f"arriving: {MIB} of {len(content)} bytes, ")
        assert found["us"]["reason"].endswith(", from ap")
        everywhere = {each["member"]: each for each in (await from_eu.get(f"{PATH}/regions")).json()["members"]}
        assert [each["digest"] for each in everywhere["us"]["replication"]["transfers"]] == [digest]
        assert everywhere["ap"]["state"] == "unreachable"  # it gives blobs, and answers nothing else
        ap.go_on.set()
        assert (await pull).content == content
        totals = (await client.get(PATH)).json()["replication"]
        assert (totals["totals"]["kept"], totals["lag"]["count"], totals["transfers"]) == (1, 1, [])
        assert 0 < totals["lag"]["p99_seconds"] < 60


@on_uvloop
async def test_why_a_blob_is_where_it_is(cluster: Cluster) -> None:
    async with two_regions(cluster) as (eu, us), admin(eu) as client:
        digest = await eu.push(b"why")
        await us.learn(b"why", eu.store)
        manifest = await push_image(eu, "v1", b"why")
        answer = (await client.get(f"{PATH}/blobs/{digest}")).json()
        assert (answer["digest"], answer["size_bytes"], answer["lost_stores"]) == (digest, 3, [])
        assert (answer["repositories"], answer["manifests"]) == (
            [REPOSITORY],
            [{"repository": REPOSITORY, "digest": manifest}],
        )
        assert abs(answer["pushed_ms"] / 1000 - time.time()) < 60
        found = await why(client, digest)
        assert (found["eu"]["state"], found["eu"]["recorded"], found["eu"]["received_bytes"]) == ("held", True, 3)
        assert (found["us"]["state"], found["us"]["recorded"]) == ("missing", False)
        assert found["us"]["reason"] == "it was not asked for there lately; held by eu"
        # Lost: the log names eu, whose store has it no more; us tries, and says what came of it.
        await eu.blobs.delete(Digest.parse(digest))
        assert (await us.client.get(f"/v2/{REPOSITORY}/blobs/{digest}")).status_code == 503
        found = await why(client, digest)
        assert found["eu"]["reason"].startswith(
            "the log says that it is held there, but the store does not have it; no"
        )
        assert found["us"]["failure"]["cause"] == "BlobNowhere"
        assert "it could not be brought once, the last time at " in found["us"]["reason"]
        assert found["us"]["reason"].endswith("no member has it: its bytes are lost, or their disk is elsewhere")
        unknown = await client.get(f"{PATH}/blobs/sha256:{'0' * 64}")
        assert (unknown.status_code, unknown.json()["errors"][0]["code"]) == (404, "UNKNOWN")


@on_uvloop
async def test_a_member_that_cannot_be_reached_is_shown_so(cluster: Cluster) -> None:
    async with two_regions(cluster, "ap") as (eu, us), admin(us) as client:
        digest = await eu.push(b"unreachable")
        await us.learn(b"unreachable", eu.store)
        assert (await why(client, digest))["eu"]["state"] == "held"
        await eu.stop_transfers()
        found = await why(client, digest)
        assert (found["eu"]["state"], found["eu"]["region"], found["eu"]["recorded"]) == ("unreachable", "eu", True)
        assert found["ap"]["state"] == "unreachable"
        assert "of those that the log names eu cannot be reached (" in found["us"]["reason"]
        members = (await client.get(f"{PATH}/regions")).json()["members"]
        assert [(each["member"], each["region"], each["state"]) for each in members] == [
            ("us", "us", "ok"),
            ("ap", "", "unreachable"),
            ("eu", "eu", "unreachable"),
        ]
        assert all(each["reason"] for each in members[1:])


async def answering(member: FalseMember, status: int, body: bytes) -> None:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    member.answer = answer


@on_uvloop
async def test_a_member_that_answers_nonsense_spoils_nothing(cluster: Cluster) -> None:
    none = Holdings(
        member="eu", region="x", store_id="x", held=(), arriving=(), waiting=(), failures=(), replicator=True
    )
    async with false_member(cluster, "ap") as ap, two_regions(cluster) as (eu, _), admin(eu) as client:
        digest = await eu.push(b"nonsense")
        for status, body, reason in (
            (200, b"\xff", "something else"),
            (200, b'{"member": 1}', "something else"),
            (200, msgspec.json.encode(none), "says that it is eu"),
            (200, b"x" * 300_000, "more than"),
            (404, b"", "status 404"),
            (500, b"oops", "status 500"),
        ):
            await answering(ap, status, body)
            found = await why(client, digest)
            assert (found["eu"]["state"], found["ap"]["state"]) == ("held", "unreachable")
            assert reason in found["ap"]["reason"], found["ap"]


@on_uvloop
async def test_a_member_that_does_not_answer_holds_nobody_up_for_long(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.overview.members.ASK_SECONDS", 0.5)

    async def silence(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(30)

    async with false_member(cluster, "ap") as ap, two_regions(cluster) as (eu, _), admin(eu) as client:
        ap.answer = silence
        began = time.monotonic()
        members = (await client.get(f"{PATH}/regions")).json()["members"]
        assert time.monotonic() - began < 5
        assert {each["member"]: each["state"] for each in members} == {"eu": "ok", "us": "ok", "ap": "unreachable"}


@on_uvloop
async def test_how_much_of_an_image_is_where_and_to_bring_the_rest(cluster: Cluster) -> None:
    async with two_regions(cluster) as (eu, us), admin(eu) as client:
        amd, arm = await push_image(eu, "amd", b"amd layer"), await push_image(eu, "arm", b"arm layer")
        top = await put(eu, "v1", index(amd, arm), INDEX)
        for blob in (EMPTY, b"amd layer", b"arm layer"):
            await us.learn(blob, eu.store)
        await us.push(b"arm layer")
        await us.blobs.delete(Digest.parse(digest_of(EMPTY)))
        await us.blobs.delete(Digest.parse(digest_of(b"amd layer")))
        url = f"{PATH}/images/{REPOSITORY}/manifests"
        answer = (await client.get(f"{url}/v1")).json()
        assert (answer["digest"], answer["blobs"], answer["size_bytes"]) == (top, 3, 20)
        at_eu, at_us = answer["members"]
        assert (at_eu["state"], at_eu["held_blobs"], at_eu["held_bytes"], at_eu["missing"]) == ("complete", 3, 20, [])
        assert (at_us["state"], at_us["held_blobs"], at_us["held_bytes"]) == ("incomplete", 1, 9)
        assert {each["digest"] for each in at_us["missing"]} == {digest_of(EMPTY), digest_of(b"amd layer")}
        assert (await client.get(f"{url}/{top}")).json() == answer
        assert (await client.get(f"{url}/{arm}")).json()["blobs"] == 2
        brought = await client.post(f"{url}/v1", json={"members": ["us"]})
        assert (brought.status_code, brought.json()["members"]) == (
            202,
            [{"member": "us", "region": "us", "state": "ok", "asked": 2, "held": 1, "unknown": 0, "reason": ""}],
        )
        await held_soon(us, digest_of(EMPTY))
        await held_soon(us, digest_of(b"amd layer"))
        assert {each["state"] for each in (await client.get(f"{url}/v1")).json()["members"]} == {"complete"}
        everybody = (await client.post(f"{url}/v1", json={})).json()["members"]
        assert [(each["member"], each["asked"], each["held"]) for each in everybody] == [("eu", 0, 3), ("us", 0, 3)]
        await us.stop_transfers()
        away = (await client.post(f"{url}/v1", json={"members": ["us"]})).json()["members"]
        assert (away[0]["state"], bool(away[0]["reason"])) == ("unreachable", True)


@on_uvloop
async def test_more_blobs_than_one_request_takes_are_asked_in_several(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.overview.members.MAX_DIGESTS", 2)
    async with two_regions(cluster) as (eu, us), admin(eu) as client:
        layers = [b"part %d" % number for number in range(5)]
        await push_image(eu, "v1", *layers)
        for layer in layers[:4]:
            await us.push(layer)
        await us.learn(layers[4], StoreId("9" * 32))  # which nobody has
        assert (await us.client.get(f"/v2/{REPOSITORY}/blobs/{digest_of(layers[4])}")).status_code == 503
        said, reports = ReplicatorClient.report, 0

        async def report(self: ReplicatorClient) -> ReplicatorReport | None:
            nonlocal reports
            reports += 1
            return await said(self)

        monkeypatch.setattr(ReplicatorClient, "report", report)
        members = (await client.get(f"{PATH}/images/{REPOSITORY}/manifests/v1")).json()["members"]
        assert [each["held_blobs"] for each in members] == [6, 4 + await us.holds(digest_of(EMPTY))]
        assert reports == 2  # one of each member
        reasons = {each["digest"]: each["reason"] for each in members[1]["missing"]}
        assert "it could not be brought once" in reasons[digest_of(layers[4])]


@on_uvloop
async def test_what_cannot_be_brought_is_not_in_the_way_of_the_rest(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.overview.here.MAX_AHEAD", 4)
    monkeypatch.setattr("replication.fetcher.HEARD_SECONDS", 0.05)
    async with two_regions(cluster) as (eu, us):
        lost = [await us.learn(b"lost %d" % number, StoreId("9" * 32)) for number in range(4)]
        there = [await eu.push(b"there %d" % number) for number in range(8)]
        for number in range(8):
            await us.learn(b"there %d" % number, eu.store)
        digests = [Digest.parse(digest) for digest in (*lost, *there)]
        async with asyncio.timeout(30):
            while len((await us.around.here.holdings(digests)).held) < 8:
                assert (await us.around.here.demand(digests)).asked == 4
                await asyncio.sleep(0.05)


HOSTILE_PATHS = (
    f"{PATH}/blobs/x",
    f"{PATH}/blobs/sha256:{'A' * 64}",
    f"{PATH}/blobs/sha256:{'0' * 65}",
    f"{PATH}/blobs/md5:{'0' * 32}",
    f"{PATH}/blobs/%00",
    f"{PATH}/blobs/%ff%fe",
    f"{PATH}/images/No/manifests/v1",
    f"{PATH}/images/{'a' * 300}/manifests/v1",
    f"{PATH}/images/team/app/manifests/sha256:1",
    f"{PATH}/images/team/app/manifests/-x",
    f"{PATH}/images/team/app/manifests/{'t' * 129}",
    f"{PATH}/images/..%2f..%2fetc/manifests/v1",
    f"{PATH}/images/team/app/manifests/%F0%9F%98%80",
)


@on_uvloop
async def test_what_makes_no_sense_is_refused(cluster: Cluster) -> None:
    async with first_region(cluster, "us") as eu, admin(eu) as client:
        await push_image(eu, "v1", b"x")
        for path in HOSTILE_PATHS:
            answer = await client.get(path)
            assert answer.status_code == 400, (path, answer.text)
            assert answer.json()["errors"][0]["code"] == "INVALID"
        image_url = f"{PATH}/images/{REPOSITORY}/manifests/v1"
        as_json = {"content-type": "application/json"}
        for body in (b"", b"\xff", b"[]", b'{"members": "us"}', b'{"members": [1]}', b"[" * 50_000):
            answer = await client.post(image_url, content=body, headers=as_json)
            assert (answer.status_code, answer.json()["errors"][0]["code"]) == (400, "INVALID"), body[:20]
        names = json.dumps({"members": ["x" * 63] * 65}).encode()
        assert (await client.post(image_url, content=names, headers=as_json)).status_code == 400
        stranger = await client.post(image_url, json={"members": ["zz"]})
        assert (stranger.status_code, "zz" in stranger.json()["errors"][0]["message"]) == (400, True)
        assert (await client.post(image_url, content=b"{}")).status_code == 415
        huge = await client.post(image_url, content=b" " * (MAX_BODY_BYTES + 1), headers=as_json)
        assert huge.status_code == 413
        for path in (f"{PATH}/images/{REPOSITORY}/manifests/nope", f"{PATH}/images/no/such/manifests/v1"):
            assert (await client.get(path)).status_code == 404
            assert (await client.post(path, json={})).status_code == 404
        assert (await client.delete(image_url)).status_code == 405
        assert (await client.post(PATH)).status_code == 405


@on_uvloop
async def test_an_image_of_too_many_blobs_is_refused(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overviews, "MAX_IMAGE_BLOBS", 2)
    async with first_region(cluster) as eu, admin(eu) as client:
        await push_image(eu, "v1", b"1", b"2")
        answer = await client.get(f"{PATH}/images/{REPOSITORY}/manifests/v1")
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (413, "TOO_LARGE")


async def test_before_the_node_serves_there_is_no_answer() -> None:
    transport = httpx.ASGITransport(Starlette(routes=overview_routes(lambda: None)))
    async with httpx.AsyncClient(transport=transport, base_url="http://admin") as client:
        assert (await client.get(PATH)).status_code == 503
