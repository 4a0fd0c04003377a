"""Requests of upload sessions that reach another node than the one which began the upload."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable

import httpx
import msgspec
import pytest

from consensus.entropy import new_uuid
from node.gateway import forwarding
from node.gateway.requests import Receive, Scope, Send
from replication.peers import WARM_CONNECTIONS
from tests.node.gateway.false_member import NODE_ID, false_member
from tests.node.gateway.regions import REPOSITORY, Cluster, Region, peak_memory, two_regions
from tests.node.gateway.rig import code, digest_of
from tests.node.http_server import Client, on_uvloop

MIB = 1024 * 1024
UPLOADS = f"/v2/{REPOSITORY}/blobs/uploads/"


async def in_chunks(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def begun(region: Region) -> str:
    location = (await region.client.post(UPLOADS)).raise_for_status().headers["location"]
    assert location.startswith(UPLOADS)
    return str(location)


async def until(done: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not done():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@on_uvloop
@pytest.mark.parametrize("size", [10, 300 * 1024, 3 * MIB])
async def test_a_push_whose_every_request_takes_the_other_way(cluster: Cluster, size: int) -> None:
    content = bytes(range(251)) * (size // 251 + 1)
    half = len(content) // 2
    async with two_regions(cluster) as (eu, us):
        location = await begun(eu)
        answer = await us.client.patch(location, content=in_chunks(content[:5], content[5:half]))
        assert (answer.status_code, answer.headers["range"]) == (202, f"0-{half - 1}")
        location = answer.headers["location"]
        answer = await eu.client.get(location)
        assert answer.headers["range"] == f"0-{half - 1}"
        answer = await us.client.get(location)
        assert (answer.status_code, answer.headers["range"]) == (204, f"0-{half - 1}")
        headers = {"content-range": f"{half}-{len(content) - 2}"}
        answer = await us.client.patch(answer.headers["location"], content=content[half:-1], headers=headers)
        assert answer.status_code == 202, answer.text
        digest = digest_of(content)
        answer = await us.client.put(answer.headers["location"], params={"digest": digest}, content=content[-1:])
        assert answer.status_code == 201, answer.text
        assert answer.headers["location"] == f"/v2/{REPOSITORY}/blobs/{digest}"
        assert answer.headers["docker-content-digest"] == digest
        assert (await eu.client.get(f"/v2/{REPOSITORY}/blobs/{digest}")).content == content
        assert await eu.holds(digest)
        assert not list((us.folder / "uploads").iterdir())
        # and the answer that got lost is given again
        assert (await us.client.put(location, params={"digest": digest})).status_code == 201


@on_uvloop
async def test_an_upload_is_cancelled_through_another_node(cluster: Cluster) -> None:
    async with two_regions(cluster) as (eu, us):
        location = await begun(eu)
        assert (await us.client.delete(location)).status_code == 204
        gone = await us.client.delete(location)
        assert (gone.status_code, code(gone)) == (404, "BLOB_UPLOAD_UNKNOWN")


@on_uvloop
async def test_errors_come_back_as_they_are(cluster: Cluster) -> None:
    async with two_regions(cluster) as (eu, us):
        location = await begun(eu)
        headers = {"content-range": "5-9"}
        answer = await us.client.patch(location, content=b"later", headers=headers)
        assert (answer.status_code, code(answer)) == (416, "BLOB_UPLOAD_INVALID")
        assert answer.headers["location"] == location
        assert answer.headers["range"] == "0-0"
        answer = await us.client.put(location, params={"digest": digest_of(b"other")}, content=b"this")
        assert (answer.status_code, code(answer)) == (400, "DIGEST_INVALID")
        elsewhere = location.replace(REPOSITORY, "team/other")
        answer = await us.client.patch(elsewhere, content=b"x")
        assert (answer.status_code, code(answer)) == (404, "BLOB_UPLOAD_UNKNOWN")
        assert len({record.request_id for record in eu.peer_records.ended if record.route == "upload"}) == 3
        assert eu.peer_records.ended[-1].request_id == answer.headers["x-request-id"]


@on_uvloop
async def test_a_long_body_that_nobody_wants_is_not_sent(cluster: Cluster) -> None:
    """The owner refuses before the body has come: the answer reaches the client, the connections stay of use."""
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(200):
            sent += MIB
            yield bytes(MIB)

    async with two_regions(cluster) as (eu, us):
        location = await begun(eu)
        wrong = location[:-1] + ("0" if location[-1] != "0" else "1")
        try:
            answer = await us.client.patch(wrong, content=endless())
        except httpx.TransportError:  # it went on sending for too long
            pass
        else:
            assert (answer.status_code, code(answer)) == (404, "BLOB_UPLOAD_UNKNOWN")
        record = next(record for record in eu.peer_records.ended if record.route == "upload")
        assert (record.status, record.bytes_in) == (404, 0)
        answer = await us.client.patch(location, content=b"x")
        assert answer.status_code == 202


@on_uvloop
async def test_a_short_body_that_is_refused_before_it_is_whole_spoils_no_connection(cluster: Cluster) -> None:
    """The owner still takes what is left of it for a body: nothing else may be sent on that connection."""
    async with two_regions(cluster) as (eu, us):
        location = await begun(eu)
        wrong = location[:-1] + ("0" if location[-1] != "0" else "1")
        for _ in range(3):
            client = Client(*await asyncio.open_connection("127.0.0.1", us.port))
            await client.send(b"PATCH %b HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\nx" % wrong.encode())
            assert (await client.answer()).status == 404
            for _ in range(3):
                assert (await us.client.get(location)).status_code == 204
            client.close()


@on_uvloop
async def test_a_client_that_waits_for_continue_gets_the_refusal_instead(cluster: Cluster) -> None:
    async with two_regions(cluster) as (eu, us):
        location = await begun(eu)
        client = Client(*await asyncio.open_connection("127.0.0.1", us.port))
        head = b"PATCH %b HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: %d\r\n\r\n"
        await client.send(head % (location[:-1].encode() + b"g", 10 * MIB))
        assert (await client.answer()).status == 404
        client.close()
        client = Client(*await asyncio.open_connection("127.0.0.1", us.port))
        await client.send(head % (location.encode(), 10 * MIB))
        assert (await client.answer(bodyless=True)).status == 100
        await client.send(bytes(10 * MIB))
        answer = await client.answer()
        assert answer.status == 202
        assert answer.headers["range"] == f"0-{10 * MIB - 1}"
        client.close()


@on_uvloop
@pytest.mark.parametrize("chunked", [True, False])
async def test_what_came_before_the_client_left_is_kept_and_no_more(cluster: Cluster, chunked: bool) -> None:
    async with two_regions(cluster) as (eu, us):
        location = await begun(eu)
        client = Client(*await asyncio.open_connection("127.0.0.1", us.port))
        length = b"transfer-encoding: chunked" if chunked else b"content-length: %d" % (2 * MIB)
        await client.send(b"PATCH %b HTTP/1.1\r\nhost: x\r\n%b\r\n\r\n" % (location.encode(), length))
        await client.send(b"%x\r\n%b\r\n" % (MIB, bytes(MIB)) if chunked else bytes(MIB))
        await until(lambda: eu.peer_records.begun > len(eu.peer_records.ended))
        client.close()
        await until(lambda: us.records.ended)
        assert us.records.ended[-1].status == 499
        await until(lambda: eu.peer_records.begun == len(eu.peer_records.ended))
        assert eu.peer_records.ended[-1].status == 499
        answer = await us.client.get(location)
        assert answer.status_code == 204
        received = int(answer.headers["range"].partition("-")[2]) + 1
        assert received <= MIB


@on_uvloop
async def test_a_large_body_goes_through_in_little_memory(cluster: Cluster) -> None:
    piece = bytes(MIB)
    async with two_regions(cluster) as (eu, us):
        location = await begun(eu)
        before = peak_memory(reset=True)
        answer = await us.client.patch(location, content=in_chunks(*[piece] * 100))
        assert answer.headers["range"] == f"0-{100 * MIB - 1}"
        assert peak_memory() - before < 40 * MIB


@on_uvloop
async def test_an_upload_of_a_node_that_is_not_there_is_lost(cluster: Cluster) -> None:
    async with two_regions(cluster) as (eu, us):
        location = await begun(eu)
        assert (await us.client.get(location)).status_code == 204
        await eu.stop_transfers()
        for ask in (us.client.get, us.client.delete):
            answer = await ask(location)
            assert (answer.status_code, code(answer)) == (404, "BLOB_UPLOAD_UNKNOWN")
        answer = await us.client.patch(location, content=in_chunks(bytes(MIB)))
        assert answer.status_code == 404
        nobody = f"{UPLOADS}{new_uuid()}.{'9' * 32}.{'0' * 32}"
        for odd in (nobody, f"{UPLOADS}a.b.c", f"{UPLOADS}a..c", f"{UPLOADS}a.%00.c", f"{UPLOADS}..."):
            answer = await us.client.get(odd)
            assert (answer.status_code, code(answer)) == (404, "BLOB_UPLOAD_UNKNOWN"), odd


@on_uvloop
async def test_many_ids_of_no_node_cost_the_others_little(cluster: Cluster) -> None:
    async with false_member(cluster, "ap") as ap, two_regions(cluster) as (_, us):
        for number in range(50):
            answer = await us.client.get(f"{UPLOADS}{new_uuid()}.{number:032}.{'0' * 32}")
            assert answer.status_code == 404
        assert ap.introductions < 10 + 2 * (1 + WARM_CONNECTIONS)  # with what two replicators ask


@on_uvloop
async def test_who_is_asked_by_another_node_passes_nothing_on(cluster: Cluster) -> None:
    async with two_regions(cluster, "ap") as (eu, us):
        location = await begun(eu)
        context = cluster.places["ap"].files.client_context()
        context.check_hostname = False
        async with httpx.AsyncClient(verify=context, trust_env=False) as ap:
            at_us = f"https://127.0.0.1:{cluster.places['us'].port}{location}"
            answer = await ap.get(at_us)
            assert (answer.status_code, code(answer)) == (404, "BLOB_UPLOAD_UNKNOWN")
            answer = await ap.get(f"https://127.0.0.1:{cluster.places['eu'].port}{location}")
            assert answer.status_code == 204
        assert us.around.forwarder


async def told(answer: bytes, scope: Scope, receive: Receive, send: Send) -> None:
    """Takes all of the body, then answers."""
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(answer))]})
    await send({"type": "http.response.body", "body": answer})


@on_uvloop
async def test_only_known_headers_go_on_and_come_back(cluster: Cluster) -> None:
    seen: list[dict[str, str]] = []

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append({name.decode(): value.decode() for name, value in scope["headers"]})
        headers = [(b"content-length", b"2"), (b"set-cookie", b"a=b"), (b"retry-after", b"7"), (b"x-odd", b"1")]
        await send({"type": "http.response.start", "status": 429, "headers": headers})
        await send({"type": "http.response.body", "body": b"{}"})

    async with false_member(cluster, "ap") as ap, two_regions(cluster) as (_, us):
        ap.answer = answer
        headers = {"authorization": "Bearer x", "x-request-id": "me", "x-odd": "1", "cookie": "a=b", "te": "trailers"}
        got = await us.client.get(f"{UPLOADS}{new_uuid()}.{NODE_ID}.{'0' * 32}?digest=a%2fb", headers=headers)
        assert (got.status_code, got.headers["retry-after"], got.content) == (429, "7", b"{}")
        assert not {"set-cookie", "x-odd"} & got.headers.keys()
        assert seen[0].keys() == {"host", "authorization", "x-request-id"}
        assert seen[0]["x-request-id"] == "me"


@on_uvloop
async def test_an_owner_that_breaks_off_or_answers_nonsense(cluster: Cluster) -> None:
    async def hang_up(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        raise ConnectionError("on purpose")

    async def too_much(scope: Scope, receive: Receive, send: Send) -> None:
        await told(bytes(MIB), scope, receive, send)

    async with false_member(cluster, "ap") as ap, two_regions(cluster) as (_, us):
        location = f"{UPLOADS}{new_uuid()}.{NODE_ID}.{'0' * 32}"
        for ap.answer in (hang_up, too_much):
            answer = await us.client.patch(location, content=in_chunks(b"x" * MIB, b"y"))
            assert answer.status_code in {500, 503}
            assert answer.status_code == 503 or ap.answer is hang_up


@on_uvloop
async def test_an_owner_that_takes_nothing_more_is_given_up(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding, "STALL_SECONDS", 0.5)

    async def stuck(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await ap.go_on.wait()

    async with false_member(cluster, "ap") as ap, two_regions(cluster) as (_, us):
        ap.answer = stuck
        location = f"{UPLOADS}{new_uuid()}.{NODE_ID}.{'0' * 32}"
        client = Client(*await asyncio.open_connection("127.0.0.1", us.port))
        await client.send(b"PATCH %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % (location.encode(), 64 * MIB))
        sending = asyncio.create_task(client.send(bytes(64 * MIB)))
        answer = await client.answer()
        assert answer.status == 503
        assert msgspec.json.decode(answer.body)["errors"][0]["code"] == "UNAVAILABLE"
        sending.cancel()
        await asyncio.wait([sending])
        client.close()


@on_uvloop
async def test_a_member_that_accepts_and_says_nothing_is_given_up(cluster: Cluster) -> None:
    """Its kernel takes connections, as that of a machine whose node hangs."""
    cluster.add("ap")
    assert isinstance(cluster.places["ap"].listener, socket.socket)
    async with two_regions(cluster) as (eu, us):
        location = await begun(eu)
        async with asyncio.timeout(2):  # it does not hold up the search for another one
            assert (await us.client.get(location)).status_code == 204
        async with asyncio.timeout(8):
            answer = await us.client.get(f"{UPLOADS}{new_uuid()}.{'8' * 32}.{'0' * 32}")
        assert answer.status_code == 404
