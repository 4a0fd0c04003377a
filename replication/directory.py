"""Which member of the cluster is which node and which store, as each says of itself.

What was learnt is kept until talking to the member fails or somebody looks for what nobody was known to be.

    PeerError
    ├── PeerUnreachable   no connection, one that broke, or nothing came for too long
    ├── PeerWrong         it answered with something else than was asked for
    └── BlobNotHeld       it does not hold the blob
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import dataclass

from consensus import clock
from consensus.names import StoreId

ASK_AGAIN_SECONDS = 1.0

log = logging.getLogger(__name__)


class PeerError(Exception):
    """The root of what can go wrong between nodes."""


class PeerUnreachable(PeerError):
    """No answer, or not all of it. What was asked for may have been done."""


class PeerWrong(PeerError):
    """An answer that makes no sense."""


class BlobNotHeld(PeerError):
    """The member's store does not have the blob."""


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """What a member says of itself."""

    member: str
    node_id: str
    store_id: StoreId
    region: str


Ask = Callable[[str], Awaitable[PeerIdentity]]


class Directory:
    """The other members. `ask` gets a member's identity; it raises PeerError, in a bounded time."""

    def __init__(self, members: Collection[str], ask: Ask) -> None:
        self._members = tuple(members)
        self._ask = ask
        self.met: dict[str, PeerIdentity] = {}  # as each last said, also of those that are forgotten since
        self._known: dict[str, PeerIdentity] = {}
        self._asked_at: dict[str, float] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}

    async def with_node(self, node_id: str) -> str | None:
        """The member that is this node; None if none of those that answer is."""
        return await self._find(lambda identity: identity.node_id == node_id)

    async def with_store(self, store_id: StoreId) -> str | None:
        """The member that has this store; None if none of those that answer has."""
        return await self._find(lambda identity: identity.store_id == store_id)

    async def store_of(self, member: str) -> StoreId | None:
        """The store that the member says it has; None if that is another's. Raises PeerError if it is not known and the
        member does not say."""
        if member not in self._known:
            self.learn(await self._ask(member))
        found = self._known.get(member)
        return found.store_id if found else None

    def known_with_store(self, store_id: StoreId) -> str | None:
        """As `with_store`, of what is known already."""
        return self._look(lambda identity: identity.store_id == store_id)

    def learn(self, identity: PeerIdentity) -> None:
        """The member has just said so. Of two that claim one store the one that was there first is believed."""
        owner = self.known_with_store(identity.store_id)
        if owner not in {None, identity.member}:
            log.error("store_claimed_twice", extra={"store": identity.store_id, "members": [owner, identity.member]})
            self.forget(identity.member)
            return
        self._known[identity.member] = self.met[identity.member] = identity

    def forget(self, member: str) -> None:
        """Talking to it failed: whoever is there next may be somebody else."""
        if self._known.pop(member, None):
            self._asked_at.pop(member, None)

    async def close(self) -> None:
        """Ends the questions under way."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _find(self, wanted: Callable[[PeerIdentity], bool]) -> str | None:
        found = self._look(wanted)
        if found is None:
            self._ask_all()
        pending = set(self._asking.values())  # not those that others will ask meanwhile
        while found is None and pending:
            _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            found = self._look(wanted)
        return found

    def _look(self, wanted: Callable[[PeerIdentity], bool]) -> str | None:
        return next((member for member, identity in self._known.items() if wanted(identity)), None)

    def _ask_all(self) -> None:
        """Not each time: anybody may send an upload id that names a node which does not exist."""
        now = clock.monotonic()
        for member in self._members:
            if member not in self._asking and now - self._asked_at.get(member, -ASK_AGAIN_SECONDS) >= ASK_AGAIN_SECONDS:
                self._asked_at[member] = now
                self._asking[member] = asyncio.get_running_loop().create_task(self._ask_one(member))

    async def _ask_one(self, member: str) -> None:
        try:
            with suppress(PeerError):
                self.learn(await self._ask(member))
        finally:
            del self._asking[member]
