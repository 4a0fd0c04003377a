"""Two members of a cluster as their operators have them: processes that bring blobs to and pass requests on to each
other."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import pytest

from chaos.ports import free_ports
from consensus.commands import BlobFact, RecordBlobs
from consensus.names import Digest, RepositoryName, StoreId
from consensus.proposer import Proposer
from node.rpc import KeeperClient
from tests.node.member_certificates import CertificateAuthority
from tests.node.members_apart import all_serving, member
from tests.node.running import RunningNode, eventually, push_blob

Pair = tuple[RunningNode, RunningNode]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    authority = CertificateAuthority(tmp_path / "ca")
    ports = free_ports(4)
    places = {"eu": (ports[0], ports[1]), "us": (ports[2], ports[3])}
    eu, us = (member(tmp_path / name, authority.issue(name), places, gateways=2) for name in places)
    with all_serving(eu, us):
        yield eu, us


def tell(node: RunningNode, digest: str, size: int, store: str) -> None:
    """Makes sure that the state of the node knows who holds the blob."""

    async def propose() -> None:
        client = KeeperClient(node.folder / "data" / "run" / "keeper.sock")
        try:
            fact = BlobFact(Digest.parse(digest), size)
            await Proposer(client, "test").propose(RecordBlobs(RepositoryName("team/app"), StoreId(store), (fact,)))
        finally:
            await client.close()

    asyncio.run(propose())


def test_blobs_and_uploads_of_another_member(pair: Pair) -> None:
    eu, us = pair
    content = bytes(range(256)) * 40_000
    with eu.client() as at_eu, us.client() as at_us:
        digest = push_blob(at_eu, content)
        tell(us, digest, len(content), msgspec.json.decode((eu.folder / "data" / "identity").read_bytes())["store_id"])
        for _ in range(3):
            assert at_us.get(f"/v2/team/app/blobs/{digest}").content == content
        assert 'meridian_fetches_total{outcome="kept"}' in us.admin("/metrics").text
        location = at_eu.post("/v2/team/app/blobs/uploads/").headers["location"]
        for client in (at_us, at_eu, at_us):
            location = client.patch(location, content=b"part").headers["location"]
        assert at_us.get(location).headers["range"] == "0-11"
        eu.kill()
        lost = at_us.get(location)
        assert (lost.status_code, lost.json()["errors"][0]["code"]) == (404, "BLOB_UPLOAD_UNKNOWN")


def test_members_drain_and_come_back(pair: Pair) -> None:
    eu, us = pair
    with eu.client() as at_eu, us.client() as at_us:
        location = at_eu.post("/v2/team/app/blobs/uploads/").headers["location"]
        assert at_us.patch(location, content=b"part").status_code == 202
        assert eu.stop() == 0
        assert at_us.get(location).status_code == 404
        eu.start()
        eventually(lambda: at_us.get(location).status_code == 204)
        assert at_us.get(location).headers["range"] == "0-3"


def test_a_node_alone_listens_to_no_other(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    node = RunningNode(tmp_path, gateways=1)
    node.configure()
    text = node.config_file.read_text().replace("[listen]\n", f'[listen]\ntransfers = "127.0.0.1:{port}"\n')

    def configure(settings: str = "") -> None:
        node.config_file.write_text(text)

    node.configure = configure  # type: ignore[method-assign]
    try:
        node.start()
        assert "transfers" not in node.events("node_serving")[0]
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"http://127.0.0.1:{port}/", trust_env=False)
    finally:
        if node.process and node.process.poll() is None:
            node.kill()
