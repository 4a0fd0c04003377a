"""Members of a cluster on loopback: real transports with certificates of one authority, each behind a relay."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from consensus.clock import monotonic
from consensus.raft.links import Message
from consensus.raft.transport import Credentials, GrpcTransport
from node.authority import Authority
from tests.consensus.raft.relay import Relay

AUTHORITY = Authority.create()
CLUSTER_ID = AUTHORITY.cluster_id
WAIT_SECONDS = 30.0
CALM = 2.0  # a heartbeat that no busy machine mistakes for a dead link


def credentials_of(member: str, authority: Authority = AUTHORITY) -> Credentials:
    issued = authority.issue(member)
    return Credentials(issued.ca, issued.certificate, issued.key)


class Witness:
    """What a member was told, and a way to wait for it."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.messages: list[tuple[str, Message]] = []
        self.links: list[tuple[str, bool]] = []
        self.hold: Callable[[str, Message], None] = lambda peer, message: None

    def receive(self, peer: str, message: Message) -> None:
        self.hold(peer, message)
        with self.changed:
            self.messages.append((peer, message))
            self.changed.notify_all()

    def linked(self, peer: str, up: bool) -> None:
        with self.changed:
            self.links.append((peer, up))
            self.changed.notify_all()

    def wait(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, WAIT_SECONDS), (self.links, len(self.messages))

    def is_linked(self, peer: str) -> bool:
        return next((up for name, up in reversed(self.links) if name == peer), False)

    def of(self, peer: str) -> list[Any]:
        """The values `n` of the peer's messages."""
        return [message.get("n") for name, message in self.messages if name == peer]


class Member:
    """One process's part of a cluster."""

    def __init__(
        self, name: str, peers: Mapping[str, str], *, incarnation: int = 1, heartbeat: float = CALM, **more: Any
    ) -> None:
        self.name = name
        self.peers = list(peers)
        self.witness = Witness()
        self.transport = GrpcTransport(
            name,
            "127.0.0.1:0",
            peers,
            CLUSTER_ID,
            credentials_of(name),
            incarnation=incarnation,
            heartbeat_seconds=heartbeat,
            **more,
        )

    def start(self) -> None:
        self.transport.start(self.witness.receive, self.witness.linked)

    def wait_linked(self, *peers: str, up: bool = True) -> None:
        for peer in peers or self.peers:
            self.witness.wait(lambda peer=peer: self.witness.is_linked(peer) is up)  # type: ignore[misc]

    def send(self, peer: str, n: object) -> bool:
        return self.transport.send(peer, {"n": n})


class Cluster:
    """Members by name. `relays[a]` stands before member a, for all others."""

    def __init__(self, stack: ExitStack, names: tuple[str, ...]) -> None:
        self._stack = stack
        self.relays = {name: stack.enter_context(Relay()) for name in names}
        self.members: dict[str, Member] = {}

    def __getitem__(self, name: str) -> Member:
        return self.members[name]

    def begin(self, name: str, **more: Any) -> Member:
        """A (new) process of this member."""
        peers = {other: relay.address for other, relay in self.relays.items() if other != name}
        member = self.members[name] = Member(name, peers, **more)
        self._stack.callback(member.transport.close)
        self.relays[name].target = member.transport.address
        member.start()
        return member


@contextmanager
def cluster(*names: str, **more: Any) -> Iterator[Cluster]:
    """Linked members, each with each."""
    with ExitStack() as stack:
        made = Cluster(stack, names)
        for name in names:
            made.begin(name, **more)
        for name in names:
            made[name].wait_linked()
        yield made


def eventually(condition: Callable[[], bool], seconds: float = WAIT_SECONDS) -> None:
    """For what nobody tells: asks again until it holds."""
    deadline = monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert monotonic() < deadline, "did not come about"
        pause.wait(0.01)
