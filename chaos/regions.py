"""Three regions of one cluster under test: real nodes with certificates of their own, that reach each other by relays.

Each lies on a good disk or on a lossy file system of its own. Their logs are short, so that they are trimmed all the
time and who was away for some seconds needs a snapshot.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from chaos.mount import LossyMount
from chaos.ports import free_addresses
from chaos.region import NodeRefused, RegionFolders, RegionNode, Settings
from chaos.ways import Ways
from consensus.clock import monotonic
from consensus.views import Views
from node.authority import Authority, publish

NAMES = ("eu", "us", "ap")
SHORT_LOG = "segment_bytes = 65536\nkeep_bytes = 65536"
READY_SECONDS = 60.0

_POLL_SECONDS = 0.02
_ANSWER_SECONDS = 3.0
_DAYS = 2


@dataclass(frozen=True, slots=True)
class Standing:
    """What a node says of itself. `steward` is the region that leads, as far as it knows."""

    term: int
    commit: int
    applied: int
    steward: str | None


class Nodes:
    """Those of one cluster, by their region."""

    def __init__(self, cluster_id: str, nodes: dict[str, RegionNode]) -> None:
        self.cluster_id = cluster_id
        self.nodes = nodes
        self._client = httpx.AsyncClient(timeout=_ANSWER_SECONDS, trust_env=False)

    async def start(self, *names: str) -> None:
        """Starts those that do not run, of all if none is named; returns once they are ready. Raises NodeRefused."""
        chosen = [name for name in names or self.nodes if not self.nodes[name].is_running]
        for name in chosen:
            self.nodes[name].start()
        await self.wait_ready(*chosen)

    async def wait_ready(self, *names: str) -> None:
        """Until they are. Raises NodeRefused."""
        async with asyncio.TaskGroup() as group:
            for name in names or self.nodes:
                group.create_task(self.nodes[name].wait_ready(READY_SECONDS))

    async def serving(self, name: str) -> None:
        """Returns once the keeper of a node that was just started is there; waits for ever."""
        before = self.nodes[name].events("keeper_serving")
        while self.nodes[name].events("keeper_serving") == before:  # noqa: ASYNC110  it has nobody to tell
            await asyncio.sleep(_POLL_SECONDS)

    def kill(self, names: Iterable[str]) -> None:
        """SIGKILL to every process of these, one node after the other."""
        for name in names:
            if self.nodes[name].is_running:
                self.nodes[name].kill()

    async def standing(self, name: str) -> Standing | None:
        """None where there is no answer."""
        try:
            answer = await self._client.get(f"http://{self.nodes[name].admin_address}/meridian/v1/status")
            said = answer.raise_for_status().json()
        except (httpx.HTTPError, ValueError):
            return None
        if said.get("term") is None or said.get("applied") is None:
            return None
        return Standing(said["term"], said["commit"], said["applied"], said["steward"])

    async def keeper_pid(self, name: str) -> int:
        """0 where there is no answer."""
        try:
            answer = await self._client.get(f"http://{self.nodes[name].admin_address}/meridian/v1/status")
            return int(answer.raise_for_status().json().get("keeper_pid") or 0)
        except (httpx.HTTPError, ValueError):
            return 0

    async def steward(self, seconds: float = READY_SECONDS) -> str:
        """Who leads by its own account. Raises NodeRefused if nobody does in time."""
        deadline = monotonic() + seconds
        while monotonic() < deadline:
            for name in self.nodes:
                standing = await self.standing(name)
                if standing is not None and standing.steward == name:
                    return name
            await asyncio.sleep(_POLL_SECONDS)
        raise NodeRefused(f"nobody leads after {seconds} s: {self.log_tails()}")

    def hash(self, name: str) -> tuple[int, str]:
        """(applied, state hash), read from its files."""
        views = Views(self.nodes[name].folders.data / "state")
        try:
            return views.hash()
        finally:
            views.close()

    async def agree(self, seconds: float = READY_SECONDS) -> dict[str, tuple[int, str]]:
        """(applied, hash) of every node, as soon as all have applied the same; what they had at the deadline if not.
        Nobody may write meanwhile."""
        deadline = monotonic() + seconds
        while True:
            found = {name: await asyncio.to_thread(self.hash, name) for name in self.nodes}
            if len({applied for applied, _ in found.values()}) == 1 or monotonic() > deadline:
                return found
            await asyncio.sleep(_POLL_SECONDS)

    def snapshots(self) -> int:
        """How many have been installed so far."""
        return sum(node.events("snapshot_installed") for node in self.nodes.values())

    def log_tails(self) -> str:
        """The ends of all logs."""
        return "\n".join(f"--- {name}\n{node.log_tail()}" for name, node in self.nodes.items())

    async def close(self) -> None:
        """Kills what still runs."""
        self.kill(self.nodes)
        await self._client.aclose()


class Regions(Nodes):
    """The cluster. Made by `regions`; nothing runs yet. `mounts` is empty where the disks are good."""

    def __init__(
        self, cluster_id: str, nodes: dict[str, RegionNode], ways: Ways, mounts: dict[str, LossyMount]
    ) -> None:
        super().__init__(cluster_id, nodes)
        self.ways = ways
        self.mounts = mounts


@contextlib.contextmanager
def regions(
    work: Path, *, lossy: bool = False, log: str = SHORT_LOG, seed: int = 1, relayed: bool = True
) -> Iterator[Regions]:
    """A cluster in `work`, with its relays, and its disks where they are lossy; close it within the context. Where they
    are not relayed the nodes reach each other directly, and there are no ways to shape."""
    free = free_addresses(2 * len(NAMES))
    members = dict(zip(NAMES, zip(free[::2], free[1::2], strict=True), strict=True))
    authority = Authority.create()
    with contextlib.ExitStack() as stack:
        ways = stack.enter_context(Ways(members if relayed else {}, seed=seed))
        nodes, mounts = {}, {}
        for name, (peers, transfers) in members.items():
            folder = work / name
            publish(folder / "tls", authority.issue(name, _DAYS).files)
            if lossy:
                mounts[name] = stack.enter_context(LossyMount(folder / "disk"))
            settings = Settings(
                node=f'region = "{name}"\nname = "{name}"\ngateways = 1',
                listen=f'peers = "{peers}"\ntransfers = "{transfers}"',
                log=log,
                more=membership(
                    authority.cluster_id,
                    {other: ways.addresses.get((name, other), listening) for other, listening in members.items()},
                ),
            )
            data = (mounts[name].folder if lossy else folder) / "data"
            nodes[name] = RegionNode(RegionFolders(data, folder), settings=settings)
        yield Regions(authority.cluster_id, nodes, ways, mounts)


def membership(cluster_id: str, known: Mapping[str, Sequence[str]], *, congestion_control: str = "") -> str:
    """What a member's configuration says of its cluster: where it reaches the keeper of each member, and that one's
    gateways for transfers (HOST:PORT each), and its certificate, which lies in `tls/`."""
    listed = [f'"{name}={peers}/{transfers.rpartition(":")[2]}"' for name, (peers, transfers) in known.items()]
    return f"""\
[cluster]
id = "{cluster_id}"
members = [{", ".join(listed)}]
ca = "tls/ca.crt"
certificate = "tls/node.crt"
key = "tls/node.key"
congestion_control = "{congestion_control}"
"""
