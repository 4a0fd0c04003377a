"""The listener for other nodes: who may talk to it, and what it answers."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from tests.node.gateway.false_member import false_member
from tests.node.gateway.regions import REPOSITORY, Cluster, Region, first_region, two_regions
from tests.node.gateway.rig import code
from tests.node.http_server import on_uvloop
from tests.node.member_certificates import CLUSTER_ID, CertificateAuthority, Issued

IDENTITY = "/meridian/v1/identity"
BLOBS = "/meridian/v1/blobs/"


@asynccontextmanager
async def as_client(region: Region, cluster: Cluster, files: Issued) -> AsyncIterator[httpx.AsyncClient]:
    """Of the region's listener for other nodes."""
    context = files.client_context()
    context.check_hostname = False
    url = f"https://127.0.0.1:{cluster.places[region.name].port}"
    async with httpx.AsyncClient(verify=context, base_url=url, timeout=10, trust_env=False) as client:
        yield client


@on_uvloop
async def test_a_node_says_who_it_is(cluster: Cluster) -> None:
    async with two_regions(cluster) as (eu, us), as_client(eu, cluster, cluster.places["us"].files) as client:
        answer = await client.get(IDENTITY)
        assert answer.json() == {
            "cluster_id": CLUSTER_ID,
            "node_id": eu.identity.node_id,
            "member": "eu",
            "region": "eu",
            "store_id": eu.store,
        }
        assert await us.around.forwarder._peers.directory.with_store(eu.store) == "eu"


@on_uvloop
async def test_a_member_gets_blobs_of_the_store_and_parts_of_them(cluster: Cluster) -> None:
    content = b"0123456789" * 20000
    async with two_regions(cluster) as (eu, _), as_client(eu, cluster, cluster.places["us"].files) as client:
        path = BLOBS + await eu.push(content)
        whole = await client.get(path)
        assert (whole.status_code, whole.content) == (200, content)
        head = await client.head(path)
        assert (head.status_code, head.headers["content-length"]) == (200, str(len(content)))
        part = await client.get(path, headers={"range": "bytes=199990-"})
        assert (part.status_code, part.content) == (206, b"0123456789")
        assert part.headers["content-range"] == "bytes 199990-199999/200000"
        beyond = await client.get(path, headers={"range": "bytes=200000-"})
        assert beyond.status_code == 416
        unknown = await client.get(BLOBS + "sha256:" + "0" * 64)
        assert (unknown.status_code, code(unknown)) == (404, "BLOB_UNKNOWN")
        for odd in ("sha256:zz", "", "..%2f..%2fidentity", "sha256:" + "0" * 63 + "%00", "../../identity"):
            answer = await client.get(BLOBS + odd)
            assert answer.status_code in {400, 404}, odd


@on_uvloop
async def test_nothing_else_is_there(cluster: Cluster) -> None:
    async with two_regions(cluster) as (eu, _), as_client(eu, cluster, cluster.places["us"].files) as client:
        digest = await eu.push(b"content")
        for method, path in (
            ("GET", "/v2/"),
            ("GET", "/v2/_catalog"),
            ("GET", f"/v2/{REPOSITORY}/blobs/{digest}"),
            ("POST", f"/v2/{REPOSITORY}/blobs/uploads/"),
            ("GET", f"/v2/{REPOSITORY}/tags/list"),
            ("GET", "/"),
            ("GET", "/metrics"),
        ):
            assert (await client.request(method, path)).status_code == 404, path
        assert (await client.delete(BLOBS + digest)).status_code == 405
        assert (await client.post(IDENTITY)).status_code == 405


@on_uvloop
async def test_clients_of_the_registry_do_not_reach_what_is_for_nodes(cluster: Cluster) -> None:
    async with two_regions(cluster) as (eu, _):
        digest = await eu.push(b"for nodes")
        assert (await eu.client.get(BLOBS + digest)).status_code == 404
        assert (await eu.client.get(IDENTITY)).status_code == 404


@on_uvloop
@pytest.mark.parametrize("who", ["no member", "another cluster", "itself", "foreign authority", "two names"])
async def test_who_is_no_member_is_turned_away(cluster: Cluster, who: str) -> None:
    async with first_region(cluster, "us") as eu:
        match who:
            case "no member":
                files = cluster.authority.issue("zz")
            case "another cluster":
                files = cluster.authority.issue("us", "d" * 32)
            case "itself":
                files = cluster.places["eu"].files
            case "two names":
                files = cluster.authority.issue("us", CLUSTER_ID, "eu")
            case _:
                foreign = CertificateAuthority(cluster.folder / "foreign").issue("us")
                files = Issued(cluster.authority.file, foreign.certificate, foreign.key)
        async with as_client(eu, cluster, files) as client:
            with pytest.raises((httpx.TransportError, ssl.SSLError)):
                await client.get(IDENTITY)
        assert not eu.peer_records.begun


@on_uvloop
async def test_who_shows_no_certificate_or_speaks_no_tls_is_turned_away(cluster: Cluster) -> None:
    async with first_region(cluster, "us") as eu:
        port = cluster.places["eu"].port
        context = ssl.create_default_context(cafile=str(cluster.authority.file))
        context.check_hostname = False
        async with httpx.AsyncClient(verify=context, trust_env=False) as client:
            with pytest.raises(httpx.TransportError):
                await client.get(f"https://127.0.0.1:{port}{IDENTITY}")
        for garbage in (b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", b"\x80\x04\x95garbage", bytes(100000)):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(garbage)
            answer = b""
            try:
                async with asyncio.timeout(5):
                    answer = await reader.read()
            except ConnectionError:
                pass
            assert b"HTTP" not in answer
            writer.close()
        assert not eu.peer_records.begun


@on_uvloop
async def test_a_member_whose_certificate_is_anothers_gives_nothing(cluster: Cluster) -> None:
    """At the address of ap there is somebody with the certificate of another member."""
    place = cluster.add("ap")
    place.files = cluster.authority.issue("us")
    async with false_member(cluster, "ap") as ap, two_regions(cluster) as (_, us):
        digest = await us.learn(b"secret", ap.store)
        assert (await us.client.get(f"/v2/{REPOSITORY}/blobs/{digest}")).status_code == 503
        assert not ap.introductions
