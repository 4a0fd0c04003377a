"""What nodes tell each other about copies: blobs that they hold beyond what the log says. Pure.

A node numbers the changes of what it holds, and each blob stands at the number of its last change. Whoever follows asks
for what stands behind the number that it has reached, a page at a time: so a page that is lost, or comes twice, costs
nothing. Where the numbers are others' (the *incarnation* has changed), or some of what has gone since is forgotten, the
pages begin at 0 again. What was known then stays until all has been told anew, and what was not told is forgotten.

All of it is hearsay: a blob that is not held after all is `untrue`, and costs whoever believed it one request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

import msgspec

from consensus.errors import UNDECODABLE, InvalidName
from consensus.names import Digest, StoreId
from replication.directory import PeerWrong

PAGE_ENTRIES = 3072  # of the longest digests, in an answer that Peers takes
HEARD_SECONDS = 1.5  # in which every node that can be reached has told of what it has kept
MAX_COPIES = 1 << 22  # that are believed of one node

INVENTORY_PATH = "/meridian/v1/inventory"

Number = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
Token = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """What has changed behind the number `begin` and up to `end`, as packed digests. `forgotten`: of what has gone, the
    changes up to there are not known any more. `more`: there is more behind it. `walked`: the node has looked through
    its store since the incarnation began, so that nothing is left out."""

    store_id: Token
    incarnation: Token
    begin: Number
    end: Number
    forgotten: Number
    more: bool
    walked: bool
    held: Annotated[tuple[bytes, ...], msgspec.Meta(max_length=PAGE_ENTRIES)]
    gone: Annotated[tuple[bytes, ...], msgspec.Meta(max_length=PAGE_ENTRIES)]

    def encode(self) -> bytes:
        """As it travels."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode(cls, body: bytes) -> Page:
        """Raises PeerWrong for whatever is not a page."""
        try:
            page = msgspec.msgpack.decode(body, type=cls)
            for packed in (*page.held, *page.gone):
                Digest.from_bytes(packed)
        except (*UNDECODABLE, InvalidName) as error:
            raise PeerWrong(f"not an inventory: {error}"[:300]) from error
        count = len(page.held) + len(page.gone)
        if count > PAGE_ENTRIES or count > page.end - page.begin or (page.more and not count):
            raise PeerWrong(f"an inventory of {count} changes from {page.begin} to {page.end}")
        return page


@dataclass(frozen=True, slots=True)
class Standing:
    """How far one node's inventory is known. A *round* begins where all is told anew; it is `settled` once all of it
    has come, and what only earlier rounds knew is dropped. `forgotten` is what the page said that it began with."""

    incarnation: str = ""
    reached: int = 0
    forgotten: int = 0
    round: int = 0
    settled: bool = False

    def after(self, page: Page) -> Standing:
        """With the page taken in. Raises PeerWrong for one that does not follow."""
        if (page.incarnation, page.begin) == (self.incarnation, self.reached):
            forgotten, number, settled = self.forgotten, self.round, self.settled
        elif page.begin == 0:
            forgotten, number, settled = page.forgotten, self.round + 1, False
        else:
            raise PeerWrong(f"an inventory from {page.begin} on, not from {self.reached}")
        return Standing(page.incarnation, page.end, forgotten, number, settled or (page.walked and not page.more))

    @property
    def query(self) -> str:
        """What to ask for."""
        return f"incarnation={self.incarnation}&after={self.reached}&forgotten={self.forgotten}"


class Copies(Protocol):
    """What is known of copies. Nothing is raised: who cannot tell knows of none."""

    def holders(self, digest: Digest) -> Sequence[StoreId]:
        """Stores of other nodes that are said to have a copy."""

    def kept(self, digest: Digest) -> None:
        """This node has a copy from now on."""

    def untrue(self, store: StoreId, digest: Digest) -> None:
        """That store does not hold the blob."""


class NoCopies:
    """Where nobody tells of copies."""

    def holders(self, digest: Digest) -> Sequence[StoreId]:
        """None."""
        return ()

    def kept(self, digest: Digest) -> None:
        """Nobody wants to know."""

    def untrue(self, store: StoreId, digest: Digest) -> None:
        """Nobody has said so."""
