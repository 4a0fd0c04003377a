"""Blobs that this node does not hold: brought here, each once however many ask, and shown while they come.

What is asked for goes before what is only likely to be asked for soon: the latter comes by few requests, a few blobs
at a time, for as long as anybody waits for another. So does what nobody waits for any more; of that, the rest pauses,
and where it is in the way of others, it is suspended and has its turn later.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self

from consensus import clock
from consensus.names import Digest, StoreId
from replication.blame import Blame
from replication.chronicle import Chronicle, Members
from replication.hearsay import Hearsay
from replication.inventory import HEARD_SECONDS, Copies, NoCopies
from replication.reports import ReplicatorReport
from replication.schedule import MOST_FLOWS
from replication.sources import BlobNowhere, HoldersUnreachable, Source, TransferError, TransfersBusy, Wanted
from replication.stores import ArrivalStore, BlobStore
from replication.transfer import Following, Transfer

MAX_TRANSFERS = 32  # that somebody waits for, or that are whole; AHEAD_TRANSFERS more in all
MAX_FOLLOWINGS = 4096
MAX_FLOWS = 48  # of all transfers together; each has one at least
MAX_AHEAD = 256  # waiting
AHEAD_TRANSFERS = 2  # of those that nobody waits for
AHEAD_FLOWS = 1  # of each, while anybody waits

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TransferRecord:
    """A transfer that is over. `outcome` is "kept", "passed" (to a client, there being no room), "suspended" (nobody
    waited for it any more, and others were to come) or what went wrong;
    `troubles` are requests that failed, by their cause; `lag_seconds` is the time from the blob's acknowledged push to
    when it was held here, if both are known."""

    outcome: str
    seconds: float
    received_bytes: int
    troubles: Mapping[str, int]
    lag_seconds: float | None = None


Observe = Callable[[TransferRecord], None]


@dataclass(frozen=True, slots=True)
class FetcherStatus:
    """What is under way: blobs on their way here, those who follow them, requests to other nodes, and blobs that will
    be fetched because others of their image were asked for."""

    transfers: int
    followings: int
    flows: int
    waiting: int


class Fetcher:
    """The transfers of a node. Used as a context manager, at whose end all of them are cut off, to be resumed."""

    def __init__(
        self,
        source: Source,
        blobs: BlobStore,
        arrivals: ArrivalStore,
        *,
        observe: Observe,
        copies: Copies | None = None,
    ) -> None:
        """`arrivals` end in `blobs`. `observe` is told of each transfer, `copies` of each that has brought its blob."""
        self._source = source
        self._blobs = blobs
        self._arrivals = arrivals
        self._observe = observe
        self._hears = copies is not None
        self._copies = copies or NoCopies()
        self._blame = Blame()
        self._chronicle = Chronicle()
        self._transfers: dict[Digest, Transfer] = {}
        self._ahead: deque[Wanted] = deque()
        self._tasks: dict[Transfer, asyncio.Task[None]] = {}  # also of those that are suspended and end

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [*self._tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def status(self) -> FetcherStatus:
        """What is under way."""
        transfers = self._transfers.values()
        followings = sum(len(transfer.followings) for transfer in transfers)
        return FetcherStatus(len(transfers), followings, sum(each.flows for each in transfers), len(self._ahead))

    def report(self, pid: int, members: Members) -> ReplicatorReport:
        """What is under way and what became of what was; `members` are those that have been met."""
        waiting = [each.digest for each in self._ahead]
        return self._chronicle.report(self._transfers.values(), pid=pid, waiting=waiting, members=members)

    def look(self) -> int:
        """To be called each second or so, for the rates in the report. Returns how many blobs that were asked for were
        not here, so far."""
        self._chronicle.looked(self._transfers.values())
        return self._chronicle.misses

    def follow(self, wanted: Wanted, start: int, stop: int) -> Following:
        """An interest in the bytes from `start` to before `stop`; they are on their way from now on. Raises
        HoldersUnreachable, TransfersBusy."""
        known = self._transfers.get(wanted.digest)
        if known is None or not known.asked:
            self._chronicle.missed()
        try:
            return self._follow(wanted, start, stop)
        except TransferError as error:
            self._chronicle.failed(wanted.digest, error)
            raise

    def _follow(self, wanted: Wanted, start: int, stop: int) -> Following:
        if self.status.followings >= MAX_FOLLOWINGS:
            raise TransfersBusy(f"{MAX_FOLLOWINGS} requests wait for blobs already", wanted.digest)
        transfer = self._transfers.get(wanted.digest)
        if transfer is None:
            self._make_way(wanted.digest)
            transfer = self._begin(wanted)
        transfer.named.update(wanted.holders)
        following = transfer.follow(start, stop)
        self._share()
        return following

    def ahead(self, wanted: Sequence[Wanted]) -> None:
        """These are likely to be asked for soon. Those beyond MAX_AHEAD are forgotten."""
        known = {*self._transfers, *(each.digest for each in self._ahead)}
        self._ahead.extend(each for each in wanted[: MAX_AHEAD - len(self._ahead)] if each.digest not in known)
        self._go_ahead()

    def _make_way(self, digest: Digest) -> None:
        """For a blob that is asked for. Raises TransfersBusy."""
        idle = self._idle()
        if len(self._transfers) - len(idle) >= MAX_TRANSFERS:
            raise TransfersBusy(f"{MAX_TRANSFERS} blobs are being fetched already", digest)
        if self._is_full():
            self._suspend(idle[-1])

    def _idle(self) -> list[Transfer]:
        return [transfer for transfer in self._transfers.values() if transfer.idle]

    def _is_full(self) -> bool:
        return len(self._transfers) >= MAX_TRANSFERS + AHEAD_TRANSFERS

    def _suspend(self, transfer: Transfer) -> None:
        """What has come of it stays on the disk. It has the next turn; if too many wait for one, it has to be asked for
        again."""
        transfer.suspended = True
        self._tasks[transfer].cancel()
        self._forget(transfer)
        if len(self._ahead) < MAX_AHEAD:
            self._ahead.appendleft(transfer.wanted)

    def _forget(self, transfer: Transfer) -> None:
        if self._transfers.get(transfer.wanted.digest) is transfer:
            del self._transfers[transfer.wanted.digest]
            self._chronicle.ended(transfer)

    def _begin(self, wanted: Wanted) -> Transfer:
        wanted = self._blame.without_suspects(self._with_copies(wanted), clock.monotonic())
        transfer = Transfer(wanted, self._source, self._hearsay(wanted), self._share)
        suspended = [task for each, task in self._tasks.items() if each.wanted.digest == wanted.digest]
        self._transfers[wanted.digest] = transfer
        self._chronicle.began(wanted.digest)
        task = asyncio.get_running_loop().create_task(self._run(transfer, suspended))
        self._tasks[transfer] = task
        task.add_done_callback(lambda _: self._tasks.pop(transfer))
        return transfer

    def _with_copies(self, wanted: Wanted) -> Wanted:
        return wanted.held_too(store for store in self._copies.holders(wanted.digest) if store != self._blobs.store_id)

    def _hearsay(self, wanted: Wanted) -> Hearsay:
        patience_seconds = HEARD_SECONDS if self._hears else 0.0
        return Hearsay(partial(self._look_again, wanted), patience_seconds, self._copies.untrue)

    def _look_again(self, wanted: Wanted) -> Sequence[StoreId]:
        """The holders that are known by now, but for those that have given wrong bytes."""
        transfer = self._transfers.get(wanted.digest)
        named = wanted.held_too(sorted(transfer.named) if transfer else ())
        try:
            return self._blame.without_suspects(self._with_copies(named), clock.monotonic()).holders
        except HoldersUnreachable:
            return ()

    def _go_ahead(self) -> None:
        while self._ahead and not self._is_full():
            if sum(not each.followings for each in self._transfers.values()) >= AHEAD_TRANSFERS:
                break
            wanted = self._ahead.popleft()
            if wanted.digest not in self._transfers and self._with_copies(wanted).holders:
                try:
                    self._begin(wanted)
                except HoldersUnreachable as error:
                    self._chronicle.failed(wanted.digest, error)
        self._share()

    def _share(self) -> None:
        """Flows for those that somebody waits for, and what is left for the others."""
        wanted = [transfer for transfer in self._transfers.values() if transfer.followings]
        for transfer in self._transfers.values():
            if transfer.followings or not wanted:
                transfer.most_flows = min(MOST_FLOWS, max(1, MAX_FLOWS // max(1, len(wanted))))
            else:
                transfer.most_flows = AHEAD_FLOWS
        for transfer in self._idle()[AHEAD_TRANSFERS:]:
            transfer.most_flows = 0

    async def _run(self, transfer: Transfer, after: Collection[asyncio.Task[None]]) -> None:
        began = clock.monotonic()
        try:
            await transfer.run(self._blobs, self._arrivals, after)
        finally:
            self._forget(transfer)
            if not transfer.found:
                self._record(transfer, clock.monotonic() - began)
        self._go_ahead()

    def _record(self, transfer: Transfer, seconds: float) -> None:
        failure, digest = transfer.failure, transfer.wanted.digest
        if failure and not transfer.suspended:
            stores = sorted(transfer.givers or transfer.wanted.holders)
            fields = {"digest": str(digest), "reason": str(failure), "stores": stores}
            if isinstance(failure, BlobNowhere):
                log.error("blob_lost", extra=fields)
            else:
                log.warning("blob_not_fetched", extra=fields)
        if transfer.disbelieved:
            log.error("parts_disbelieved", extra={"digest": str(digest), "stores": sorted(transfer.wanted.holders)})
        if transfer.liars:
            log.warning("wrong_bytes_given", extra={"digest": str(digest), "stores": sorted(transfer.liars)})
            self._blame.suspect(digest, transfer.liars, clock.monotonic())
        if not failure:
            self._copies.kept(digest)
        outcome = "kept" if not failure else "suspended" if transfer.suspended else type(failure).__name__
        troubles = {str(trouble): count for trouble, count in transfer.troubles.items()}
        lag_seconds = None if failure else _lag_seconds(transfer.wanted)
        if not failure:
            self._chronicle.kept(digest, lag_seconds)
        self._observe(TransferRecord(outcome, seconds, transfer.received_bytes, troubles, lag_seconds))


def _lag_seconds(wanted: Wanted) -> float | None:
    """Since the push of a blob that has just come; clocks of two nodes may differ, but nothing comes before."""
    return max(0, clock.wall_ms() - wanted.pushed_ms) / 1000 if wanted.pushed_ms else None
