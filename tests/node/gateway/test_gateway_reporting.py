"""What members ask of each other about replication, and what is asked that members do not ask."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from node.overview.shapes import MAX_BODY_BYTES, MAX_DIGESTS
from tests.node.gateway.regions import Cluster, Region, first_region, two_regions
from tests.node.gateway.rig import code, digest_of
from tests.node.gateway.test_gateway_transfers import as_client
from tests.node.http_server import on_uvloop

STATUS = "/meridian/v1/replication"
HOLDINGS = "/meridian/v1/holdings"
DEMANDS = "/meridian/v1/demands"
ABSENT = "sha256:" + "0" * 64


async def held_soon(region: Region, digest: str) -> None:
    async with asyncio.timeout(20):
        while not await region.holds(digest):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@on_uvloop
async def test_a_member_says_how_it_is_and_what_it_holds_and_fetches_nothing(cluster: Cluster) -> None:
    async with two_regions(cluster) as (eu, us), as_client(us, cluster, cluster.places["eu"].files) as client:
        elsewhere = await eu.push(b"only in eu")
        await us.learn(b"only in eu", eu.store)
        here = await us.push(b"in us")
        status = (await client.get(STATUS)).json()
        assert (status["member"], status["region"], status["state"]) == ("us", "us", "ok")
        assert status["replication"]["transfers"] == []
        answer = await client.post(HOLDINGS, json={"digests": [here, elsewhere, ABSENT, here]})
        assert answer.status_code == 200
        found = answer.json()
        assert (found["member"], found["store_id"], found["held"]) == ("us", us.store, [here])
        assert (found["replicator"], found["arriving"], found["waiting"], found["failures"]) == (True, [], [], [])
        assert (await client.post(HOLDINGS, json={"digests": []})).json()["held"] == []
        await asyncio.sleep(0.3)
        assert not await us.holds(elsewhere)
        assert us.fetcher.status.transfers == 0


@on_uvloop
async def test_a_member_brings_what_its_log_knows_and_nothing_else(cluster: Cluster) -> None:
    async with two_regions(cluster) as (eu, us), as_client(us, cluster, cluster.places["eu"].files) as client:
        known = await eu.push(b"known in us")
        await us.learn(b"known in us", eu.store)
        unknown = await eu.push(b"not known in us")
        here = await us.push(b"there already")
        answer = await client.post(DEMANDS, json={"digests": [known, unknown, here, ABSENT]})
        assert answer.status_code == 200
        assert answer.json() == {"member": "us", "region": "us", "asked": 1, "held": 1, "unknown": 2}
        await held_soon(us, known)
        assert not await us.holds(unknown)


HOSTILE: list[tuple[str, Any]] = [
    ("nothing", b""),
    ("not JSON", b"\x00\xff{"),
    ("not an object", b"[]"),
    ("another object", b"{}"),
    ("wrong types", b'{"digests": [1, null, {}]}'),
    ("no list", b'{"digests": "sha256:00"}'),
    ("no digest", json.dumps({"digests": ["sha256:zz"]}).encode()),
    ("upper case", json.dumps({"digests": ["sha256:" + "A" * 64]}).encode()),
    ("a path", json.dumps({"digests": ["../../identity"]}).encode()),
    ("NUL", json.dumps({"digests": ["sha256:" + "0" * 63 + "\x00"]}).encode()),
    ("a surrogate", b'{"digests": ["\\ud800"]}'),
    ("a long one", json.dumps({"digests": ["sha256:" + "0" * 5000]}).encode()),
    ("too many", json.dumps({"digests": ["x"] * (MAX_DIGESTS + 1)}).encode()),
    ("deep", b'{"digests": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"),
]


@on_uvloop
async def test_what_makes_no_sense_is_refused(cluster: Cluster) -> None:
    async with first_region(cluster, "us") as eu, as_client(eu, cluster, cluster.places["us"].files) as client:
        for path in (HOLDINGS, DEMANDS):
            for name, body in HOSTILE:
                answer = await client.post(path, content=body)
                assert answer.status_code == 400, (path, name, answer.text)
                assert code(answer) in {"UNSUPPORTED", "DIGEST_INVALID"}
            huge = await client.post(path, content=b'{"digests": ["' + b"x" * MAX_BODY_BYTES)
            assert huge.status_code == 413, huge.text
            assert (await client.get(path)).status_code == 405
            assert (await client.delete(path)).status_code == 405
            assert (await client.post(path + "/")).status_code == 404
        assert (await client.post(STATUS)).status_code == 405
        many = [digest_of(b"absent %d" % number) for number in range(MAX_DIGESTS)]
        answer = await client.post(HOLDINGS, json={"digests": many})
        assert (answer.status_code, answer.json()["held"]) == (200, [])


@on_uvloop
@pytest.mark.parametrize("path", [STATUS, HOLDINGS, DEMANDS])
async def test_clients_of_the_registry_do_not_reach_it(cluster: Cluster, path: str) -> None:
    async with first_region(cluster, "us") as eu:
        assert (await eu.client.get(path)).status_code == 404
        assert (await eu.client.post(path, json={"digests": []})).status_code == 404
