"""What the other members say of themselves: asked at their listeners for members, each for its own, in bounded time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import msgspec

from consensus.errors import UNDECODABLE
from consensus.names import Digest
from node.overview.here import Here
from node.overview.reasons import Heard
from node.overview.shapes import MAX_DIGESTS, Demanded, Digests, Holdings, MemberStatus
from replication.directory import PeerError, PeerUnreachable, PeerWrong
from replication.reports import MemberReport
from replication.requests import PeerAnswer, PeerRequest

ASK_SECONDS = 5.0
STATUS_PATH = "/meridian/v1/replication"
HOLDINGS_PATH = "/meridian/v1/holdings"
DEMANDS_PATH = "/meridian/v1/demands"

Answer = TypeVar("Answer", MemberStatus, Holdings, Demanded)


class Peers(Protocol):
    """The other members."""

    async def request(self, member: str, request: PeerRequest) -> PeerAnswer:
        """Raises PeerError."""


@dataclass(frozen=True, slots=True)
class Unheard:
    """A member that did not answer, and why; its region, if it ever said."""

    member: str
    region: str
    reason: str


class Members:
    """All members of a cluster, this one first: it is asked as the others are, but for the way. What the others have
    said of their regions and stores, here or to the replicator, is remembered for when they do not answer."""

    def __init__(self, here: Here, others: Collection[str], peers: Peers | None) -> None:
        self._here = here
        self._others = sorted(others)
        self._peers = peers

    async def statuses(self) -> list[MemberStatus | Unheard]:
        """How replication goes at each of them."""
        own = await self._here.status()  # which says whom the replicator has met, before somebody has to be described
        others = await asyncio.gather(*(self._ask(each, "GET", STATUS_PATH, MemberStatus) for each in self._others))
        return [own, *others]

    async def holdings(self, digests: Sequence[Digest]) -> list[Heard]:
        """Which of the blobs each of them holds. Raises StoreError of this one's own store."""
        parts = [digests[at : at + MAX_DIGESTS] for at in range(0, len(digests), MAX_DIGESTS)] or [()]
        own = self._heard(self._here.member, await self._here.holdings(digests))
        others = await asyncio.gather(*(self._holdings_of(each, parts) for each in self._others))
        return [own, *others]

    async def demand(self, digests: Sequence[Digest], members: Collection[str] | None) -> list[Demanded | Unheard]:
        """Has some members (None: all) bring what they lack. Raises StoreError, StateRefused, sqlite3.Error of this
        one's own store and state."""
        parts = [digests[at : at + MAX_DIGESTS] for at in range(0, len(digests), MAX_DIGESTS)]
        chosen = [each for each in (self._here.member, *self._others) if members is None or each in members]
        return list(await asyncio.gather(*(self._demand_of(each, parts) for each in chosen)))

    def unknown(self, members: Collection[str]) -> list[str]:
        """Those that are none."""
        return sorted({*members} - {self._here.member, *self._others})

    async def _holdings_of(self, member: str, parts: Sequence[Sequence[Digest]]) -> Heard:
        found: list[Holdings] = []
        for part in parts:
            answer = await self._ask(member, "POST", HOLDINGS_PATH, Holdings, _listed(part, report=not found))
            if isinstance(answer, Unheard):
                return self._heard(member, None, answer.reason)
            found.append(answer)
        held = tuple(digest for each in found for digest in each.held)
        return self._heard(member, msgspec.structs.replace(found[0], held=held))

    async def _demand_of(self, member: str, parts: Sequence[Sequence[Digest]]) -> Demanded | Unheard:
        found: list[Demanded] = []
        for part in parts:
            if member == self._here.member:
                found.append(await self._here.demand(part))
                continue
            answer = await self._ask(member, "POST", DEMANDS_PATH, Demanded, _listed(part))
            if isinstance(answer, Unheard):
                return answer
            found.append(answer)
        return Demanded(
            member=member,
            region=found[0].region if found else self._region(member),
            asked=sum(each.asked for each in found),
            held=sum(each.held for each in found),
            unknown=sum(each.unknown for each in found),
        )

    def _heard(self, member: str, holdings: Holdings | None, reason: str = "") -> Heard:
        if holdings:
            self._here.met[member] = MemberReport(member=member, region=holdings.region, store=holdings.store_id)
            return Heard(member, holdings.region, holdings.store_id, holdings)
        met = self._here.met.get(member)
        return Heard(member, met.region if met else "", met.store if met else "", None, reason)

    async def _ask(
        self, member: str, method: str, path: str, kind: type[Answer], digests: Digests | None = None
    ) -> Answer | Unheard:
        body = msgspec.json.encode(digests) if digests else None
        try:
            async with asyncio.timeout(ASK_SECONDS):
                answer = await self._ask_again(member, method, path, body)
            found = _decoded(member, answer, kind)
        except TimeoutError:
            return Unheard(member, self._region(member), f"no answer within {ASK_SECONDS:.0f} s")
        except PeerError as error:
            return Unheard(member, self._region(member), str(error).removeprefix(f"{member}: "))
        if member not in self._here.met:
            self._here.met[member] = MemberReport(member=member, region=found.region, store="")
        return found

    def _region(self, member: str) -> str:
        """As far as it is known."""
        met = self._here.met.get(member)
        return self._here.region if member == self._here.member else met.region if met else ""

    async def _ask_again(self, member: str, method: str, path: str, body: bytes | None) -> PeerAnswer:
        """A connection that was kept may have ended meanwhile: then once more."""
        assert self._peers
        try:
            return await self._peers.request(member, _request(method, path, body))
        except PeerUnreachable:
            return await self._peers.request(member, _request(method, path, body))


def _listed(digests: Sequence[Digest], *, report: bool = False) -> Digests:
    return Digests(digests=tuple(map(str, digests)), report=report)


def _request(method: str, path: str, body: bytes | None) -> PeerRequest:
    async def once() -> AsyncIterator[bytes]:
        yield body or b""

    headers = [("content-type", "application/json"), ("content-length", str(len(body)))] if body is not None else []
    chunks = once() if body is not None else None
    return PeerRequest(method, path, headers, chunks, waits=False, answer_seconds=ASK_SECONDS)


def _decoded(member: str, answer: PeerAnswer, kind: type[Answer]) -> Answer:
    if answer.status != 200:
        raise PeerWrong(f"{member} answers with status {answer.status}")
    try:
        found = msgspec.json.decode(answer.body, type=kind)
    except UNDECODABLE as error:
        raise PeerWrong(f"{member} answers with something else: {error}"[:300]) from error
    if found.member != member:
        raise PeerWrong(f"{member} says that it is {found.member[:80]}")
    return found
