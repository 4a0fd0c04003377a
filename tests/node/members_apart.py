"""Members of one cluster, each a node as its operator has it, and the ways that blobs take between them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx

from chaos.ports import free_ports
from chaos.ways import Shape, Ways
from tests.node.descent import is_alive
from tests.node.member_certificates import CLUSTER_ID, CertificateAuthority, Issued
from tests.node.running import RunningNode, eventually, push_blob

MIB = 1024 * 1024
Place = tuple[int, int]  # ports of a member: for keepers, and for transfers

SETTINGS = """
[cluster]
id = "{cluster_id}"
members = [{members}]
ca = "{files.ca}"
certificate = "{files.certificate}"
key = "{files.key}"
"""


class Member(RunningNode):
    """A node with addresses for other nodes."""

    ports: Place

    def configure(self, settings: str = "") -> None:
        super().configure(settings)
        text = self.config_file.read_text()
        text = text.replace('region = "eu"', f'region = "{self.folder.name}"\nname = "{self.folder.name}"')
        more = f'peers = "127.0.0.1:{self.ports[0]}"\ntransfers = "127.0.0.1:{self.ports[1]}"\n'
        self.config_file.write_text(text.replace("[listen]\n", f"[listen]\n{more}"))


def member(folder: Path, files: Issued, places: Mapping[str, Place], *, gateways: int) -> Member:
    """The one with the name of `folder`, which knows the others, and itself, at these places."""
    members = ", ".join(f'"{name}=127.0.0.1:{place[0]}/{place[1]}"' for name, place in places.items())
    folder.mkdir()
    settings = SETTINGS.format(cluster_id=CLUSTER_ID, members=members, files=files)
    made = Member(folder, gateways=gateways, settings=settings)
    made.ports = places[folder.name]
    return made


@contextmanager
def all_serving(*nodes: RunningNode) -> Iterator[None]:
    """They serve while the block runs; nothing of them is left behind."""
    children: list[int] = []
    try:
        for node in nodes:
            node.start(wait=False)
        for node in nodes:
            node.wait_for("node_serving")
        yield
    finally:
        for node in nodes:
            if node.process and node.process.poll() is None:
                children += node.kill()
        eventually(lambda: not any(map(is_alive, children)))


class Apart:
    """Members by their names, and the ways that blobs take between them, which can be narrowed."""

    def __init__(self, nodes: dict[str, Member], ways: Ways) -> None:
        self.nodes = nodes
        self.ways = ways

    def __getitem__(self, name: str) -> Member:
        return self.nodes[name]

    def narrow(self, bytes_per_second: float, *pairs: tuple[str, str], delay_seconds: float = 0.01) -> None:
        """All ways, or some."""
        for pair in pairs or self.ways.pairs:
            self.ways.shape([pair], Shape(delay_seconds=delay_seconds, bytes_per_second=bytes_per_second))

    def ready(self, *names: str) -> None:
        """Returns once these are, or all."""
        for name in names or self.nodes:
            eventually(partial(_says_ok, self[name]), 60)

    def push(self, content: bytes) -> str:
        """To eu; returns the digest."""
        with self["eu"].client() as client:
            return push_blob(client, content)


@contextmanager
def members_apart(folder: Path, *names: str, gateways: int) -> Iterator[Apart]:
    """They are ready."""
    authority = CertificateAuthority(folder / "ca")
    ports = free_ports(2 * len(names))
    places = {name: (ports[2 * at], ports[2 * at + 1]) for at, name in enumerate(names)}
    with Ways({name: [f"127.0.0.1:{place[1]}"] for name, place in places.items()}) as ways:

        def seen(name: str, other: str) -> Place:
            port = int(ways.addresses[name, other][0].rpartition(":")[2]) if other != name else places[name][1]
            return places[other][0], port

        nodes = {
            name: member(
                folder / name, authority.issue(name), {other: seen(name, other) for other in names}, gateways=gateways
            )
            for name in names
        }
        with all_serving(*nodes.values()):
            made = Apart(nodes, ways)
            made.ready()
            yield made


def pull(node: RunningNode, digest: str) -> Iterator[bytes]:
    """The chunks of a blob; ends early if the connection breaks."""
    with (
        contextlib.suppress(httpx.TransportError),
        node.client() as client,
        client.stream("GET", f"/v2/team/app/blobs/{digest}") as answer,
    ):
        assert answer.status_code == 200, answer.read()
        yield from answer.iter_raw(65536)


def take(chunks: Iterator[bytes], count: int) -> bytes:
    """At least so many bytes."""
    received = bytearray()
    while len(received) < count:
        received += next(chunks)
    return bytes(received)


def _says_ok(node: RunningNode) -> bool:
    with contextlib.suppress(httpx.TransportError):
        found = node.admin("/readyz")
        return found.status_code == 200 and bool(found.json()["replicator"] == "ok")
    return False
